"""Reads and writes `rl.attempts`: every attempt at a window, and how it ended."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from psycopg.rows import class_row

from babylon_tasks.store.database import Connection
from babylon_tasks.store.queries import load

_SQL = load("attempts", "transitions")


# The error of an attempt at a step; release 0.1.0 writes it too, and SQL counts it.
REWRITTEN = "a trace was rewritten after it was scored"


class Ending(StrEnum):
    """How an attempt ended; only `error` and `lost` may count against a window."""

    DONE = "done"
    SKIPPED = "skipped"
    ERROR = "error"
    GIVEN_BACK = "given_back"
    LOST = "lost"


@dataclass(frozen=True, slots=True)
class Attempt:
    """A row of `rl.attempts`; `ended_at` is None while the attempt runs."""

    stage: str
    token: int
    holder: str
    started_at: datetime
    ended_at: datetime | None
    outcome: str | None
    error: str | None


@dataclass(frozen=True, slots=True)
class LostAttempt:
    """An attempt whose worker died; `state` is the window's state now."""

    window_id: str
    state: str
    batch_id: str | None
    last_error: str


@dataclass(frozen=True, slots=True)
class RecentAttempt:
    """An attempt that has ended, of one window alone."""

    model_name: str
    window_id: str
    token: int
    holder: str
    outcome: str
    error: str | None


@dataclass(frozen=True, slots=True)
class MachineAtFault:
    """A machine that stopped working at a stage, and why."""

    machine: str
    stage: str
    ended_at: datetime
    error: str


# What an attempt says that was taken for lost.
LIVES = "lost while Postgres was away from its worker, which lives: it does not count"
# What attempts and windows say that a machine has given back because it is at fault itself.
AT_FAULT = "this machine is at fault, not the window: "


def open_step(
    connection: Connection, model_name: str, holder: str, token: int, window_ids: Sequence[str]
) -> None:
    """Begin an attempt at a step over these windows; a claim to score begins its own attempts."""
    connection.execute(
        _SQL["open_attempts"],
        {
            "model_name": model_name,
            "holder": holder,
            "token": token,
            "window_ids": list(window_ids),
        },
    )


def end(
    connection: Connection,
    model_name: str,
    tokens: Sequence[int],
    outcome: Ending,
    error: str | None = None,
    window_ids: Sequence[str] | None = None,
) -> None:
    """End the open attempts under these tokens, of all their windows or of `window_ids`."""
    connection.execute(
        _SQL["end_attempts"],
        {
            "model_name": model_name,
            "tokens": list(tokens),
            "outcome": outcome,
            "error": error,
            "window_ids": None if window_ids is None else list(window_ids),
        },
    )


def reap_scores(connection: Connection, model_name: str, max_attempts: int) -> list[LostAttempt]:
    """End the scoring attempts whose lease ran out, and count them against their windows."""
    return _reap(connection, "reap_scores", model_name, max_attempts)


def reap_steps(connection: Connection, model_name: str, max_attempts: int) -> list[LostAttempt]:
    """End every open attempt at a step, and count it; only for the holder of the model's lease."""
    return _reap(connection, "reap_steps", model_name, max_attempts)


def take_back(
    connection: Connection,
    model_name: str,
    tokens: Sequence[int],
    outcome: Ending,
    why: str,
    wait_seconds: float = 0.0,
) -> list[str]:
    """Uncount the attempts under these tokens that ended so, as `lost` or `error`.

    A window that failed by them is as it was before, and waits so long. Returns the batch ids of
    their requests.
    """
    rows = connection.execute(
        _SQL["take_back_attempts"],
        {
            "model_name": model_name,
            "tokens": list(tokens),
            "outcome": outcome,
            "error": why,
            "wait_seconds": wait_seconds,
        },
    ).fetchall()
    return [row["batch_id"] for row in rows if row["batch_id"]]


def recent(connection: Connection, stage: str, machine: str) -> list[RecentAttempt]:
    """Return the newest attempts at a stage of the holders whose names begin so, newest first.

    Those that failed together with others are left out, and so are those that say nothing about the
    machine.
    """
    with connection.cursor(row_factory=class_row(RecentAttempt)) as cursor:
        return cursor.execute(
            _SQL["recent_attempts"], {"stage": stage, "machine": machine, "at_fault": AT_FAULT}
        ).fetchall()


def machines_at_fault(connection: Connection) -> list[MachineAtFault]:
    """Return the machines that stopped, and have not succeeded since."""
    with connection.cursor(row_factory=class_row(MachineAtFault)) as cursor:
        return cursor.execute(_SQL["machines_at_fault"], {"at_fault": AT_FAULT}).fetchall()


def read(connection: Connection, model_name: str, window_id: str) -> list[Attempt]:
    """Return all attempts at one window, oldest first."""
    with connection.cursor(row_factory=class_row(Attempt)) as cursor:
        return cursor.execute(
            _SQL["read_attempts"], {"model_name": model_name, "window_id": window_id}
        ).fetchall()


def _reap(
    connection: Connection, query: str, model_name: str, max_attempts: int
) -> list[LostAttempt]:
    with connection.cursor(row_factory=class_row(LostAttempt)) as cursor:
        return cursor.execute(
            _SQL[query], {"model_name": model_name, "max_attempts": max_attempts}
        ).fetchall()
