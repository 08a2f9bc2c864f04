"""Child processes that end with us, and what is asked of the servers among them."""

from __future__ import annotations

import ctypes
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout
from psycopg import OperationalError

from babylon_tasks.errors import ServerUnavailable, UserError

Check = Callable[[], None]  # raises ServerUnavailable once its server has ended

_PR_SET_PDEATHSIG = 1


def end_with_parent(number: signal.Signals = signal.SIGTERM) -> None:
    """In a child, before exec: be sent this signal when the parent ends, however it ends (Linux).

    The kernel means the thread that started the child, so start it from one that lives as long.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if hasattr(libc, "prctl"):
        libc.prctl(_PR_SET_PDEATHSIG, number)


@contextmanager
def alone(folder: Path, what: str) -> Iterator[None]:
    """Hold a folder: two processes would share its servers, and the first to end stop them.

    Raises:
        UserError: Another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / "lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(
            f"another {what} is running in this folder: wait for it or end it"
        ) from None
    try:
        yield
    finally:
        lock.release()


@contextmanager
def checked(check: Check, checks: list[Check] | None) -> Iterator[None]:
    """Add the server's check to `checks`; where the body fails because it ended, say that instead.

    Raises:
        ServerUnavailable: The server ended, and the body failed for that.
    """
    if checks is not None:
        checks.append(check)
    try:
        yield
    except (UserError, OperationalError):
        check()
        raise


def ended(name: str, log: Path) -> ServerUnavailable:
    """The error for a server of ours that ended by itself."""
    return ServerUnavailable(
        f"the embedded {name} ended: see {log}; start what you ran again, it goes on from there"
    )
