"""Which hours of the past are played next in a database, and whether it may be played in."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from babylon_tasks.errors import UserError
from babylon_tasks.records.windows import State, due_at, parse_window_id, window_id_at
from babylon_tasks.simulation.agents import agent
from babylon_tasks.store import windows as window_rows
from babylon_tasks.store.database import Connection, now
from babylon_tasks.store.queries import load

MOST_AGENTS = 10_000  # whose ids we know again
ONCE = "an hour is played once"
TOO_LATE = "its window is past `due`: what is played now would be late, and never trained"
_OTHER_CLOCK = "by now the game's clock starts with another hour: repeat the command"
_HOUR = timedelta(hours=1)
_SQL = load("demo")


@dataclass(frozen=True, slots=True)
class Schedule:
    """The hours to play, oldest first: the number that each has in the game, and its window's id.

    The game's clock starts with the first hour that is played in a database. `passed_over` has
    the windows of the other hours that were asked for, and why they are not played.
    """

    hours: dict[int, str]
    passed_over: dict[str, str]


def read_schedule(tx: Connection, model_name: str, hours: int, settle_seconds: int) -> Schedule:
    """Return which of the last so many hours are to be played; the newest has settled."""
    newest = window_id_at(now(tx) - _HOUR - timedelta(seconds=settle_seconds))
    starts = [_start(newest) - _HOUR * back for back in reversed(range(hours))]
    played = _played(tx)
    too_late = _past_due(tx, model_name, [window_id_at(start) for start in starts])
    open_to_us = [start for start in starts if window_id_at(start) not in too_late]
    first = min([_start(window_id) for window_id in played] or open_to_us[:1] or starts)
    schedule = Schedule({}, {})
    for start in starts:
        window_id = window_id_at(start)
        if window_id in too_late and window_id not in played:
            schedule.passed_over[window_id] = TOO_LATE
        elif window_id in played or start < first:
            schedule.passed_over[window_id] = ONCE
        else:
            schedule.hours[(start - first) // _HOUR] = window_id
    return schedule


def why_not(tx: Connection, model_name: str, number: int, window_id: str) -> str | None:
    """Return why an hour of a schedule must not be written any more, or None if it may be.

    After `hold`, the answer stays true until the transaction ends.
    """
    played = _played(tx)
    if window_id in played:
        return ONCE
    if _past_due(tx, model_name, [window_id]):
        return TOO_LATE
    start = _start(window_id)
    first = min([_start(other) for other in played] or [start])
    return None if first + _HOUR * number == start else _OTHER_CLOCK


def hold(tx: Connection) -> None:
    """Wait until no other transaction writes an hour; until this one ends, none will.

    It must come before whatever the transaction reads.
    """
    tx.execute(_SQL["lock_simulated"])


def next_at(tx: Connection, settle_seconds: int) -> datetime:
    """Return when the hour after the newest one can be played, in UTC."""
    newest = now(tx) - _HOUR - timedelta(seconds=settle_seconds)
    return due_at(window_id_at(newest + _HOUR), settle_seconds)


def require_ours(tx: Connection) -> None:
    """Refuse a database that has users, or trajectories of agents, which are not simulated.

    Raises:
        UserError: It has.
    """
    ours = {"ours": _our_agents()}
    row = tx.execute(_SQL["find_stranger"], ours).fetchone()
    if row is not None:
        raise UserError(
            f"the database has trajectories of the app's agents ({row['agent_id']} and others): "
            "simulated ones would be trained with them; if that is meant, say --into-app-data"
        )
    row = tx.execute(_SQL["find_user"], ours).fetchone()
    if row is not None:
        raise UserError(
            f"the database has users of the app ({row['id']} and others): simulated ones would "
            "stand among them; if that is meant, say --into-app-data"
        )


def _played(tx: Connection) -> list[str]:
    """Return the windows in which our agents have trajectories, oldest first."""
    rows = tx.execute(_SQL["list_simulated"], {"ours": _our_agents()}).fetchall()
    return [str(row["window_id"]) for row in rows]


def _past_due(tx: Connection, model_name: str, window_ids: list[str]) -> set[str]:
    """Return which of these windows take no more trajectories: scored, or ended."""
    found = window_rows.read(tx, model_name, window_ids)
    return {window.window_id for window in found if window.state != State.DUE}


def _our_agents() -> list[str]:
    return [agent(number, 0).id for number in range(MOST_AGENTS)]


def _start(window_id: str) -> datetime:
    return parse_window_id(window_id)
