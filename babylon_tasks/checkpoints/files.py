"""Checkpoints: immutable folders `{CHECKPOINT_STORE}/{model}/{step}-{token}/`.

The files are complete and on disk before the commit that names them; nothing is renamed or shared
between attempts, so a crash at any moment leaves at most a folder that no row names. A manifest,
written last, tells a complete folder from a half-written one. A nonce, written first, tells whose
folder it is: two databases may use one store, and only its maker's is removed.
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import fsspec
import msgspec

from babylon_tasks.errors import CheckpointUnreadable, UserError

log = logging.getLogger(__name__)

_MANIFEST = "manifest.json"
_NONCE = "nonce.txt"
_COPIES_KEPT = 4  # of a remote model's steps, on this machine
_CHUNK_BYTES = 8 << 20  # at least 5 MiB: it is also the size of an S3 part

# For s3fs: a server that refuses is missed within seconds, one that hangs within about a minute.
_S3_OPTIONS: dict[str, Any] = {
    "use_listings_cache": False,  # other machines write there too
    "config_kwargs": {
        "connect_timeout": 3,
        "read_timeout": 10,
        "retries": {"mode": "standard", "total_max_attempts": 3},
    },
}
_S3_ADVICE = "are CHECKPOINT_STORE, AWS_ENDPOINT_URL and the AWS credentials right?"


class _Manifest(msgspec.Struct):
    """File name → size in bytes."""

    files: dict[str, int]


def folder_of(store: str, model_name: str, step: int, token: int) -> str:
    """Where the attempt that holds `token` puts its step."""
    root = store if "://" in store else str(Path(store).resolve())
    return f"{root}/{model_name}/{step}-{token}"


def check_writable(target: str) -> None:
    """Try to write where `save` will: before hours of training are spent.

    Raises:
        UserError: The target exists already, or its store cannot be written.
    """
    filesystem, path = _filesystem(target)
    try:
        if filesystem.exists(path):
            raise _taken(target)
        if "://" not in target:
            folder = Path(path).parent
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
    except _store_errors(target) as error:
        raise _unwritable(target, error) from error


def save(
    source: Path, target: str, nonce: str, on_chunk: Callable[[], None] = lambda: None
) -> None:
    """Copy a folder's files to `target`, durably, nonce first and manifest last.

    `on_chunk` is called with every few megabytes, so that a slow store does not cost the lease;
    what it raises ends the copy. A copy that ends early leaves nothing behind.

    Raises:
        UserError: The target exists already, or cannot be written (disk full, no permission).
    """
    files = {p.name: p.stat().st_size for p in sorted(source.iterdir()) if p.is_file()}
    manifest = msgspec.json.encode(_Manifest(files))
    filesystem, path = _filesystem(target)
    try:
        if filesystem.exists(path):
            raise _taken(target)
        if "://" not in target:  # S3 has no folders, and s3fs would make a missing bucket
            filesystem.makedirs(path, exist_ok=False)
        filesystem.pipe_file(f"{path}/{_NONCE}", nonce.encode())
        try:
            for name in files:
                with (
                    (source / name).open("rb") as read,
                    filesystem.open(f"{path}/{name}", "wb", block_size=_CHUNK_BYTES) as to,
                ):
                    _copy(read, to, on_chunk)
            filesystem.pipe_file(f"{path}/{_MANIFEST}", manifest)
            if "://" not in target:
                folder = Path(path)
                written = (folder / name for name in (_NONCE, *files, _MANIFEST))
                for each in (*written, folder, folder.parent, folder.parent.parent):
                    _sync(each)
                    on_chunk()
        except BaseException:
            remove(target)
            raise
    except _store_errors(target) as error:
        raise _unwritable(target, error) from error


def open_local(url: str, on_chunk: Callable[[], None] = lambda: None) -> Path:
    """Return a complete local folder with the checkpoint's files; a remote one is fetched first.

    `on_chunk` as in `save`.

    Raises:
        CheckpointUnreadable: The folder is missing, incomplete, or not readable from this node.
    """
    filesystem, path = _filesystem(url)
    try:
        manifest = msgspec.json.decode(filesystem.cat_file(f"{path}/{_MANIFEST}"), type=_Manifest)
        folder = (
            Path(path) if "://" not in url else _fetch(filesystem, path, url, manifest, on_chunk)
        )
        for name, size in manifest.files.items():
            if (folder / name).stat().st_size != size:
                raise CheckpointUnreadable(f"checkpoint {url} is incomplete: {name} was cut short")
    except _store_errors(url) as error:
        advice = "CHECKPOINT_STORE must be a folder that all GPU nodes share, or an S3 URL"
        raise CheckpointUnreadable(
            f"cannot read the checkpoint {url} from this machine "
            f"({type(error).__name__}: {_why(error)}): {_S3_ADVICE if '://' in url else advice}"
        ) from error
    return folder


def remove(url: str) -> None:
    """Delete a checkpoint folder that no row names; missing is fine.

    A store that fails is only logged: the error that led here must not be lost, and what is left
    is removed by `remove_unfinished`.
    """
    filesystem, path = _filesystem(url)
    try:
        if filesystem.exists(path):
            _delete(filesystem, path)
    except _store_errors(url) as error:
        log.warning("cannot remove the checkpoint %s: %s", url, _why(error))


def remove_unfinished(url: str, nonce: str) -> bool:
    """Delete what is left of a folder that no step needs; False where this machine cannot tell.

    Only the holder of the model's lease may: nobody can commit the folder any more.
    """
    filesystem, path = _filesystem(url)
    if not filesystem.exists(path):
        # The store may be another machine's disk, where the folder may well be.
        return "://" in url or Path(path).parent.is_dir()
    names = {Path(entry).name for entry in filesystem.ls(path, detail=False)}
    found = filesystem.cat_file(f"{path}/{_NONCE}").decode() if _NONCE in names else ""
    # Cut off within its first bytes, the nonce is short, or missing in an empty folder.
    if found == nonce or (names <= {_NONCE} and nonce.startswith(found)):
        _delete(filesystem, path)
    return True


def _delete(filesystem: fsspec.AbstractFileSystem, path: str) -> None:
    """Remove a folder, its nonce last: where this is cut off, the rest is known as ours."""
    others = [entry for entry in filesystem.ls(path, detail=False) if Path(entry).name != _NONCE]
    if others:
        filesystem.rm(others, recursive=True)
    filesystem.rm(path, recursive=True)


def _filesystem(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """Return what reads and writes there, and the path in it.

    Raises:
        UserError: The extra `s3` is missing.
    """
    is_s3 = url.startswith("s3://")
    try:
        filesystem, path = fsspec.core.url_to_fs(url, **(_S3_OPTIONS if is_s3 else {}))
    except ImportError as error:
        raise UserError("S3 support is not installed: pip install 'babylon-tasks[s3]'") from error
    if is_s3:
        filesystem.retries = 2  # around botocore's three; of itself s3fs tries five times
    return filesystem, path


def _store_errors(url: str) -> tuple[type[Exception], ...]:
    """Return what a store raises that does not work, or holds what is no manifest."""
    ours = (OSError, msgspec.DecodeError)
    if not url.startswith("s3://"):
        return ours
    from botocore.exceptions import BotoCoreError  # no OSError

    return (*ours, BotoCoreError, ValueError)  # ValueError: AWS_ENDPOINT_URL is no URL


def _taken(target: str) -> UserError:
    """Lease tokens are a database's own, so no attempt of this one made it."""
    return UserError(
        f"the checkpoint {target} exists, and this database did not make it: "
        "set CHECKPOINT_STORE to another folder, or MODEL_NAME to a new name"
    )


def _unwritable(target: str, error: Exception) -> UserError:
    advice = "free space below CHECKPOINT_STORE or point it elsewhere"
    return UserError(
        f"cannot write the checkpoint {target}: {_why(error)}; "
        f"{_S3_ADVICE if '://' in target else advice}"
    )


def _why(error: Exception) -> str:
    """Return the reason in one line."""
    reason = error.strerror if isinstance(error, OSError) else None
    return " ".join(str(reason or error).split())


def _fetch(
    filesystem: fsspec.AbstractFileSystem,
    path: str,
    url: str,
    manifest: _Manifest,
    on_chunk: Callable[[], None],
) -> Path:
    ours = Path(tempfile.gettempdir()) / f"babylon-tasks-{os.getuid()}"
    ours.mkdir(mode=0o700, parents=True, exist_ok=True)
    if ours.stat().st_uid != os.getuid():
        raise PermissionError(errno.EPERM, f"{ours} belongs to another user")
    folder = ours / "checkpoints" / url.replace("://", "/").strip("/")
    folder.mkdir(parents=True, exist_ok=True)
    for name, size in manifest.files.items():
        local = folder / name
        if not local.exists() or local.stat().st_size != size:
            partial = local.with_suffix(f"{local.suffix}.{os.getpid()}")
            with (
                filesystem.open(f"{path}/{name}", "rb", block_size=_CHUNK_BYTES) as read,
                partial.open("wb") as to,
            ):
                _copy(read, to, on_chunk)
            partial.replace(local)
    _forget_old_copies(folder.parent)
    return folder


def _forget_old_copies(model: Path) -> None:
    """Keep the copies that a trainer and a server may be reading: the newest few."""
    copies = sorted(model.iterdir(), key=lambda copy: copy.stat().st_mtime)
    for copy in copies[:-_COPIES_KEPT]:
        shutil.rmtree(copy, ignore_errors=True)


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
