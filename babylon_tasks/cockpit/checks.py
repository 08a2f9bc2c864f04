"""What `babylon doctor` looks at: the servers, what waits on them, and the data.

Each check returns what it has seen, or raises why that is not well. What a check of the machine
needs of the workers (`cockpit.machine`) is passed in.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from babylon_tasks.cockpit.status import queue_lengths
from babylon_tasks.cockpit.story import no_windows
from babylon_tasks.errors import BabylonError, UserError
from babylon_tasks.settings import QUEUES, Settings
from babylon_tasks.store import canaries, leases
from babylon_tasks.store import windows as window_rows
from babylon_tasks.store.database import Database
from babylon_tasks.store.migrate import pending, require_applied

Check = Callable[[Settings], str]

_PATIENCE_SECONDS = 20.0  # beyond three intervals, before a silent queue is called stuck


@dataclass(frozen=True, slots=True)
class Finding:
    """How one check went, and what it has seen, in one line."""

    check: str
    ok: bool
    detail: str


def run(name: str, check: Check, settings: Settings) -> Finding:
    """Run one check; whatever it raises is its finding."""
    try:
        return Finding(name, True, check(settings))
    except BabylonError as error:
        return Finding(name, False, str(error))
    except Exception as error:  # noqa: BLE001 - a table with a NO says more than no table
        return Finding(name, False, f"{type(error).__name__}: {' '.join(str(error).split())}")


def postgres(settings: Settings) -> str:
    """Ask Postgres for its version.

    Raises:
        ServerUnavailable: It does not answer.
    """
    database = Database(settings.postgres())
    with database.transaction() as tx:
        row = tx.execute("SHOW server_version").fetchone()
    assert row is not None
    return f"{database.name}, version {row['server_version']}"


def migrations(settings: Settings) -> str:
    """Compare the migrations with those that were applied.

    Raises:
        UserError: Some were not.
    """
    missing = pending(settings.postgres())
    if missing:
        raise UserError(f"not applied: {', '.join(missing)}; run `babylon migrate`")
    return "all applied"


def redis(settings: Settings) -> str:
    """Count what waits in Redis.

    Raises:
        ServerUnavailable: It does not answer.
    """
    lengths = queue_lengths(settings)
    return ", ".join(f"{length} waiting on {queue}" for queue, length in lengths.items())


def queues(settings: Settings) -> str:
    """Find where a message gets stuck between beat and Postgres.

    Raises:
        UserError: Nothing has come through a queue for too long; the message says who is missing.
    """
    limit_seconds = 3 * settings.sweep_seconds + _PATIENCE_SECONDS
    waiting = queue_lengths(settings)
    with Database(settings.postgres()).transaction() as tx:
        answered = canaries.read(tx, settings.model_name)
        held = leases.live(tx, settings.model_name)
    seen = []
    for queue, resource in zip(QUEUES, ("window/", "model/"), strict=True):
        canary = answered.get(queue)
        if canary is not None and canary.age_seconds <= limit_seconds:
            seen.append(f"{queue}: {canary.age_seconds:.0f} s ago, {canary.holder}")
            continue
        age = "never" if canary is None else f"{canary.age_seconds:.0f} s ago"
        at_work = next((lease for lease in held if lease.resource.startswith(resource)), None)
        if at_work:
            seen.append(f"{queue}: {age}, {at_work.holder} is at work")
        elif waiting[queue]:
            raise UserError(
                f"{waiting[queue]} messages wait on {queue} and nobody takes them (the last one "
                f"{age}): is `celery -A babylon_tasks worker -Q {queue}` running?"
            )
        elif canary is None:
            seen.append(f"{queue}: no message yet, start beat and a worker")
        else:
            raise UserError(
                f"nothing comes through {queue} (the last message {age}) and nothing waits there: "
                "is `celery -A babylon_tasks beat` running?"
            )
    return "; ".join(seen)


def windows(settings: Settings) -> str:
    """Count the windows of the last LOOKBACK_HOURS and those that a step could take.

    Raises:
        UserError: There is none to train and none was trained; the message says why.
    """
    database = Database(settings.postgres())
    require_applied(settings.postgres())
    with database.transaction() as tx:
        listed = window_rows.listing(tx, settings.model_name, settings)
    ready = [window for window in listed if window.can_train]
    if not ready and all(window.state != "trained" for window in listed):
        raise no_windows(database, settings, listed)
    return f"{len(listed)} in the last {settings.lookback_hours} hours, {len(ready)} to train"
