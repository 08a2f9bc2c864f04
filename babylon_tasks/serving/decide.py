"""What follows from how an experiment stands: its end, or more agents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from babylon_tasks.records.experiments import (
    Experiment,
    ExperimentState,
    Standing,
    WindowEvidence,
)
from babylon_tasks.serving import confidence

# A new version needs proof to serve; to go it needs a suspicion. If it is as good as the other one,
# this ends it in one experiment of ten, at most, and the agents keep what they had.
HARM_ALPHA = 0.2

# A version that is not told apart after so many windows gives way to a newer one, if there is one:
# that is steps ahead, so it differs more. Ending early promotes nothing, so no error grows by it.
PATIENT_WINDOWS = 3

# Half of the agents tell most about two versions.
MOST_PERCENT = 50.0


class Decision(StrEnum):
    """What is decided after a look; the last four end the experiment."""

    GO_ON = "go on"
    MORE_AGENTS = "more agents"
    PROMOTED = "promoted"
    ROLLED_BACK = "rolled back"
    UNDECIDED = "undecided"
    STOPPED = "stopped"


ENDS = {
    Decision.PROMOTED: ExperimentState.PROMOTED,
    Decision.ROLLED_BACK: ExperimentState.ROLLED_BACK,
    Decision.UNDECIDED: ExperimentState.UNDECIDED,
    Decision.STOPPED: ExperimentState.STOPPED,
}


@dataclass(frozen=True, slots=True)
class Next:
    """What is decided, how the experiment stands, its percentage of the agents, and one sentence.

    The percentage is that from the next window on.
    """

    decision: Decision
    standing: Standing
    percent: float
    reason: str

    @property
    def end(self) -> ExperimentState | None:
        """How the experiment ends by this; None: it goes on."""
        return ENDS.get(self.decision)


def decide(
    experiment: Experiment,
    windows: Sequence[WindowEvidence],
    at_most: int,
    newer: int | None = None,
) -> Next:
    """Return what follows after a look; `windows` are all so far, `at_most` those it may have.

    Promoted: it earns more, with 95 % confidence over all looks. Rolled back: it earns less, with
    80 %. Otherwise its part of the agents is doubled, up to a half, as long as it did not earn less
    so far; after `at_most` windows the version that serves stays. If it would not be decided within
    these at this rate, it gives way to a `newer` step that passed its exam.
    """
    standing = confidence.standing(windows, max(0, at_most - len(windows)))
    sums = confidence.sum_up(windows)
    harm = None if sums is None else confidence.interval(sums, HARM_ALPHA)
    percent = experiment.percent
    if standing.low is not None and standing.low > 0:
        decision, said = Decision.PROMOTED, _as_it_stands(experiment, standing)
    elif harm and harm.high < 0:
        decision, said = Decision.ROLLED_BACK, _sentence(experiment, standing, harm, 80)
    else:
        decision, said = Decision.GO_ON, _as_it_stands(experiment, standing)
        if len(windows) >= at_most:
            decision = Decision.UNDECIDED
        elif newer and len(windows) >= PATIENT_WINDOWS and standing.windows_left is None:
            decision, said = Decision.UNDECIDED, f"it gives way to step {newer}: {said}"
        elif percent < MOST_PERCENT and (standing.difference is None or standing.difference >= 0):
            decision, percent = Decision.MORE_AGENTS, min(MOST_PERCENT, 2 * percent)
    return Next(decision, standing, percent, said)


def _sentence(
    experiment: Experiment, standing: Standing, found: confidence.Interval, sure: int = 95
) -> str:
    assert standing.difference is not None
    more = "more" if standing.difference >= 0 else "less"
    return (
        f"step {experiment.step} earned {abs(standing.difference):.3f} {more} a run than step "
        f"{experiment.served_step} ({sure} % interval {found.low:+.3f} to {found.high:+.3f}), "
        f"{_runs(standing)}"
    )


def _as_it_stands(experiment: Experiment, standing: Standing) -> str:
    if standing.difference is None:
        return (
            f"no window yet in which step {experiment.step} and step {experiment.served_step} both "
            f"have scored runs, {_runs(standing)}"
        )
    if standing.low is None or standing.high is None:
        return (
            f"step {experiment.step} is not told apart from step {experiment.served_step}: "
            f"{standing.difference:+.3f} a run, {_runs(standing)}"
        )
    found = confidence.Interval(standing.low, standing.high)
    return _sentence(experiment, standing, found)


def _runs(standing: Standing) -> str:
    windows = "1 window" if standing.windows == 1 else f"{standing.windows} windows"
    return f"{standing.candidate_runs} runs beside {standing.served_runs}, in {windows}"
