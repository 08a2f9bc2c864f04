"""Folders for temporary files: private, and removed by the next process if theirs was killed.

A process locks the folder that it works in, and the kernel gives the lock back however it ends. So
a folder that can be locked is a dead process's. Names and ages would not say so: the pid of another
container means nothing here.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

log = logging.getLogger(__name__)

_KINDS = ("exams", "steps", "replays", "fetching")
_LOCK_SECONDS = 5.0  # a process that is suspended just then must not hold up the others
# What release 0.1.0 left, which locked nothing: its steps take hours at most.
_OLD_NAMES = ("babylon-step-*", "babylon-replay-*")
_OLD_SECONDS = 86_400.0


def own_folder() -> Path:
    """Return this user's folder below TMPDIR, which nobody else may look into.

    Raises:
        OSError: It cannot be made, or is another user's.
    """
    folder = Path(tempfile.gettempdir()) / f"babylon-tasks-{os.getuid()}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    status = folder.lstat()
    if status.st_uid != os.getuid() or not stat.S_ISDIR(status.st_mode):
        raise PermissionError(
            errno.EPERM, f"{folder} belongs to another user, or is no folder: set TMPDIR to another"
        )
    if status.st_mode & 0o077:
        folder.chmod(0o700)
    return folder


@contextmanager
def scratch(kind: str) -> Iterator[Path]:
    """Make a folder below `kind`, one of `_KINDS`; it goes with the block, or with the next call.

    What dead processes left there goes first.

    Raises:
        OSError: It cannot be made.
    """
    assert kind in _KINDS
    parent = own_folder() / kind
    parent.mkdir(mode=0o700, exist_ok=True)
    with _locked(parent) as alone:
        if alone:
            _remove_dead(parent)
        folder = Path(tempfile.mkdtemp(dir=parent))
        held = _try_lock(folder)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if held is not None:
            os.close(held)


def remove_left_behind() -> None:
    """Remove what killed processes of this user left: it holds recorded prompts.

    Raises:
        OSError: As `own_folder` does.
    """
    ours = own_folder()
    for kind in _KINDS:
        parent = ours / kind
        if parent.is_dir():
            with _locked(parent) as alone:
                if alone:
                    _remove_dead(parent)
    for pattern in _OLD_NAMES:
        for folder in Path(tempfile.gettempdir()).glob(pattern):
            if _is_ours(folder) and time.time() - _newest(folder) > _OLD_SECONDS:
                _remove(folder)


def _remove_dead(parent: Path) -> None:
    for folder in parent.iterdir():
        if not _is_ours(folder):
            continue
        held = _try_lock(folder)
        if held is not None:
            _remove(folder)
            os.close(held)


def _remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    log.info("removed %s, which a process that was killed has left", folder)


def _is_ours(folder: Path) -> bool:
    """Tell whether it is a folder, not a link to one, and this user's."""
    with contextlib.suppress(FileNotFoundError):
        status = folder.lstat()
        return stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid()
    return False


def _newest(folder: Path) -> float:
    """Return when something in a folder was last written, in seconds since 1970."""
    with contextlib.suppress(FileNotFoundError):
        return max(each.lstat().st_mtime for each in (folder, *folder.rglob("*")))
    return time.time()


@contextmanager
def _locked(parent: Path) -> Iterator[bool]:
    """Keep others from making or removing folders; yield False where that takes too long."""
    ends_at = time.monotonic() + _LOCK_SECONDS
    while (held := _try_lock(parent)) is None and time.monotonic() < ends_at:
        time.sleep(0.05)
    try:
        yield held is not None
    finally:
        if held is not None:
            os.close(held)


def _try_lock(folder: Path) -> int | None:
    """Lock a folder, and return its descriptor; None if another process has it, or no lock works.

    Closing the descriptor, or the end of the process, ends the lock.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor
