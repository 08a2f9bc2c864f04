"""Checkpoints: immutable folders `{CHECKPOINT_STORE}/{model}/{step}-{token}/`.

The files are complete and on disk before the commit that names them; nothing is renamed or shared
between attempts, so a crash at any moment leaves at most a folder that no row names. A manifest,
written last, tells a complete folder from a half-written one.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO

import fsspec
import msgspec

from babylon_tasks.errors import CheckpointUnreadable, UserError

_MANIFEST = "manifest.json"
_CHUNK_BYTES = 4 << 20


class _Manifest(msgspec.Struct):
    """File name → size in bytes."""

    files: dict[str, int]


def folder_of(store: str, model_name: str, step: int, token: int) -> str:
    """Where the attempt that holds `token` puts its step."""
    root = store if "://" in store else str(Path(store).resolve())
    return f"{root}/{model_name}/{step}-{token}"


def save(source: Path, target: str, on_chunk: Callable[[], None] = lambda: None) -> None:
    """Copy a folder's files to `target`, durably, manifest last.

    `on_chunk` is called with every few megabytes, so that a slow store does not cost the lease;
    what it raises ends the copy.

    Raises:
        UserError: The target exists already, or cannot be written (disk full, no permission).
    """
    files = {p.name: p.stat().st_size for p in sorted(source.iterdir()) if p.is_file()}
    manifest = msgspec.json.encode(_Manifest(files))
    filesystem, path = fsspec.core.url_to_fs(target)
    try:
        filesystem.makedirs(path, exist_ok=False)
        for name in files:
            with (source / name).open("rb") as read, filesystem.open(f"{path}/{name}", "wb") as to:
                _copy(read, to, on_chunk)
        filesystem.pipe_file(f"{path}/{_MANIFEST}", manifest)
        if "://" not in target:
            folder = Path(path)
            for each in (*(folder / name for name in (*files, _MANIFEST)), folder, folder.parent):
                _sync(each)
    except FileExistsError as error:
        raise UserError(f"the checkpoint {target} exists: attempts never share a folder") from error
    except OSError as error:
        remove(target)
        raise UserError(
            f"cannot write the checkpoint {target}: {error.strerror or error}; "
            "free space below CHECKPOINT_STORE or point it elsewhere"
        ) from error


def open_local(url: str, on_chunk: Callable[[], None] = lambda: None) -> Path:
    """A complete local folder with the checkpoint's files; a remote one is fetched first.

    `on_chunk` as in `save`.

    Raises:
        CheckpointUnreadable: The folder is missing, incomplete, or not readable from this node.
    """
    filesystem, path = fsspec.core.url_to_fs(url)
    try:
        manifest = msgspec.json.decode(filesystem.cat_file(f"{path}/{_MANIFEST}"), type=_Manifest)
        folder = (
            Path(path) if "://" not in url else _fetch(filesystem, path, url, manifest, on_chunk)
        )
        for name, size in manifest.files.items():
            if (folder / name).stat().st_size != size:
                raise CheckpointUnreadable(f"checkpoint {url} is incomplete: {name} was cut short")
    except (OSError, msgspec.DecodeError) as error:
        raise CheckpointUnreadable(
            f"cannot read the checkpoint {url} from this machine ({type(error).__name__}): "
            "CHECKPOINT_STORE must be a folder that all GPU nodes share, or an S3 URL"
        ) from error
    return folder


def remove(url: str) -> None:
    """Delete a checkpoint folder that no row names; missing is fine."""
    filesystem, path = fsspec.core.url_to_fs(url)
    if filesystem.exists(path):
        filesystem.rm(path, recursive=True)


def _fetch(
    filesystem: fsspec.AbstractFileSystem,
    path: str,
    url: str,
    manifest: _Manifest,
    on_chunk: Callable[[], None],
) -> Path:
    cache = Path(tempfile.gettempdir()) / f"babylon-tasks-{os.getuid()}" / "checkpoints"
    folder = cache / url.replace("://", "/").strip("/")
    folder.mkdir(parents=True, exist_ok=True)
    for name, size in manifest.files.items():
        local = folder / name
        if not local.exists() or local.stat().st_size != size:
            partial = local.with_suffix(f"{local.suffix}.{os.getpid()}")
            with filesystem.open(f"{path}/{name}", "rb") as read, partial.open("wb") as to:
                _copy(read, to, on_chunk)
            partial.replace(local)
    return folder


def _copy(read: IO[bytes], to: IO[bytes], on_chunk: Callable[[], None]) -> None:
    while chunk := read.read(_CHUNK_BYTES):
        to.write(chunk)
        on_chunk()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
