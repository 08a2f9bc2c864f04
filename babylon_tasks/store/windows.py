"""Reads `rl.windows`, and counts the trajectories of a window."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from psycopg.rows import class_row

from babylon_tasks.records.windows import State, Window, WindowListing, WindowReport
from babylon_tasks.settings import Settings
from babylon_tasks.store.database import Connection
from babylon_tasks.store.queries import load

_SQL = load("windows")


@dataclass(frozen=True, slots=True)
class Counts:
    """Numbers of agents and of trajectories that may train."""

    agents: int
    trajectories: int


@dataclass(frozen=True, slots=True)
class DueQuery:
    """Selects due windows: those whose scorer is one of `scorers`.

    `scoring` is the scorer of windows that name none. `only` has window ids; None means any.
    """

    model_name: str
    scoring: str
    scorers: list[str]
    only: list[str] | None


@dataclass(frozen=True, slots=True)
class Waiting:
    """A window that is due or scored: since when, for how many seconds, and why not sooner.

    `waits_until` is when its next attempt may begin, None if that is now.
    """

    window_id: str
    since: datetime
    seconds: float
    waits_until: datetime | None
    last_error: str | None


def listing(connection: Connection, model_name: str, settings: Settings) -> list[WindowListing]:
    """Return the windows of the last LOOKBACK_HOURS that have trajectories, newest first."""
    with connection.cursor(row_factory=class_row(WindowListing)) as cursor:
        return cursor.execute(
            _SQL["list_windows"],
            {
                **counted_rows(settings),
                "model_name": model_name,
                "lookback_hours": settings.lookback_hours,
                "settle_seconds": settings.settle_seconds,
                "min_agents": settings.min_agents_per_window,
            },
        ).fetchall()


def read(connection: Connection, model_name: str, window_ids: Sequence[str]) -> list[Window]:
    """Return the existing rows of these windows, in the order of their ids."""
    with connection.cursor(row_factory=class_row(Window)) as cursor:
        return cursor.execute(
            _SQL["read_windows"], {"model_name": model_name, "window_ids": list(window_ids)}
        ).fetchall()


def newest_scored(connection: Connection, model_name: str, limit: int) -> list[Window]:
    """Return the newest windows that are scored or trained, oldest first."""
    with connection.cursor(row_factory=class_row(Window)) as cursor:
        return cursor.execute(
            _SQL["newest_scored"], {"model_name": model_name, "limit": limit}
        ).fetchall()


def count(connection: Connection, settings: Settings, window_id: str) -> Counts:
    """Count a window's agents and trajectories, whether it has a row or not."""
    with connection.cursor(row_factory=class_row(Counts)) as cursor:
        row = cursor.execute(
            _SQL["count_window"],
            {**counted_rows(settings), "window_id": window_id},
        ).fetchone()
    assert row is not None
    return row


def count_excluded(connection: Connection, settings: Settings, window_id: str) -> dict[str, int]:
    """Count the window's trajectories, in all and by the reason for which some do not count."""
    row = connection.execute(
        _SQL["count_excluded"],
        {**counted_rows(settings), "window_id": window_id},
    ).fetchone()
    assert row is not None
    return dict(row)


def count_trajectories(connection: Connection) -> int:
    """Return the estimated number of all trajectories."""
    row = connection.execute(_SQL["count_trajectories"]).fetchone()
    assert row is not None
    return int(row["trajectories"])


def wait_for_judge(connection: Connection, query: DueQuery) -> bool:
    """Tell whether a window is due for one of these scorers while nobody holds the judge."""
    row = connection.execute(_SQL["windows_wait_for_judge"], asdict(query)).fetchone()
    assert row is not None
    return bool(row["waits"])


def scored(
    connection: Connection, model_name: str, only: Sequence[str] | None = None
) -> list[Window]:
    """Return scored windows in the order in which they should train."""
    with connection.cursor(row_factory=class_row(Window)) as cursor:
        return cursor.execute(
            _SQL["select_scored"],
            {"model_name": model_name, "only": None if only is None else list(only)},
        ).fetchall()


def last_error(connection: Connection, model_name: str) -> str | None:
    """Return the error for which a due or scored window waits, or None."""
    row = connection.execute(_SQL["last_error"], {"model_name": model_name}).fetchone()
    return str(row["last_error"]) if row else None


def count_states(connection: Connection, model_name: str) -> dict[State, int]:
    """Count a lineage's windows in each state."""
    return count_states_of(connection, [model_name])[model_name]


def count_states_of(connection: Connection, names: Sequence[str]) -> dict[str, dict[State, int]]:
    """Count the windows of these lineages in each state."""
    rows = connection.execute(_SQL["count_states"], {"names": list(names)}).fetchall()
    counts = {(row["model_name"], row["state"]): int(row["windows"]) for row in rows}
    return {name: {state: counts.get((name, state), 0) for state in State} for name in names}


def oldest_waiting(connection: Connection, model_name: str) -> dict[State, Waiting]:
    """Return the window that waits the longest in each of the states `due` and `scored`."""
    rows = connection.execute(_SQL["oldest_waiting"], {"model_name": model_name}).fetchall()
    return {State(row.pop("state")): Waiting(**row) for row in rows}


def story(connection: Connection, model_name: str, window_id: str) -> dict[str, Any] | None:
    """Return all facts about one window except its attempts; None if it has no row."""
    return connection.execute(
        _SQL["window_story"], {"model_name": model_name, "window_id": window_id}
    ).fetchone()


def report(connection: Connection, model_name: str) -> list[WindowReport]:
    """Return the results of the model's windows, oldest first."""
    with connection.cursor(row_factory=class_row(WindowReport)) as cursor:
        return cursor.execute(_SQL["report_windows"], {"model_name": model_name}).fetchall()


def counted_rows(settings: Settings) -> dict[str, object]:
    """Return the query parameters that decide which trajectories count."""
    return {
        "excluded": settings.excluded_scenario_patterns(),
        "agents": settings.agent_patterns() or None,
    }
