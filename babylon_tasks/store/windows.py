"""Reads `rl.windows`, and counts what would become one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from psycopg.rows import class_row

from babylon_tasks.records.windows import State, Window, WindowListing, WindowReport
from babylon_tasks.settings import Settings
from babylon_tasks.store.database import Connection
from babylon_tasks.store.queries import load

_SQL = load("windows")


@dataclass(frozen=True, slots=True)
class DueWork:
    """What is due and held by nobody: windows to score, a step to train, a step to publish."""

    due: list[str]
    train: bool
    publish: bool


@dataclass(frozen=True, slots=True)
class Counts:
    """Agents and trajectories that count."""

    agents: int
    trajectories: int


@dataclass(frozen=True, slots=True)
class DueQuery:
    """Which due windows are meant: those that one of `scorers` is to score.

    `scoring` is for windows that name no scorer themselves; `only` names windows, None means any.
    """

    model_name: str
    scoring: str
    scorers: list[str]
    only: list[str] | None


def listing(connection: Connection, model_name: str, settings: Settings) -> list[WindowListing]:
    """Return the windows of the look-back time that hold trajectories, newest first."""
    with connection.cursor(row_factory=class_row(WindowListing)) as cursor:
        return cursor.execute(_SQL["list_windows"], due_filter(model_name, settings)).fetchall()


def read(connection: Connection, model_name: str, window_ids: Sequence[str]) -> list[Window]:
    """Return the rows of the named windows, those that exist, by id."""
    with connection.cursor(row_factory=class_row(Window)) as cursor:
        return cursor.execute(
            _SQL["read_windows"], {"model_name": model_name, "window_ids": list(window_ids)}
        ).fetchall()


def count(connection: Connection, settings: Settings, window_id: str) -> Counts:
    """Return what counts of one window, whether it has a row or not."""
    with connection.cursor(row_factory=class_row(Counts)) as cursor:
        row = cursor.execute(
            _SQL["count_window"],
            {"window_id": window_id, "excluded": settings.excluded_scenario_patterns()},
        ).fetchone()
    assert row is not None
    return row


def count_excluded(connection: Connection, settings: Settings, window_id: str) -> dict[str, int]:
    """Rows of the window by the reason they do not count, and all of them."""
    row = connection.execute(
        _SQL["count_excluded"],
        {"window_id": window_id, "excluded": settings.excluded_scenario_patterns()},
    ).fetchone()
    assert row is not None
    return dict(row)


def count_trajectories(connection: Connection) -> int:
    """About how many trajectories there are in all."""
    row = connection.execute(_SQL["count_trajectories"]).fetchone()
    assert row is not None
    return int(row["trajectories"])


def wait_for_judge(connection: Connection, query: DueQuery) -> bool:
    """Tell whether a window is due for one of these scorers, and nobody holds the judge."""
    row = connection.execute(_SQL["windows_wait_for_judge"], asdict(query)).fetchone()
    assert row is not None
    return bool(row["found"])


def scored(
    connection: Connection, model_name: str, only: Sequence[str] | None = None
) -> list[Window]:
    """Scored windows in the order in which they should train."""
    with connection.cursor(row_factory=class_row(Window)) as cursor:
        return cursor.execute(
            _SQL["select_scored"],
            {"model_name": model_name, "only": None if only is None else list(only)},
        ).fetchall()


def sweep(connection: Connection, model_name: str, limit: int) -> DueWork:
    """Return what is due and held by nobody, at most `limit` windows."""
    with connection.cursor(row_factory=class_row(DueWork)) as cursor:
        row = cursor.execute(_SQL["sweep"], {"model_name": model_name, "limit": limit}).fetchone()
    assert row is not None
    return row


def last_error(connection: Connection, model_name: str) -> str | None:
    """Why a window that is due or scored waits, where one does for an error."""
    row = connection.execute(_SQL["last_error"], {"model_name": model_name}).fetchone()
    return str(row["last_error"]) if row else None


def count_states(connection: Connection, model_name: str) -> dict[State, int]:
    """How many windows stand in each state."""
    rows = connection.execute(_SQL["count_states"], {"model_name": model_name}).fetchall()
    found = {State(row["state"]): int(row["windows"]) for row in rows}
    return {state: found.get(state, 0) for state in State}


def story(connection: Connection, model_name: str, window_id: str) -> dict[str, Any] | None:
    """All there is to say about one window but its attempts; None where it has no row."""
    return connection.execute(
        _SQL["window_story"], {"model_name": model_name, "window_id": window_id}
    ).fetchone()


def report(connection: Connection, model_name: str) -> list[WindowReport]:
    """Return what each window of the model gave, oldest first."""
    with connection.cursor(row_factory=class_row(WindowReport)) as cursor:
        return cursor.execute(_SQL["report_windows"], {"model_name": model_name}).fetchall()


def due_filter(model_name: str, settings: Settings) -> dict[str, object]:
    """Return what decides, by setting, which hours are windows."""
    return {
        "model_name": model_name,
        "lookback_hours": settings.lookback_hours,
        "settle_seconds": settings.settle_seconds,
        "min_agents": settings.min_agents_per_window,
        "excluded": settings.excluded_scenario_patterns(),
    }
