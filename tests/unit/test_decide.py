"""What follows from how an experiment stands, and from whom it failed."""

from __future__ import annotations

import random
from datetime import UTC, datetime

import pytest

from babylon_tasks.records.experiments import (
    Arm,
    Experiment,
    ExperimentState,
    FailedAgents,
    WindowEvidence,
)
from babylon_tasks.serving import bad_answers
from babylon_tasks.serving.confidence import nothing
from babylon_tasks.serving.decide import Decision, Next, decide

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


def running(percent: float = 20) -> Experiment:
    return Experiment(7, 5, 3, ExperimentState.RUNNING, "", percent, "2026-03-01T13:00", NOON, None)


def windows(more: float, count: int, runs: int = 20) -> list[WindowEvidence]:
    """Windows with a standard deviation of 0.1 and so much more for the candidate."""
    arms = [Arm(runs, mean, 0.01 * (runs - 1)) for mean in (0.5, 0.5 + more)]
    return [WindowEvidence(served=arms[0], candidate=arms[1])] * count


def decided(more: float, count: int, percent: float = 20, at_most: int = 24) -> Next:
    return decide(running(percent), windows(more, count), at_most)


@pytest.mark.parametrize(
    ("more", "count", "percent", "decision", "next_percent"),
    [
        (0.1, 3, 20, Decision.PROMOTED, 20),
        (-0.1, 3, 20, Decision.ROLLED_BACK, 20),
        (0.001, 3, 20, Decision.MORE_AGENTS, 40),
        (0.001, 3, 40, Decision.MORE_AGENTS, 50),
        (0.001, 3, 50, Decision.GO_ON, 50),
        (-0.001, 3, 20, Decision.GO_ON, 20),
        (0.001, 24, 20, Decision.UNDECIDED, 20),
        (0.1, 24, 20, Decision.PROMOTED, 20),
        (-0.1, 30, 20, Decision.ROLLED_BACK, 20),
    ],
)
def test_what_is_decided(
    more: float, count: int, percent: float, decision: Decision, next_percent: float
) -> None:
    told = decided(more, count, percent)
    assert (told.decision, told.percent) == (decision, next_percent)
    assert (told.end is not None) == (decision not in (Decision.GO_ON, Decision.MORE_AGENTS))


def test_harm_needs_less_proof_than_a_promotion() -> None:
    """There is a difference that ends an experiment downwards and does not upwards."""
    assert decided(-0.055, 3).decision == Decision.ROLLED_BACK
    assert decided(0.055, 3).decision == Decision.MORE_AGENTS


def test_what_is_not_told_apart_gives_way_to_a_newer_step() -> None:
    told = decide(running(), windows(0.0, 3), 24, newer=9)
    assert told.decision == Decision.UNDECIDED
    assert told.reason.startswith("it gives way to step 9: step 5 earned 0.000 more")
    assert decide(running(), windows(0.0, 2), 24, newer=9).end is None
    assert decide(running(), windows(0.0, 3), 24).end is None
    # At this rate it is told apart in time, for better or for worse.
    for difference in (0.055, -0.045):
        assert decide(running(), windows(difference, 3), 24, newer=9).end is None


def test_a_version_without_agents_gets_more() -> None:
    told = decide(running(), [nothing()], 24)
    assert (told.decision, told.percent) == (Decision.MORE_AGENTS, 40)
    assert told.reason == (
        "no window yet in which step 5 and step 3 both have scored runs, 0 runs beside 0, in "
        "1 window"
    )
    assert decide(running(), [nothing()] * 24, 24).decision == Decision.UNDECIDED


def test_reasons_have_the_numbers() -> None:
    assert decided(0.1, 3).reason.startswith("step 5 earned 0.100 more a run than step 3 (95 % int")
    assert decided(0.1, 3).reason.endswith("60 runs beside 60, in 3 windows")
    assert decided(-0.1, 3).reason.startswith("step 5 earned 0.100 less a run than step 3 (80 % in")
    assert decide(running(), windows(0.1, 1, runs=2), 24).reason == (
        "step 5 is not told apart from step 3: +0.100 a run, 2 runs beside 2, in 1 window"
    )


# --- errors and malformed answers -------------------------------------------------------------


def failed(served: int, served_failed: int, candidate: int, candidate_failed: int) -> FailedAgents:
    return FailedAgents("2026-03-01T13:00", served, served_failed, candidate, candidate_failed)


def test_the_evidence_by_hand() -> None:
    """A fifth of the agents: q = 0.2. Two failed, one of each version."""
    # R = 2, 4, 8, 16: R / (1 + 0.2 (R - 1))^2 = 2 / 1.44, 4 / 2.56, 8 / 5.76, 16 / 16
    # = 1.38889, 1.5625, 1.38889, 1; their mean is 1.33507
    assert bad_answers.evidence([failed(16, 1, 4, 1)]) == pytest.approx(1.33507, abs=1e-5)
    # The same in each of two windows: 1.92901, 2.44141, 1.92901, 1; their mean is 1.82486
    assert bad_answers.evidence([failed(16, 1, 4, 1)] * 2) == pytest.approx(1.82486, abs=1e-5)


@pytest.mark.parametrize(
    ("windows", "worse"),
    [
        ([], False),
        ([failed(16, 0, 4, 4)], True),
        ([failed(16, 0, 4, 3)], False),
        ([failed(16, 16, 4, 4)], False),  # neither can answer
        ([failed(16, 0, 4, 0)], False),
        ([failed(0, 0, 20, 20)], False),  # nothing to compare with
        ([failed(3, 0, 1, 1)] * 5, True),
        ([failed(10, 0, 10, 10)], True),
        ([failed(100_000, 9, 100_000, 90_000)], True),
        ([failed(1000, 30, 1000, 120)], False),  # certain, and not far: it is in what they earn
        ([failed(1000, 30, 1000, 140)], True),
    ],
)
def test_who_was_failed(windows: list[FailedAgents], worse: bool) -> None:
    assert bad_answers.is_worse(windows) == worse


def test_a_version_that_is_no_worse_is_rarely_ended_by_that() -> None:
    """In at most 1 % of the experiments, with a look after each agent; of 1000, 20 are too many."""
    rng, ended = random.Random(5), 0
    for _ in range(1000):
        agents = [[0, 0], [0, 0]]
        for _ in range(300):
            version = rng.random() < 0.2
            agents[version][0] += 1
            agents[version][1] += rng.random() < 0.15
            (served, served_failed), (candidate, candidate_failed) = agents
            if bad_answers.is_worse([failed(served, served_failed, candidate, candidate_failed)]):
                ended += 1
                break
    assert ended < 20
