"""Exams and ended experiments on W&B, in the rows of the steps that were committed after them.

W&B's history only goes forward, and a row of it is a step of the model. So what was decided between
two steps goes into the row of the second, with a step of its own for the plots: `exam/step` is the
step that was examined. A row has at most one exam and one experiment; what comes too early for a
row waits for the next. Which row is found by the times of both, so a process that died before it
noted what it sent is followed by one that finds the same rows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple

import msgspec

from babylon_tasks.records.exams import Exam, ExamState
from babylon_tasks.records.experiments import ExperimentState
from babylon_tasks.store import exams, experiments
from babylon_tasks.store.database import Connection
from babylon_tasks.store.experiments import EndedToLog
from babylon_tasks.store.steps import Step

# Each with the metric that W&B draws them over.
AXES = {"exam/*": "exam/step", "experiment/*": "experiment/step"}

_FIGURES = ("served", "candidate", "difference", "low", "high", "samples")
_STANDING = ("windows", "served_runs", "candidate_runs", "difference", "low", "high")


@dataclass(slots=True)
class GateLog:
    """What goes into the rows of some steps, and which exams and experiments that are."""

    metrics: dict[int, dict[str, float]] = field(default_factory=dict)  # by step
    exams: list[int] = field(default_factory=list)
    experiments: list[int] = field(default_factory=list)


class _Decided(NamedTuple):
    at: datetime
    metrics: dict[str, float]
    key: int


def to_log(tx: Connection, model_name: str, rows: Sequence[Step]) -> GateLog:
    """Return what was decided before these steps, oldest first, and is not on W&B yet."""
    found = GateLog()
    many = len(rows)
    examined = [
        _Decided(each.decided_at, exam_metrics(each), each.step)
        for each in exams.to_log(tx, model_name, many)
        if each.decided_at is not None
    ]
    tried = [
        _Decided(each.ended_at, experiment_metrics(each), each.id)
        for each in experiments.ended_to_log(tx, model_name, many)
    ]
    found.exams = _place(found, rows, examined)
    found.experiments = _place(found, rows, tried)
    return found


def logged(tx: Connection, model_name: str, sent: GateLog) -> None:
    """Note what is on W&B."""
    exams.logged(tx, model_name, sent.exams)
    experiments.ended_logged(tx, sent.experiments)


def exam_metrics(exam: Exam) -> dict[str, float]:
    """Name an exam's figures as W&B shows them; finite numbers only."""
    named = {
        "exam/step": exam.step,
        "exam/passed": exam.state == ExamState.PASSED,
        "exam/trajectories": exam.trajectories,
        "exam/seconds": exam.seconds,
    }
    for name, compared in exam.figures.items():
        known = msgspec.structs.asdict(compared)
        named |= {f"exam/{name}/{what}": known[what] for what in _FIGURES}
    return _finite(named)


def experiment_metrics(ended: EndedToLog) -> dict[str, float]:
    """Name what an experiment showed as W&B shows it; finite numbers only."""
    shown = {} if ended.standing is None else msgspec.structs.asdict(ended.standing)
    named = {
        "experiment/step": ended.step,
        "experiment/promoted": ended.state == ExperimentState.PROMOTED,
        "experiment/percent": ended.percent,
        **{f"experiment/{name}": shown.get(name) for name in _STANDING},
    }
    return _finite(named)


def _place(found: GateLog, rows: Sequence[Step], decided: Sequence[_Decided]) -> list[int]:
    """Put each into the first free row that was committed after it; return the keys of these."""
    placed = []
    waiting = iter(decided)
    next_ = next(waiting, None)
    for row in rows:
        if next_ is not None and next_.at <= row.committed_at:
            found.metrics.setdefault(row.step, {}).update(next_.metrics)
            placed.append(next_.key)
            next_ = next(waiting, None)
    return placed


def _finite(named: dict[str, float | None]) -> dict[str, float]:
    numbers = {name: float(value) for name, value in named.items() if value is not None}
    return {name: value for name, value in numbers.items() if math.isfinite(value)}
