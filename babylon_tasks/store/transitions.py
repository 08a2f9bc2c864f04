"""Writes `rl.windows`: every move of a window from one state to another.

Each statement repeats in its WHERE clause what the caller has read, so that it changes no row that
has moved on since.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

from babylon_tasks.records.lineages import Lineage
from babylon_tasks.records.windows import State, Window
from babylon_tasks.settings import Settings
from babylon_tasks.store.attempts import REWRITTEN
from babylon_tasks.store.database import Connection, jsonb
from babylon_tasks.store.leases import Claim, Lease
from babylon_tasks.store.queries import load
from babylon_tasks.store.windows import Counts, DueQuery, counted_rows

_SQL = load("transitions")


@dataclass(frozen=True, slots=True)
class Scored:
    """The result of scoring a window: `state` is scored or skipped, `reason` says why skipped.

    `by_version` counts what each of the lineage's versions did, and how much of it badly.
    """

    scorer: str
    state: State
    reason: str | None
    counts: Counts
    text_bytes: int
    funnel: Mapping[str, int]
    by_version: Mapping[str, Mapping[str, int]]


@dataclass(frozen=True, slots=True)
class WindowEnd:
    """The end of a window that is not trained: `state` is skipped or failed.

    `attempts` is None if their number stays the same; `funnel` is merged into the window's funnel.
    """

    state: State
    reason: str | None = None
    last_error: str | None = None
    attempts: int | None = None
    funnel: Mapping[str, int] = field(default_factory=dict)


def produce(connection: Connection, lineages: Mapping[str, Settings]) -> list[tuple[str, str]]:
    """Make a row for every due window of these lineages, each with its own settings.

    Lineages that count the same rows share one count. Returns the lineage and the window id of new
    and of reopened windows.
    """
    groups: dict[tuple[tuple[str, ...], ...], list[str]] = {}
    for name, settings in lineages.items():
        counted = tuple(settings.excluded_scenario_patterns()), tuple(settings.agent_patterns())
        groups.setdefault(counted, []).append(name)
    made = []
    for names in groups.values():
        wanted = [lineages[name] for name in names]
        rows = connection.execute(
            _SQL["produce_windows"],
            {
                **counted_rows(wanted[0]),
                "model_names": names,
                "min_agents": [each.min_agents_per_window for each in wanted],
                "lookback_hours": [each.lookback_hours for each in wanted],
                "settle_seconds": [each.settle_seconds for each in wanted],
            },
        ).fetchall()
        made += [(row["model_name"], row["window_id"]) for row in rows]
    return made


def enqueue(connection: Connection, model_name: str, window_id: str, counts: Counts) -> bool:
    """Make a window due by its id; False if it already has a row."""
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


def inherit(connection: Connection, fork: Lineage) -> None:
    """Mark as trained what trained the ancestors of a new fork on the way to its first step."""
    connection.execute(
        _SQL["inherit_windows"],
        {
            "name": fork.name,
            "forked_from": fork.forked_from,
            "forked_step": fork.forked_step,
        },
    )


def claim_due(
    connection: Connection, query: DueQuery, holder: str, limit: int, lease_seconds: float
) -> dict[str, Lease]:
    """Lease up to `limit` due windows and begin an attempt at each; return leases by window id."""
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
    """Move a due window to scored or skipped; False if the lease was lost or the row changed."""
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
            "by_version": jsonb(dict(scored.by_version)),
            "rewritten": REWRITTEN,
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
    """End the step's windows as trained; False if any of them changed since the claim."""
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
    """End a window as skipped or failed; False if its row changed since it was read."""
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
    """Let a window wait in its state for `wait_seconds`; do nothing if it moved on."""
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
    """Let a scored window wait, as scored or due, half as long as it has waited so far.

    `wait_seconds` are the shortest and the longest wait. No attempt counts.
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


def end_waits(connection: Connection) -> int:
    """End the waits that began in the future, since Postgres' clock went back; return how many."""
    return connection.execute(_SQL["end_waits"]).rowcount


def split(
    connection: Connection,
    claim: Claim,
    windows: Sequence[Window],
    *,
    may_share: int,
    last_error: str,
) -> None:
    """Limit the next step of these windows, which failed together, to `may_share` of them."""
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
    """Make failed or skipped windows due again (None: all failed ones).

    Returns the batch id of the request, or None, by window id.
    """
    rows = connection.execute(
        _SQL["retry_windows"],
        {
            "model_name": model_name,
            "window_ids": None if window_ids is None else list(window_ids),
        },
    ).fetchall()
    return {row["window_id"]: row["batch_id"] for row in rows}


def retry_step(connection: Connection, model_name: str, step: int) -> list[str]:
    """Make the windows due again that a step trained which was given up; return their ids."""
    rows = connection.execute(
        _SQL["retry_step"], {"model_name": model_name, "step": step}
    ).fetchall()
    return sorted(row["window_id"] for row in rows)


def restore_trained(connection: Connection, model_name: str, holder: str) -> dict[str, str | None]:
    """Mark as trained what the steps on the way to the head trained, after the head was moved.

    Returns the batch id of the request that waits, or None, by the id of each window that changed.
    """
    rows = connection.execute(
        _SQL["restore_trained"], {"model_name": model_name, "holder": holder}
    ).fetchall()
    return {row["window_id"]: row["batch_id"] for row in rows}


def score_otherwise(connection: Connection, model_name: str, window_id: str, scoring: str) -> bool:
    """Make a window due for this scorer, whatever its state; False if it was trained."""
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
            "rewritten": REWRITTEN,
        },
    )


def _as_read(claim: Claim, window: Window) -> dict[str, object]:
    """Return the parameters that identify the window as it was read."""
    return {
        "model_name": claim.model_name,
        "holder": claim.holder,
        "window_id": window.window_id,
        "from_state": window.state,
        "score_rev": window.score_rev,
    }
