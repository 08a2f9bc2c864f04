"""What to do when Postgres' clock has gone back: nothing may wait for a time that was."""

from __future__ import annotations

import logging

from babylon_tasks.store import transitions
from babylon_tasks.store.database import Connection
from babylon_tasks.store.queries import load

log = logging.getLogger(__name__)

_SQL = load("clock")


def obey(connection: Connection, lease_seconds: float) -> int:
    """End the waits that began in the future, and shorten the leases that last too long.

    A dead worker's lease then lasts LEASE_SECONDS, as after any death; a living one's is renewed.
    Returns the number of windows and leases that were changed.
    """
    windows = transitions.end_waits(connection)
    leases = connection.execute(_SQL["shorten_leases"], {"lease_seconds": lease_seconds}).rowcount
    connection.execute(_SQL["put_back_turns"])
    connection.execute(_SQL["put_back_canaries"])
    if windows or leases:
        log.warning(
            "Postgres' clock went back: %d windows that waited are due, %d leases are shortened",
            windows,
            leases,
        )
    return windows + leases
