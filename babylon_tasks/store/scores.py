"""Reads and writes `rl.scores` and `rl.quarantine`."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from decimal import ROUND_DOWN, Decimal

from psycopg.rows import class_row

from babylon_tasks.records.recorded_steps import Unusable
from babylon_tasks.records.scores import Score
from babylon_tasks.store.database import Connection, jsonb
from babylon_tasks.store.judgments import Cost
from babylon_tasks.store.queries import load

_SQL = load("scores")


@dataclass(frozen=True, slots=True)
class StoredScore:
    """The part of a score that training and exams need."""

    score: float
    content_hash: str
    judge_model: str | None
    rubric_hash: str | None
    exam_only: bool = False


@dataclass(frozen=True, slots=True)
class Source:
    """Identifies scores: those of one window by one scorer, for one model."""

    model_name: str
    scorer: str
    window_id: str


def write(
    connection: Connection, source: Source, scores: Sequence[Score], cost: Cost | None = None
) -> None:
    """Replace this scorer's scores of the window; each gets an equal share of the judge's cost."""
    cost = cost or Cost(None, None)
    identity = asdict(source)
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
            "judge_models": [s.judge_model for s in scores],
            "rubric_hashes": [s.rubric_hash for s in scores],
            "exam_only": [s.exam_only for s in scores],
            "judge_tokens": _shares(cost.tokens, len(scores)),
            "judge_usd": _shares(cost.usd, len(scores)),
        },
    )


@dataclass(frozen=True, slots=True)
class Comparison:
    """One trajectory's scores and their components, by scorer."""

    agent_id: str
    trajectory_id: str
    scores: dict[str, float]
    components: dict[str, dict[str, float]]


def compare(connection: Connection, model_name: str, window_id: str) -> list[Comparison]:
    """Return the scores that each scorer gave to the window's trajectories."""
    with connection.cursor(row_factory=class_row(Comparison)) as cursor:
        return cursor.execute(
            _SQL["compare_scores"], {"model_name": model_name, "window_id": window_id}
        ).fetchall()


def forget_judgments(connection: Connection, window_id: str) -> None:
    """Undo `tell_app` for a window."""
    connection.execute(_SQL["forget_judgments"], {"window_id": window_id})


def tell_app(connection: Connection, source: Source, rubric_hash: str, criteria: str) -> None:
    """Write a judged window's scores into the app's own tables, as the app's judge does.

    `criteria` is JSON.
    """
    version = f"{source.scorer}-{rubric_hash}"
    connection.execute(
        _SQL["tell_app_judgments"],
        {**asdict(source), "judge_version": version, "criteria": criteria},
    )
    connection.execute(_SQL["tell_app_scores"], asdict(source))


def read(connection: Connection, source: Source) -> dict[str, StoredScore]:
    """Return the window's scores by trajectory id."""
    rows = connection.execute(_SQL["read_scores"], asdict(source)).fetchall()
    return {row.pop("trajectory_id"): StoredScore(**row) for row in rows}


def which_are_later(
    connection: Connection, model_name: str, window_id: str, trajectory_ids: Collection[str]
) -> dict[str, bool]:
    """Return which of these traces exist, and whether each is later than the window's scoring."""
    rows = connection.execute(
        _SQL["which_are_later"],
        {
            "model_name": model_name,
            "window_id": window_id,
            "trajectory_ids": list(trajectory_ids),
        },
    ).fetchall()
    return {row["trajectory_id"]: row["later"] for row in rows}


def quarantine(
    connection: Connection, model_name: str, window_id: str, unusable: Mapping[str, Unusable]
) -> None:
    """Replace the rows of a lineage's window in quarantine; `unusable` is by trajectory id.

    It must come before the window is marked as scored.
    """
    rows = {
        "model_name": model_name,
        "window_id": window_id,
        "trajectory_ids": list(unusable),
    }
    connection.execute(_SQL["release_quarantine"], rows)
    connection.execute(
        _SQL["quarantine"],
        {
            **rows,
            "reasons": [u.reason for u in unusable.values()],
            "details": [u.detail for u in unusable.values()],
        },
    )


def _shares(total: int | Decimal | None, count: int) -> list[int | Decimal | None]:
    """Split the total into `count` nearly equal parts with that sum; dollars to ten places."""
    if total is None or count == 0:
        return [None] * count
    if isinstance(total, int):
        part: int | Decimal = total // count
    else:
        part = (total / count).quantize(Decimal("1e-10"), ROUND_DOWN)
    return [total - part * (count - 1), *[part] * (count - 1)]
