"""The gate of a lineage as it stands: what waits to serve, and what did not pass last."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from babylon_tasks.records.experiments import ExperimentState, Standing

FAILURES_IN_A_ROW = 3  # then nothing more is trained until a person has looked
PAUSED_BY = "the gate"


@dataclass(frozen=True, slots=True)
class FailedExam:
    """The last exam that a step of the lineage failed, and why."""

    step: int
    reason: str
    at: datetime


@dataclass(frozen=True, slots=True)
class RunningExperiment:
    """The experiment that runs; `standing` is None before its first look."""

    step: int
    served_step: int
    percent: float
    reason: str
    first_window: str
    started_at: datetime
    standing: Standing | None


@dataclass(frozen=True, slots=True)
class EndedExperiment:
    """How the last experiment ended."""

    step: int
    state: ExperimentState
    reason: str
    at: datetime


@dataclass(frozen=True, slots=True)
class Gate:
    """What waits before the gate of one lineage.

    `gated`: its steps serve after an exam, or by hand. `awaits_exam` is the newest step, if it has
    no verdict, and `attempts` counts how often its exam was begun. `passed` are the steps that may
    serve and do not yet, newest first, without that of the running experiment. `failures` counts
    the exams failed since one was passed or a person changed the lineage; `paused_at`: since then
    it is paused because of them.
    """

    lineage: str
    gated: bool
    served_step: int
    awaits_exam: int | None
    attempts: int
    passed: Sequence[int]
    failures: int
    paused_at: datetime | None
    failed: FailedExam | None
    experiment: RunningExperiment | None
    ended: EndedExperiment | None
