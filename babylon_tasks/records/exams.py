"""Exams: how a new step does beside the version that serves, on windows that did not train it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

import msgspec


class ExamState(StrEnum):
    """Whether a step may serve; an `open` exam was begun and is not decided."""

    OPEN = "open"
    PASSED = "passed"
    FAILED = "failed"


class Compared(msgspec.Struct, frozen=True, omit_defaults=True):
    """One figure of two versions, over the same runs.

    `difference` is the candidate's less that of the version that serves, from `low` to `high` with
    95 % confidence (a bootstrap over the `runs`). Without these, `left_out` says why. `worse`: the
    candidate fails by this figure alone. `samples` is the number of sampled answers, or the
    effective sample size where the runs have weights.
    """

    served: float | None = None
    candidate: float | None = None
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    runs: int = 0
    samples: float | None = None
    left_out: str | None = None
    worse: bool = False


# By the figure's name, one of `babylon_tasks.evaluation.figures`.
Figures = dict[str, Compared]


@dataclass(frozen=True, slots=True)
class Exam:
    """A row of `rl.exams`: the exam of `step` beside `served_step`.

    `attempts` counts how often it was begun; `reason` is one sentence.
    """

    step: int
    served_step: int
    state: ExamState
    reason: str | None
    window_ids: list[str]
    trajectories: int
    figures: Figures
    attempts: int
    opened_at: datetime
    decided_at: datetime | None
    seconds: float | None

    def __post_init__(self) -> None:
        object.__setattr__(self, "state", ExamState(self.state))
