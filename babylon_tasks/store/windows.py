"""Reads and writes `rl.windows`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from psycopg.rows import class_row

from babylon_tasks.records.windows import State, Window, WindowListing, WindowReport
from babylon_tasks.settings import Settings
from babylon_tasks.store.database import Connection, jsonb
from babylon_tasks.store.leases import Lease
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


def produce(connection: Connection, settings: Settings) -> list[str]:
    """Make a row for every window that is due; return the new and the reopened ones' ids."""
    rows = connection.execute(_SQL["produce_windows"], _due(settings)).fetchall()
    return [row["window_id"] for row in rows]


def listing(connection: Connection, settings: Settings) -> list[WindowListing]:
    """The windows of the look-back time that hold trajectories, newest first."""
    with connection.cursor(row_factory=class_row(WindowListing)) as cursor:
        return cursor.execute(_SQL["list_windows"], _due(settings)).fetchall()


def read(connection: Connection, model_name: str, window_ids: Sequence[str]) -> list[Window]:
    """The rows of the named windows, those that exist, by id."""
    with connection.cursor(row_factory=class_row(Window)) as cursor:
        return cursor.execute(
            _SQL["read_windows"], {"model_name": model_name, "window_ids": list(window_ids)}
        ).fetchall()


def count(connection: Connection, settings: Settings, window_id: str) -> Counts:
    """What counts of one window, whether it has a row or not."""
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


def enqueue(connection: Connection, model_name: str, window_id: str, counts: Counts) -> bool:
    """Make a named window due; False where it has a row already."""
    row = connection.execute(
        _SQL["enqueue_window"],
        {
            "model_name": model_name,
            "window_id": window_id,
            "agents": counts.agents,
            "trajectories": counts.trajectories,
        },
    ).fetchone()
    return row is not None


def claim_due(
    connection: Connection,
    settings: Settings,
    holder: str,
    limit: int,
    only: Sequence[str] | None,
    scorers: Iterable[str],
) -> dict[str, Lease]:
    """Lease up to `limit` windows that are due for one of these scorers; window id → lease."""
    rows = connection.execute(
        _SQL["claim_due"],
        {
            "model_name": settings.model_name,
            "holder": holder,
            "lease_seconds": settings.lease_seconds,
            "limit": limit,
            "only": None if only is None else list(only),
            "scoring": settings.scoring,
            "scorers": list(scorers),
        },
    ).fetchall()
    return {
        row["window_id"]: Lease(f"window/{settings.model_name}/{row['window_id']}", row["token"])
        for row in rows
    }


def wait_for_judge(
    connection: Connection, settings: Settings, scorers: Iterable[str], only: Sequence[str] | None
) -> bool:
    """Whether a window is due for one of these scorers, and nobody holds the model's judge."""
    row = connection.execute(
        _SQL["windows_wait_for_judge"],
        {
            "model_name": settings.model_name,
            "scoring": settings.scoring,
            "scorers": list(scorers),
            "only": None if only is None else list(only),
        },
    ).fetchone()
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


def mark_scored(
    connection: Connection,
    window: Window,
    *,
    model_name: str,
    lease: Lease,
    holder: str,
    scorer: str,
    state: State,
    reason: str | None,
    counts: Counts,
    text_bytes: int,
    funnel: Mapping[str, int],
) -> bool:
    """Move a due window on; False where the lease went or the row changed."""
    updated = connection.execute(
        _SQL["mark_scored"],
        {
            "model_name": model_name,
            "window_id": window.window_id,
            "score_rev": window.score_rev,
            "resource": lease.resource,
            "token": lease.token,
            "holder": holder,
            "scorer": scorer,
            "state": state,
            "reason": reason,
            "agents": counts.agents,
            "trajectories": counts.trajectories,
            "text_bytes": text_bytes,
            "funnel": jsonb(dict(funnel)),
        },
    ).rowcount
    return updated == 1


def mark_trained(
    connection: Connection,
    windows: Sequence[Window],
    *,
    model_name: str,
    step: int,
    holder: str,
    funnels: Mapping[str, Mapping[str, int]],
) -> bool:
    """End the step's windows as trained; False where any of them is not as it was claimed."""
    updated = connection.execute(
        _SQL["mark_trained"],
        {
            "model_name": model_name,
            "step": step,
            "holder": holder,
            "window_ids": [w.window_id for w in windows],
            "score_revs": [w.score_rev for w in windows],
            "funnels": [jsonb(dict(funnels.get(w.window_id, {}))) for w in windows],
        },
    ).rowcount
    return updated == len(windows)


def end(
    connection: Connection,
    window: Window,
    *,
    model_name: str,
    state: State,
    holder: str,
    reason: str | None = None,
    last_error: str | None = None,
    attempts: int | None = None,
    funnel: Mapping[str, int] | None = None,
) -> bool:
    """End a window as skipped or failed; False where it is no longer as it was read."""
    updated = connection.execute(
        _SQL["end_window"],
        {
            "model_name": model_name,
            "window_id": window.window_id,
            "from_state": window.state,
            "score_rev": window.score_rev,
            "state": state,
            "reason": reason,
            "last_error": last_error,
            "attempts": window.attempts if attempts is None else attempts,
            "funnel": jsonb(dict(funnel or {})),
            "holder": holder,
        },
    ).rowcount
    return updated == 1


def postpone(
    connection: Connection,
    window: Window,
    *,
    model_name: str,
    attempts: int,
    last_error: str,
    wait_seconds: float,
    holder: str,
) -> None:
    """Leave a window where it stands until `wait_seconds` have passed; nothing if it moved on."""
    connection.execute(
        _SQL["postpone_window"],
        {
            "model_name": model_name,
            "window_id": window.window_id,
            "from_state": window.state,
            "score_rev": window.score_rev,
            "attempts": attempts,
            "last_error": last_error,
            "wait_seconds": wait_seconds,
            "holder": holder,
        },
    )


def put_back(
    connection: Connection,
    window: Window,
    *,
    model_name: str,
    state: State,
    last_error: str,
    least_seconds: float,
    most_seconds: float,
    holder: str,
) -> None:
    """Let a scored window wait, as scored or due, for half as long as it has; no attempt counts."""
    connection.execute(
        _SQL["put_back_window"],
        {
            "model_name": model_name,
            "window_id": window.window_id,
            "score_rev": window.score_rev,
            "state": state,
            "last_error": last_error,
            "least_seconds": least_seconds,
            "most_seconds": most_seconds,
            "holder": holder,
        },
    )


def split(
    connection: Connection,
    windows: Sequence[Window],
    *,
    model_name: str,
    may_share: int,
    last_error: str,
    holder: str,
) -> None:
    """Let at most `may_share` of these windows, which failed together, meet in the next step."""
    connection.execute(
        _SQL["split_windows"],
        {
            "model_name": model_name,
            "window_ids": [w.window_id for w in windows],
            "may_share": may_share,
            "last_error": last_error,
            "holder": holder,
        },
    )


def retry(
    connection: Connection, model_name: str, window_ids: Sequence[str] | None
) -> dict[str, str | None]:
    """Make failed or skipped windows due again (None: all failed); window id → its request."""
    rows = connection.execute(
        _SQL["retry_windows"],
        {
            "model_name": model_name,
            "window_ids": None if window_ids is None else list(window_ids),
        },
    ).fetchall()
    return {row["window_id"]: row["batch_id"] for row in rows}


def score_otherwise(connection: Connection, model_name: str, window_id: str, scoring: str) -> bool:
    """Make a window due for this scorer, whatever became of it; False where it was trained."""
    updated = connection.execute(
        _SQL["score_otherwise"],
        {"model_name": model_name, "window_id": window_id, "scoring": scoring},
    ).rowcount
    return updated == 1


def rescore(connection: Connection, model_name: str, window: Window) -> None:
    """Make a scored window due again."""
    connection.execute(
        _SQL["rescore_window"],
        {
            "model_name": model_name,
            "window_id": window.window_id,
            "score_rev": window.score_rev,
        },
    )


def sweep(connection: Connection, model_name: str, limit: int) -> DueWork:
    """What is due and held by nobody, at most `limit` windows."""
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
    """What each window of the model gave, oldest first."""
    with connection.cursor(row_factory=class_row(WindowReport)) as cursor:
        return cursor.execute(_SQL["report_windows"], {"model_name": model_name}).fetchall()


def _due(settings: Settings) -> dict[str, object]:
    return {
        "model_name": settings.model_name,
        "lookback_hours": settings.lookback_hours,
        "settle_seconds": settings.settle_seconds,
        "min_agents": settings.min_agents_per_window,
        "excluded": settings.excluded_scenario_patterns(),
    }
