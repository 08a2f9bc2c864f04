"""A folder for one process alone, and checks of the servers that it starts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout
from psycopg import OperationalError

from babylon_tasks.errors import ServerUnavailable, UserError

Check = Callable[[], None]  # raises ServerUnavailable once its server has ended


@contextmanager
def alone(folder: Path, what: str) -> Iterator[None]:
    """Hold a folder for this process alone; `what` names the process in the error.

    Two processes would share the folder's servers, and the first to end would stop them.

    Raises:
        UserError: Another process holds the folder, or it cannot be written to.
    """
    lock = FileLock(folder / "lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:  # an OSError as well
        raise UserError(
            f"another {what} is running in this folder: wait for it or end it"
        ) from None
    except OSError as error:
        raise UserError(
            f"cannot write to {folder.absolute()} ({error.strerror}): change to a folder of yours"
        ) from None
    try:
        yield
    finally:
        lock.release()


@contextmanager
def checked(check: Check, checks: list[Check] | None) -> Iterator[None]:
    """Add the server's check to `checks`, and run it if the body fails.

    Raises:
        ServerUnavailable: The body failed, and the server has ended.
    """
    if checks is not None:
        checks.append(check)
    try:
        yield
    except (UserError, OperationalError):
        check()
        raise


def ended(name: str, log: Path) -> ServerUnavailable:
    """Make the error for an embedded server that ended by itself."""
    return ServerUnavailable(
        f"the embedded {name} ended: see {log}; start what you ran again, it goes on from there"
    )
