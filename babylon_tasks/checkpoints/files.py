"""Checkpoints: immutable folders `{CHECKPOINT_STORE}/{model}/{step}-{token}/`.

The files are complete and on disk before the commit that names them. Nothing is renamed or shared
between attempts, so a crash at any moment leaves at most a folder that no row names. The manifest
is written last: a folder without it is incomplete. The nonce is written first: it shows which
database made the folder, since several may use one store, and each removes only its own.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import msgspec

from babylon_tasks.checkpoints.copies import local_copy
from babylon_tasks.checkpoints.manifest import (
    CHUNK_BYTES,
    MANIFEST,
    Manifest,
    require_content,
    require_sizes,
    sha256_of,
)
from babylon_tasks.checkpoints.manifest import copy as _copy
from babylon_tasks.errors import CheckpointUnreadable, StoreUnavailable, UserError

log = logging.getLogger(__name__)

_NONCE = "nonce.txt"

# For s3fs: a server that refuses is noticed within seconds, one that hangs within about a minute.
_S3_OPTIONS: dict[str, Any] = {
    "use_listings_cache": False,  # other machines write to the store too
    "config_kwargs": {
        "connect_timeout": 3,
        "read_timeout": 10,
        "retries": {"mode": "standard", "total_max_attempts": 3},
    },
}
_S3_ADVICE = "are CHECKPOINT_STORE, AWS_ENDPOINT_URL and the AWS credentials right?"


def folder_of(store: str, model_name: str, step: int, token: int) -> str:
    """Return the folder or URL of the checkpoint of the attempt that holds `token`."""
    root = store if "://" in store else str(Path(store).resolve())
    return f"{root}/{model_name}/{step}-{token}"


def check_writable(target: str) -> None:
    """Check that `save` will be able to write, before training takes hours.

    Raises:
        UserError: The target already exists, its store cannot be written, or the extra `s3` is
            missing.
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

    `on_chunk` is called after every few megabytes, so that a slow store does not cost the lease. An
    error that it raises ends the copy and is passed on. A copy that ends early leaves nothing
    behind.

    Raises:
        StoreUnavailable: A remote store does not answer; it may later.
        UserError: The target already exists, or cannot be written (disk full, no permission), or
            the extra `s3` is missing.
    """
    files = {p.name: p.stat().st_size for p in sorted(source.iterdir()) if p.is_file()}
    manifest = Manifest(files)
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
                    filesystem.open(f"{path}/{name}", "wb", block_size=CHUNK_BYTES) as to,
                ):
                    manifest.sha256[name] = _copy(read, to, on_chunk)
            filesystem.pipe_file(f"{path}/{MANIFEST}", msgspec.json.encode(manifest))
            if "://" not in target:
                folder = Path(path)
                written = (folder / name for name in (_NONCE, *files, MANIFEST))
                for each in (*written, folder, folder.parent, folder.parent.parent):
                    _sync(each)
                    on_chunk()
        except BaseException:
            remove(target)
            raise
    except _store_errors(target) as error:
        raise _unwritable(target, error) from error


def open_local(url: str, on_chunk: Callable[[], None] = lambda: None) -> Path:
    """Return a local folder with the checkpoint's files; fetch it first if it is remote.

    `on_chunk` works as in `save`.

    Raises:
        CheckpointUnreadable: The folder is missing, incomplete, or not readable from this node.
        UserError: The extra `s3` is missing.
    """
    filesystem, path = _filesystem(url)
    try:
        manifest = msgspec.json.decode(filesystem.cat_file(f"{path}/{MANIFEST}"), type=Manifest)
        if "://" in url:
            return local_copy(filesystem, path, url, manifest, on_chunk)
        folder = Path(path)
        require_sizes(folder, manifest, url)
        for name in manifest.sha256:
            require_content(name, sha256_of(folder / name, on_chunk), manifest, url)
    except _store_errors(url) as error:
        advice = "CHECKPOINT_STORE must be a folder that all GPU nodes share, or an S3 URL"
        raise CheckpointUnreadable(
            f"cannot read the checkpoint {url} from this machine "
            f"({type(error).__name__}: {_why(error)}): {_S3_ADVICE if '://' in url else advice}"
        ) from error
    return folder


def remove(url: str) -> None:
    """Delete a checkpoint folder that no row names, if it exists.

    If the store fails, that is only logged: the error that led here must not be lost, and
    `remove_unfinished` removes the rest later.

    Raises:
        UserError: The extra `s3` is missing.
    """
    filesystem, path = _filesystem(url)
    try:
        if filesystem.exists(path):
            _delete(filesystem, path)
    except _store_errors(url) as error:
        log.warning("cannot remove the checkpoint %s: %s", url, _why(error))


def remove_unfinished(url: str, nonce: str) -> bool:
    """Delete the rest of a folder that no step needs; False if this machine may not see it.

    Only for the holder of the model's lease: then nobody can commit the folder any more.

    Raises:
        UserError: The extra `s3` is missing.
        OSError, botocore.exceptions.BotoCoreError, ValueError: The store fails.
    """
    filesystem, path = _filesystem(url)
    if not filesystem.exists(path):
        # Without its parent folder, the store may be another machine's disk and hold the folder.
        return "://" in url or Path(path).parent.is_dir()
    names = {Path(entry).name for entry in filesystem.ls(path, detail=False)}
    written = filesystem.cat_file(f"{path}/{_NONCE}").decode() if _NONCE in names else ""
    # After a crash within the first bytes the nonce is cut short, or missing in an empty folder.
    if written == nonce or (names <= {_NONCE} and nonce.startswith(written)):
        _delete(filesystem, path)
    return True


def _delete(filesystem: fsspec.AbstractFileSystem, path: str) -> None:
    """Remove a folder, its nonce last: after a crash the rest is still recognised as ours."""
    others = [entry for entry in filesystem.ls(path, detail=False) if Path(entry).name != _NONCE]
    if others:
        filesystem.rm(others, recursive=True)
    filesystem.rm(path, recursive=True)


def _filesystem(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """Return the filesystem of a URL or path, and the path in it.

    Raises:
        UserError: The extra `s3` is missing.
    """
    is_s3 = url.startswith("s3://")
    try:
        filesystem, path = fsspec.core.url_to_fs(url, **(_S3_OPTIONS if is_s3 else {}))
    except ImportError as error:
        raise UserError("S3 support is not installed: pip install 'babylon-tasks[s3]'") from error
    if is_s3:
        filesystem.retries = 2  # times botocore's three; the default of s3fs is five
    return filesystem, path


def _store_errors(url: str) -> tuple[type[Exception], ...]:
    """Return the errors that a failing store or a malformed manifest raises."""
    ours = (OSError, msgspec.DecodeError)
    if not url.startswith("s3://"):
        return ours
    from botocore.exceptions import BotoCoreError  # not an OSError

    return (*ours, BotoCoreError, ValueError)  # ValueError: AWS_ENDPOINT_URL is no URL


def _taken(target: str) -> UserError:
    """Return the error for an existing target: its token is new, so another database made it."""
    return UserError(
        f"the checkpoint {target} exists, and this database did not make it: "
        "set CHECKPOINT_STORE to another folder, or MODEL_NAME to a new name"
    )


def _unwritable(target: str, error: Exception) -> UserError:
    advice = "free space below CHECKPOINT_STORE or point it elsewhere"
    remote = "://" in target
    away = remote and not isinstance(error, FileNotFoundError | PermissionError | ValueError)
    return (StoreUnavailable if away else UserError)(
        f"cannot write the checkpoint {target}: {_why(error)}; {_S3_ADVICE if remote else advice}"
    )


def _why(error: Exception) -> str:
    """Return the reason in one line."""
    reason = error.strerror if isinstance(error, OSError) else None
    return " ".join(str(reason or error).split())


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
