"""Reads and writes `rl.scores` and `rl.quarantine`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from babylon_tasks.scoring import Score
from babylon_tasks.store.database import Connection, jsonb
from babylon_tasks.store.queries import load
from babylon_tasks.traces import Unusable

_SQL = load("scores")


@dataclass(frozen=True, slots=True)
class StoredScore:
    """What training needs of a score."""

    score: float
    content_hash: str


def write(
    connection: Connection,
    scores: Sequence[Score],
    *,
    model_name: str,
    scorer: str,
    window_id: str,
) -> None:
    """Replace the window's scores by this scorer."""
    identity = {"model_name": model_name, "scorer": scorer, "window_id": window_id}
    trajectory_ids = [s.trajectory_id for s in scores]
    connection.execute(_SQL["forget_scores"], {**identity, "trajectory_ids": trajectory_ids})
    connection.execute(
        _SQL["write_scores"],
        {
            **identity,
            "trajectory_ids": trajectory_ids,
            "agent_ids": [s.agent_id for s in scores],
            "scores": [s.score for s in scores],
            "raw_scores": [s.raw_score for s in scores],
            "components": [jsonb(s.components) for s in scores],
            "reasonings": [s.reasoning for s in scores],
            "content_hashes": [s.content_hash for s in scores],
        },
    )


def read(
    connection: Connection, *, model_name: str, scorer: str, window_id: str
) -> dict[str, StoredScore]:
    """The window's scores by trajectory id."""
    rows = connection.execute(
        _SQL["read_scores"],
        {"model_name": model_name, "scorer": scorer, "window_id": window_id},
    ).fetchall()
    return {row["trajectory_id"]: StoredScore(row["score"], row["content_hash"]) for row in rows}


def quarantine(connection: Connection, window_id: str, unusable: Mapping[str, Unusable]) -> None:
    """Replace the window's quarantined traces; trajectory id → verdict."""
    ids = list(unusable)
    connection.execute(_SQL["release_quarantine"], {"window_id": window_id, "trajectory_ids": ids})
    connection.execute(
        _SQL["quarantine"],
        {
            "window_id": window_id,
            "trajectory_ids": ids,
            "reasons": [u.reason for u in unusable.values()],
            "details": [u.detail for u in unusable.values()],
        },
    )
