"""Checkpoints: immutable folders `{CHECKPOINT_STORE}/{model}/{step}-{token}/`.

The files are complete and on disk before the commit that names them; nothing is renamed or shared
between attempts, so a crash at any moment leaves at most a folder that no row names. A manifest,
written last, tells a complete folder from a half-written one.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import fsspec
import msgspec

from babylon_tasks.errors import CheckpointUnreadable, UserError

_MANIFEST = "manifest.json"


class _Manifest(msgspec.Struct):
    """File name → size in bytes."""

    files: dict[str, int]


def folder_of(store: str, model_name: str, step: int, token: int) -> str:
    """Where the attempt that holds `token` puts its step."""
    root = store if "://" in store else str(Path(store).resolve())
    return f"{root}/{model_name}/{step}-{token}"


def save(source: Path, target: str) -> None:
    """Copy a folder's files to `target`, durably, manifest last.

    Raises:
        UserError: The target exists already, or cannot be written (disk full, no permission).
    """
    files = {p.name: p.stat().st_size for p in sorted(source.iterdir()) if p.is_file()}
    manifest = msgspec.json.encode(_Manifest(files))
    filesystem, path = fsspec.core.url_to_fs(target)
    try:
        if "://" in target:
            for name in files:
                filesystem.put_file(str(source / name), f"{path}/{name}")
            filesystem.pipe_file(f"{path}/{_MANIFEST}", manifest)
            return
        folder = Path(target)
        folder.mkdir(parents=True)
        for name in files:
            shutil.copyfile(source / name, folder / name)
            _sync(folder / name)
        (folder / _MANIFEST).write_bytes(manifest)
        _sync(folder / _MANIFEST)
        _sync(folder)
        _sync(folder.parent)
    except OSError as error:
        remove(target)
        raise UserError(
            f"cannot write the checkpoint {target}: {error.strerror or error}; "
            "free space below CHECKPOINT_STORE or point it elsewhere"
        ) from error


def open_local(url: str) -> Path:
    """A complete local folder with the checkpoint's files; a remote one is fetched first.

    Raises:
        CheckpointUnreadable: The folder is missing, incomplete, or not readable from this node.
    """
    filesystem, path = fsspec.core.url_to_fs(url)
    try:
        manifest = msgspec.json.decode(filesystem.cat_file(f"{path}/{_MANIFEST}"), type=_Manifest)
        folder = Path(path) if "://" not in url else _fetch(filesystem, path, url, manifest)
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


def _fetch(filesystem: fsspec.AbstractFileSystem, path: str, url: str, manifest: _Manifest) -> Path:
    cache = Path(tempfile.gettempdir()) / f"babylon-tasks-{os.getuid()}" / "checkpoints"
    folder = cache / url.replace("://", "/").strip("/")
    folder.mkdir(parents=True, exist_ok=True)
    for name, size in manifest.files.items():
        local = folder / name
        if not local.exists() or local.stat().st_size != size:
            partial = local.with_suffix(f"{local.suffix}.{os.getpid()}")
            filesystem.get_file(f"{path}/{name}", str(partial))
            partial.replace(local)
    return folder


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
