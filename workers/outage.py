"""An outage of Postgres or Redis, as all pool processes of a worker know it."""

from __future__ import annotations

import multiprocessing
from contextlib import suppress

# 0 in an outage. Made in the main process, of which the pool processes are forks.
_answering = multiprocessing.get_context("fork").BoundedSemaphore(1)


def note() -> bool:
    """Note that a server does not answer; return whether that was known."""
    return not _answering.acquire(block=False)


def note_end() -> None:
    """Note that the servers answer."""
    with suppress(ValueError):  # they did
        _answering.release()
