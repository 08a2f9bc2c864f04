"""Writes `rl.windows`: every move of a window from one state to another.

Each statement repeats in its WHERE clause what the caller has read, so that a row that has moved on
since is left as it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

from babylon_tasks.records.windows import State, Window
from babylon_tasks.settings import Settings
from babylon_tasks.store.database import Connection, jsonb
from babylon_tasks.store.leases import Claim, Lease
from babylon_tasks.store.queries import load
from babylon_tasks.store.windows import Counts, DueQuery, due_filter

_SQL = load("transitions")


@dataclass(frozen=True, slots=True)
class Scored:
    """What scoring a window came to: `state` is scored or skipped, with the `reason` to skip it."""

    scorer: str
    state: State
    reason: str | None
    counts: Counts
    text_bytes: int
    funnel: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class WindowEnd:
    """How a window ends without being trained: `state` is skipped or failed.

    `attempts` is None where they stay as they are; `funnel` is added to the window's own.
    """

    state: State
    reason: str | None = None
    last_error: str | None = None
    attempts: int | None = None
    funnel: Mapping[str, int] = field(default_factory=dict)


def produce(connection: Connection, model_name: str, settings: Settings) -> list[str]:
    """Make a row for every window that is due; return the new and the reopened ones' ids."""
    rows = connection.execute(_SQL["produce_windows"], due_filter(model_name, settings)).fetchall()
    return [row["window_id"] for row in rows]


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
    connection: Connection, query: DueQuery, holder: str, limit: int, lease_seconds: float
) -> dict[str, Lease]:
    """Lease up to `limit` due windows and begin an attempt at each; window id → lease."""
    rows = connection.execute(
        _SQL["claim_due"],
        {
            **asdict(query),
            "holder": holder,
            "lease_seconds": lease_seconds,
            "limit": limit,
        },
    ).fetchall()
    return {
        row["window_id"]: Lease(f"window/{query.model_name}/{row['window_id']}", row["token"])
        for row in rows
    }


def mark_scored(connection: Connection, claim: Claim, window: Window, scored: Scored) -> bool:
    """Move a due window on; False where the lease went or the row changed."""
    updated = connection.execute(
        _SQL["mark_scored"],
        {
            "model_name": claim.model_name,
            "window_id": window.window_id,
            "score_rev": window.score_rev,
            "resource": claim.lease.resource,
            "token": claim.lease.token,
            "holder": claim.holder,
            "scorer": scored.scorer,
            "state": scored.state,
            "reason": scored.reason,
            "agents": scored.counts.agents,
            "trajectories": scored.counts.trajectories,
            "text_bytes": scored.text_bytes,
            "funnel": jsonb(dict(scored.funnel)),
        },
    ).rowcount
    return updated == 1


def mark_trained(
    connection: Connection,
    claim: Claim,
    windows: Sequence[Window],
    step: int,
    funnels: Mapping[str, Mapping[str, int]],
) -> bool:
    """End the step's windows as trained; False where any of them is not as it was claimed."""
    updated = connection.execute(
        _SQL["mark_trained"],
        {
            "model_name": claim.model_name,
            "step": step,
            "holder": claim.holder,
            "window_ids": [w.window_id for w in windows],
            "score_revs": [w.score_rev for w in windows],
            "funnels": [jsonb(dict(funnels.get(w.window_id, {}))) for w in windows],
        },
    ).rowcount
    return updated == len(windows)


def end(connection: Connection, claim: Claim, window: Window, end: WindowEnd) -> bool:
    """End a window as skipped or failed; False where it is no longer as it was read."""
    updated = connection.execute(
        _SQL["end_window"],
        {
            **_as_read(claim, window),
            "state": end.state,
            "reason": end.reason,
            "last_error": end.last_error,
            "attempts": window.attempts if end.attempts is None else end.attempts,
            "funnel": jsonb(dict(end.funnel)),
        },
    ).rowcount
    return updated == 1


def postpone(
    connection: Connection,
    claim: Claim,
    window: Window,
    *,
    attempts: int,
    last_error: str,
    wait_seconds: float,
) -> None:
    """Leave a window where it stands until `wait_seconds` have passed; nothing if it moved on."""
    connection.execute(
        _SQL["postpone_window"],
        {
            **_as_read(claim, window),
            "attempts": attempts,
            "last_error": last_error,
            "wait_seconds": wait_seconds,
        },
    )


def put_back(
    connection: Connection,
    claim: Claim,
    window: Window,
    *,
    state: State,
    last_error: str,
    wait_seconds: tuple[float, float],
) -> None:
    """Let a scored window wait, as scored or due, for half as long as it has; no attempt counts.

    `wait_seconds` are the least and the most that it waits.
    """
    least, most = wait_seconds
    connection.execute(
        _SQL["put_back_window"],
        {
            **_as_read(claim, window),
            "state": state,
            "last_error": last_error,
            "least_seconds": least,
            "most_seconds": most,
        },
    )


def split(
    connection: Connection,
    claim: Claim,
    windows: Sequence[Window],
    *,
    may_share: int,
    last_error: str,
) -> None:
    """Let at most `may_share` of these windows, which failed together, meet in the next step."""
    connection.execute(
        _SQL["split_windows"],
        {
            "model_name": claim.model_name,
            "window_ids": [w.window_id for w in windows],
            "may_share": may_share,
            "last_error": last_error,
            "holder": claim.holder,
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


def _as_read(claim: Claim, window: Window) -> dict[str, object]:
    """Return the window as it was read: a row that has moved on since is not written."""
    return {
        "model_name": claim.model_name,
        "holder": claim.holder,
        "window_id": window.window_id,
        "from_state": window.state,
        "score_rev": window.score_rev,
    }
