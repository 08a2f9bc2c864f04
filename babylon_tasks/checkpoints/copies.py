"""Local copies of remote checkpoints, in this user's folder below TMPDIR.

A copy is fetched into a folder of its own and renamed when it is whole, so whoever finds one may
read it: threads and processes of this machine share them. Its manifest marks it, since a folder
that release 0.1.0 made may be in the making, or hold what two wrote at once.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import fsspec
import msgspec
from filelock import FileLock, Timeout

from babylon_tasks.checkpoints.manifest import (
    CHUNK_BYTES,
    MANIFEST,
    Manifest,
    copy,
    require_content,
    require_sizes,
)
from babylon_tasks.errors import CheckpointUnreadable
from babylon_tasks.scratch import own_folder, scratch

log = logging.getLogger(__name__)

_KEPT = 4  # of a model's steps, beside those in use
# Since a copy was last opened or touched: who has it loaded touches it once a second.
_IN_USE_SECONDS = 600.0
_WAIT_SECONDS = 120.0  # for another fetch of the same copy; it may be suspended
_LOOK_SECONDS = 0.1


def local_copy(
    filesystem: fsspec.AbstractFileSystem,
    path: str,
    url: str,
    manifest: Manifest,
    on_chunk: Callable[[], None],
) -> Path:
    """Return the folder with a whole copy of a remote checkpoint; fetch it if there is none.

    Raises:
        CheckpointUnreadable: A file was cut short or is damaged.
        OSError: The store or this machine's folder fails; and as the filesystem raises.
    """
    folder = own_folder() / "checkpoints" / url.replace("://", "/").strip("/")
    if _is_whole(folder, manifest):
        return folder
    with _one_at_a_time(url, on_chunk), scratch("fetching") as fetching:
        if _is_whole(folder, manifest):
            return folder
        new = fetching / "copy"
        _fetch(filesystem, path, url, manifest, new, on_chunk)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):
            folder.rename(fetching / "old")  # of release 0.1.0, or damaged since
        with suppress(OSError):  # who did not wait for us was faster
            new.rename(folder)
    require_sizes(folder, manifest, url)
    _forget_old(folder.parent)
    return folder


def _is_whole(folder: Path, manifest: Manifest) -> bool:
    try:
        marked = (folder / MANIFEST).read_bytes()
        require_sizes(folder, manifest, "")
        os.utime(folder)  # it is in use now
    except (OSError, CheckpointUnreadable):
        return False
    return marked == msgspec.json.encode(manifest)


def _fetch(
    filesystem: fsspec.AbstractFileSystem,
    path: str,
    url: str,
    manifest: Manifest,
    folder: Path,
    on_chunk: Callable[[], None],
) -> None:
    folder.mkdir()
    for name in manifest.files:
        with (
            filesystem.open(f"{path}/{name}", "rb", block_size=CHUNK_BYTES) as read,
            (folder / name).open("wb") as to,
        ):
            sha256 = copy(read, to, on_chunk)
        require_sizes(folder, Manifest({name: manifest.files[name]}), url)
        require_content(name, sha256, manifest, url)
    (folder / MANIFEST).write_bytes(msgspec.json.encode(manifest))


@contextmanager
def _one_at_a_time(url: str, on_wait: Callable[[], None]) -> Iterator[None]:
    """Wait while another thread or process fetches the same; not for ever: each has its own."""
    locks = own_folder() / "fetching"
    locks.mkdir(mode=0o700, exist_ok=True)
    lock = FileLock(locks / f"{hashlib.sha256(url.encode()).hexdigest()[:32]}.lock")
    ends_at = time.monotonic() + _WAIT_SECONDS
    while time.monotonic() < ends_at:
        try:
            lock.acquire(timeout=0)
            break
        except Timeout:
            on_wait()
            time.sleep(_LOOK_SECONDS)
    try:
        yield
    finally:
        lock.release()


def _forget_old(model: Path) -> None:
    """Delete the oldest copies; not what a trainer or an endpoint may be reading."""
    touched: dict[Path, float] = {}
    for copy_ in model.iterdir():
        with suppress(OSError):  # another process has deleted it
            touched[copy_] = copy_.stat().st_mtime
    in_use_since = time.time() - _IN_USE_SECONDS
    for old in sorted(touched, key=touched.__getitem__)[:-_KEPT]:
        if touched[old] < in_use_since:
            shutil.rmtree(old, ignore_errors=True)
