"""Experiments: a version that passed its exam answers a part of the agents, and what they earn."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

import msgspec

# A version has failed an agent in a window if at least this part of the agent's requests ended with
# an error of the version, or with a malformed answer.
FAILED_PART = 0.2


class ExperimentState(StrEnum):
    """How it stands or ended; a person `stopped` it, by a promotion, a reset or a share by hand."""

    RUNNING = "running"
    PROMOTED = "promoted"
    ROLLED_BACK = "rolled_back"
    UNDECIDED = "undecided"
    STOPPED = "stopped"


class Arm(msgspec.Struct, frozen=True):
    """A version's runs in a window: number, mean score, and sum of squared deviations from it."""

    runs: int
    mean: float
    squares: float


class WindowEvidence(msgspec.Struct, frozen=True):
    """What one window shows: the runs that the candidate and the served version answered."""

    served: Arm
    candidate: Arm


class Standing(msgspec.Struct, frozen=True):
    """What all windows so far show: the candidate's mean score less the served version's.

    `low` to `high` has it with 95 % confidence at every look. `windows_left` is an estimate at this
    rate; None: not within the experiment's windows.
    """

    windows: int
    served_runs: int
    candidate_runs: int
    difference: float | None
    low: float | None
    high: float | None
    windows_left: int | None


@dataclass(frozen=True, slots=True)
class FailedAgents:
    """Agents of a window that each version answered, and those of them that it failed."""

    window_id: str
    served: int
    served_failed: int
    candidate: int
    candidate_failed: int


@dataclass(frozen=True, slots=True)
class Experiment:
    """A row of `rl.experiments`; `percent` of the agents are the candidate's, `step`."""

    id: int
    step: int
    served_step: int
    state: ExperimentState
    reason: str
    percent: float
    first_window: str
    started_at: datetime
    ended_at: datetime | None

    def __post_init__(self) -> None:
        object.__setattr__(self, "state", ExperimentState(self.state))


@dataclass(frozen=True, slots=True)
class ExperimentLook:
    """A row of `rl.experiment_looks`: a window's evidence, and what was decided after it.

    `score_rev` is that of the window's scores then.
    """

    window_id: str
    decision: str
    score_rev: int
    evidence: WindowEvidence
    standing: Standing
    at: datetime
