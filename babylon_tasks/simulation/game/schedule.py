"""Which hours of the past are played next in a database, and whether it may be played in."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from babylon_tasks.errors import UserError
from babylon_tasks.records.windows import due_at, parse_window_id, window_id_at
from babylon_tasks.simulation.agents import agent
from babylon_tasks.store.database import Connection, now
from babylon_tasks.store.queries import load

MOST_AGENTS = 10_000  # whose ids we know again
_HOUR = timedelta(hours=1)
_SQL = load("demo")


@dataclass(frozen=True, slots=True)
class Schedule:
    """The hours to play, oldest first: the number that each has in the game, and its window's id.

    The game's clock starts with the first hour that is played in a database. `passed_over` has
    those that were asked for, and are played already or lie before that hour.
    """

    hours: dict[int, str]
    passed_over: list[str]


def read_schedule(tx: Connection, hours: int, settle_seconds: int) -> Schedule:
    """Return which of the last so many hours are to be played; the newest has settled."""
    newest = window_id_at(now(tx) - _HOUR - timedelta(seconds=settle_seconds))
    starts = [_start(newest) - _HOUR * back for back in reversed(range(hours))]
    rows = tx.execute(_SQL["list_simulated"], {"ours": _our_agents()}).fetchall()
    played = [str(row["window_id"]) for row in rows]
    first = min([_start(window_id) for window_id in played] or starts[:1])
    schedule = Schedule({}, [])
    for start in starts:
        window_id = window_id_at(start)
        if window_id in played or start < first:
            schedule.passed_over.append(window_id)
        else:
            schedule.hours[(start - first) // _HOUR] = window_id
    return schedule


def next_at(tx: Connection, settle_seconds: int) -> datetime:
    """Return when the hour after the newest one can be played, in UTC."""
    newest = now(tx) - _HOUR - timedelta(seconds=settle_seconds)
    return due_at(window_id_at(newest + _HOUR), settle_seconds)


def require_ours(tx: Connection) -> None:
    """Refuse a database that has trajectories of agents which are not simulated.

    Raises:
        UserError: It has.
    """
    row = tx.execute(_SQL["find_stranger"], {"ours": _our_agents()}).fetchone()
    if row is not None:
        raise UserError(
            f"the database has trajectories of the app's agents ({row['agent_id']} and others): "
            "simulated ones would be trained with them; if that is meant, say --into-app-data"
        )


def _our_agents() -> list[str]:
    return [agent(number, 0).id for number in range(MOST_AGENTS)]


def _start(window_id: str) -> datetime:
    return parse_window_id(window_id)
