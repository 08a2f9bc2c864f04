"""Reads and writes `rl.exams`: which steps may serve."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import msgspec

from babylon_tasks.errors import LeaseLost
from babylon_tasks.records.exams import Exam, ExamState, Figures
from babylon_tasks.store import promotions
from babylon_tasks.store.database import Connection, jsonb
from babylon_tasks.store.leases import Claim
from babylon_tasks.store.queries import load

_SQL = load("exams")


class Candidate(NamedTuple):
    """A step that waits for its exam, and the step that serves meanwhile."""

    step: int
    published_step: int


class RolledBack(NamedTuple):
    """A step that an experiment rolled back, and the step that served beside it."""

    step: int
    served_step: int
    reason: str


@dataclass(frozen=True, slots=True)
class Decision:
    """The verdict on a step, and what it was examined on."""

    step: int
    state: ExamState
    reason: str
    window_ids: Sequence[str]
    trajectories: int
    figures: Figures


def awaited(tx: Connection, model_name: str) -> Candidate | None:
    """Return the lineage's head if it has to be examined before it trains or serves, else None."""
    row = tx.execute(_SQL["awaits_exam"], {"model_name": model_name}).fetchone()
    return Candidate(**row) if row else None


def begin(tx: Connection, claim: Claim, candidate: Candidate) -> int:
    """Note that an exam begins; return how often it was begun, this time included."""
    row = tx.execute(
        _SQL["open_exam"],
        {**_identity(claim), "step": candidate.step, "served_step": candidate.published_step}
        | {"holder": claim.holder},
    ).fetchone()
    assert row is not None  # `awaited` saw no verdict, under the lineage's lease
    return int(row["attempts"])


def give_back(tx: Connection, claim: Claim, step: int) -> None:
    """Uncount the exam of a step that was begun under this claim, if it is not decided.

    Another worker may have begun it again since.
    """
    tx.execute(_SQL["give_back_exam"], {**_identity(claim), "step": step})


def decide(tx: Connection, claim: Claim, decision: Decision) -> None:
    """Write the verdict.

    Raises:
        LeaseLost: Somebody else has begun the exam again.
    """
    values = {
        **_identity(claim),
        "step": decision.step,
        "state": decision.state,
        "reason": decision.reason,
        "window_ids": list(decision.window_ids),
        "trajectories": decision.trajectories,
        "figures": jsonb(msgspec.to_builtins(decision.figures)),
    }
    if tx.execute(_SQL["decide_exam"], values).rowcount != 1:
        raise LeaseLost(f"the exam of step {decision.step} of {claim.model_name} was begun again")


def was_decided(tx: Connection, claim: Claim) -> bool:
    """Tell whether the verdict under this claim was committed."""
    return tx.execute(_SQL["exam_of_token"], _identity(claim)).fetchone() is not None


def tell_app(tx: Connection, model_name: str, step: int, figures: Figures) -> None:
    """Write the figures into the step's row of the app's `trained_models`."""
    ranking, value = figures.get("ranking"), figures.get("value")
    promotions.hold_versions(tx, model_name, [step])
    tx.execute(
        _SQL["tell_app"],
        {
            "model_name": model_name,
            "step": step,
            "figures": jsonb(msgspec.to_builtins(figures)),
            "accuracy": ranking.candidate if ranking else None,
            "benchmark": value.candidate if value else None,
        },
    )


def read(
    tx: Connection, model_name: str, steps: Sequence[int] | None = None, limit: int = 1000
) -> list[Exam]:
    """Return the exams of these steps, or of all, newest first."""
    rows = tx.execute(
        _SQL["read_exams"],
        {
            "model_name": model_name,
            "steps": None if steps is None else list(steps),
            "limit": limit,
        },
    ).fetchall()
    return _exams(rows)


def to_log(tx: Connection, model_name: str, limit: int) -> list[Exam]:
    """Return the decided exams that are not on W&B yet, in the order of their verdicts."""
    values = {"model_name": model_name, "limit": limit}
    return _exams(tx.execute(_SQL["exams_to_log"], values).fetchall())


def logged(tx: Connection, model_name: str, steps: Sequence[int]) -> None:
    """Note that the exams of these steps are on W&B."""
    tx.execute(_SQL["exams_logged"], {"model_name": model_name, "steps": list(steps)})


def failures_in_a_row(tx: Connection, model_name: str) -> int:
    """Count the exams failed since one was passed or a person changed the lineage."""
    row = tx.execute(_SQL["failures_in_a_row"], {"model_name": model_name}).fetchone()
    assert row is not None
    return int(row["failures"])


def rolled_back(tx: Connection, model_name: str) -> RolledBack | None:
    """Return the rolled-back step on the way to the head that the head has to leave, or None."""
    row = tx.execute(_SQL["rolled_back"], {"model_name": model_name}).fetchone()
    return RolledBack(**row) if row else None


def _exams(rows: Sequence[dict[str, Any]]) -> list[Exam]:
    return [Exam(**{**row, "figures": msgspec.convert(row["figures"], Figures)}) for row in rows]


def _identity(claim: Claim) -> dict[str, str | int]:
    return {"model_name": claim.model_name, "token": claim.lease.token}
