"""Which exams and experiments go into which rows of W&B, and under which names."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any, cast

import pytest

from babylon_tasks.records.exams import Compared, Exam, ExamState
from babylon_tasks.records.experiments import Standing
from babylon_tasks.store.experiments import EndedToLog
from babylon_tasks.store.steps import Step
from workers.watch import gate_log
from workers.watch.gate_log import GateLog

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
STANDING = Standing(5, 30, 10, 0.0123, -0.004, 0.0286, 12)


def exam(step: int, **figures: Compared) -> Exam:
    return Exam(
        step, 1, ExamState.PASSED, "fine", ["w"], 8, figures, 1, NOON, NOON, 31.0
    )  # fmt: skip


def test_w_and_b_gets_the_finite_figures_of_an_exam() -> None:
    found = gate_log.exam_metrics(
        exam(4, form=Compared(1.0, 0.5, -0.5, -0.6, -0.4, 8), kl=Compared(None, math.inf))
    )
    assert found == {
        "exam/step": 4, "exam/passed": 1, "exam/trajectories": 8, "exam/seconds": 31,
        "exam/form/served": 1, "exam/form/candidate": 0.5, "exam/form/difference": -0.5,
        "exam/form/low": -0.6, "exam/form/high": -0.4,
    }  # fmt: skip


def test_w_and_b_gets_what_an_experiment_showed() -> None:
    ended = EndedToLog(1, 3, 1, "promoted", 40.0, NOON, STANDING)
    assert gate_log.experiment_metrics(ended) == {
        "experiment/step": 3, "experiment/promoted": 1, "experiment/percent": 40,
        "experiment/windows": 5, "experiment/served_runs": 30, "experiment/candidate_runs": 10,
        "experiment/difference": 0.0123, "experiment/low": -0.004, "experiment/high": 0.0286,
    }  # fmt: skip
    stopped = replace(ended, state="stopped", standing=None)
    assert gate_log.experiment_metrics(stopped) == {
        "experiment/step": 3, "experiment/promoted": 0, "experiment/percent": 40,
    }  # fmt: skip


def placed(decided_after: list[float], committed_after: dict[int, float]) -> dict[int, int]:
    """Which of the decided ones goes into which step's row; both have hours after noon."""
    rows: Any = [
        SimpleNamespace(step=step, committed_at=NOON + timedelta(hours=hours))
        for step, hours in committed_after.items()
    ]
    decided = [
        gate_log._Decided(NOON + timedelta(hours=hours), {"key": float(number)}, number)
        for number, hours in enumerate(decided_after)
    ]
    found = GateLog()
    keys = gate_log._place(found, cast(list[Step], rows), decided)
    assert keys == list(range(len(keys)))
    return {step: int(metrics["key"]) for step, metrics in found.metrics.items()}


@pytest.mark.parametrize(
    ("decided_after", "committed_after", "found"),
    [
        ([1.5], {1: 1, 2: 2, 3: 3}, {2: 0}),  # the first row after it
        ([1.5, 2.5], {1: 1, 2: 2, 3: 3}, {2: 0, 3: 1}),
        ([1.1, 1.2, 1.3], {2: 2, 3: 3}, {2: 0, 3: 1}),  # one a row; the third waits
        ([3.5], {2: 2, 3: 3}, {}),  # no step came after it yet
        ([0.5, 2.5], {1: 1, 2: 2, 3: 3}, {1: 0, 3: 1}),
        ([], {1: 1}, {}),
    ],
)
def test_what_was_decided_goes_into_the_next_steps_row(
    decided_after: list[float], committed_after: dict[int, float], found: dict[int, int]
) -> None:
    assert placed(decided_after, committed_after) == found
