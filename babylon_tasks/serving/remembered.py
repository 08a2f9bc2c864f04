"""Bounds what the endpoint remembers: CAPTURE_DAYS and CAPTURE_ROWS."""

from __future__ import annotations

import time

from babylon_tasks.settings import Settings
from babylon_tasks.store import calls
from babylon_tasks.store.database import Database

_AT_ONCE = 10_000  # rows in one transaction
_SECONDS = 5.0  # a sweep has more to do


def forget_old_calls(database: Database, settings: Settings) -> None:
    """Delete the answers that are beyond the bounds, oldest first, for a few seconds at most.

    It may run any number of times at once: one of them does it.

    Raises:
        ServerUnavailable: Postgres does not answer.
    """
    ends_at = time.monotonic() + _SECONDS
    more = True
    while more and time.monotonic() < ends_at:
        with database.transaction() as tx:
            more = calls.forget_some(tx, settings.capture_days, settings.capture_rows, _AT_ONCE)
