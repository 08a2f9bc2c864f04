"""How much more a version earns: numbers worked out by hand, and what the test promises."""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from babylon_tasks.records.experiments import Arm, WindowEvidence
from babylon_tasks.serving import confidence
from babylon_tasks.serving.confidence import Sums, interval, nothing, standing, sum_up


def arm(*scores: float) -> Arm:
    mean = sum(scores) / len(scores) if scores else 0.0
    return Arm(len(scores), mean, sum((score - mean) ** 2 for score in scores))


TWO = [
    # means 0.3 and 0.6, so 0.3 more; squares 0.02 and 0.02; weight 2 * 2 / 4 = 1
    WindowEvidence(served=arm(0.2, 0.4), candidate=arm(0.5, 0.7)),
    # means 0.5 and 0.7, so 0.2 more; squares 0.04 and 0.02; weight 4 * 2 / 6 = 4/3
    WindowEvidence(served=arm(0.4, 0.4, 0.6, 0.6), candidate=arm(0.6, 0.8)),
]


def test_windows_are_added_up() -> None:
    sums = sum_up(TWO)
    assert sums is not None
    assert sums.information == pytest.approx(7 / 3)  # 1 + 4/3
    # (0.3 * 1 + 0.2 * 4/3) / (7/3) = (17/30) / (7/3) = 17/70
    assert sums.difference == pytest.approx(17 / 70)
    # within 0.02 + 0.02 + 0.04 + 0.02 = 0.1; between 1 * (0.3 - 17/70)^2 + 4/3 * (0.2 - 17/70)^2
    # = (4/70)^2 + 4/3 * (3/70)^2 = 28/4900 = 1/175
    assert sums.squares == pytest.approx(0.1 + 1 / 175)
    assert sums.freedom == 7  # 4 - 1 + 6 - 1, less one for the difference
    # r = 10 / (10 + 7/3) = 0.811, K = (20 / 0.900)^(2/8) = 2.17, K r = 1.76: not below 1
    assert interval(sums) is None


def test_an_interval_by_hand() -> None:
    """Three windows with 40 runs of each version, 0.1, 0.2 and 0.3 more."""
    windows = [
        WindowEvidence(served=Arm(40, 0.4, 0.9), candidate=Arm(40, 0.4 + more, 0.9))
        for more in (0.1, 0.2, 0.3)
    ]
    # Weights 20, so 60; difference 0.2; squares 6 * 0.9 + 20 * (0.01 + 0 + 0.01) = 5.8;
    # freedom 3 * 79 - 1 = 236. r = 10/70; K = (20 * 7^0.5)^(2/237) = 52.915^0.0084388 = 1.034058;
    # (K - 1) / (1 - K r) = 0.034058 / 0.852277 = 0.039961; times 5.8 / 60 = 0.0038629; its root is
    # 0.062152.
    shown = standing(windows, 21)
    assert shown.difference == pytest.approx(0.2)
    assert (shown.low, shown.high) == (
        pytest.approx(0.2 - 0.062152, abs=1e-6),
        pytest.approx(0.2 + 0.062152, abs=1e-6),
    )
    assert (shown.windows, shown.served_runs, shown.candidate_runs) == (3, 120, 120)
    assert shown.windows_left == 0  # it is decided


def test_the_bayes_factor_is_one_over_alpha_at_the_ends() -> None:
    """The interval is the formula of its docstring, solved."""
    sums = Sums(information=30.0, difference=0.1, squares=8.0, freedom=150)
    found = interval(sums, 0.05)
    assert found is not None
    assert (found.low + found.high) / 2 == pytest.approx(0.1)
    r = confidence.PRECISION / (confidence.PRECISION + 30)
    u = (found.high - 0.1) ** 2 * 30 / 8.0
    assert r**0.5 * ((1 + u) / (1 + r * u)) ** (151 / 2) == pytest.approx(20)


def test_less_sure_is_narrower() -> None:
    sums = Sums(information=30.0, difference=0.1, squares=8.0, freedom=150)
    sure, less = interval(sums, 0.05), interval(sums, 0.2)
    assert sure
    assert less
    assert sure.low < less.low < less.high < sure.high


@pytest.mark.parametrize(
    "windows",
    [
        [],
        [nothing()],
        [WindowEvidence(served=arm(0.5, 0.6), candidate=arm())],
        [WindowEvidence(served=arm(), candidate=arm(0.5, 0.6))],
    ],
)
def test_a_window_with_one_version_alone_shows_nothing(windows: list[WindowEvidence]) -> None:
    assert sum_up(windows) is None
    shown = standing(windows, 5)
    assert shown.windows == len(windows)
    assert (shown.difference, shown.low, shown.high, shown.windows_left) == (None,) * 4
    more = standing([*windows, *TWO], 5)
    assert more.difference == pytest.approx(17 / 70)
    assert more.windows == 2 + len(windows)


@pytest.mark.parametrize("candidate", [0.5, 0.9])
def test_scores_that_are_all_equal_have_no_known_spread(candidate: float) -> None:
    equal = WindowEvidence(served=arm(*[0.5] * 30), candidate=arm(*[candidate] * 30))
    sums = sum_up([equal] * 9)
    assert sums is not None
    assert interval(sums) is None
    assert standing([equal] * 9, 9).low is None


def test_one_run_of_each_version_has_no_freedom() -> None:
    sums = sum_up([WindowEvidence(served=arm(0.5), candidate=arm(0.7))])
    assert sums is not None
    assert (sums.freedom, interval(sums)) == (0, None)


def test_windows_that_are_left_are_those_until_zero_is_outside() -> None:
    window = WindowEvidence(
        served=arm(*[0.4, 0.5, 0.6] * 3), candidate=arm(*[0.45, 0.55, 0.65] * 3)
    )
    first = standing([window], 20)
    assert first.windows_left is not None
    assert first.windows_left > 1
    at = standing([window] * (1 + first.windows_left), 0)
    before = standing([window] * first.windows_left, 0)
    assert at.low is not None
    assert at.low > 0
    assert before.low is None or before.low <= 0
    assert standing([window], first.windows_left - 1).windows_left is None


scores = st.lists(st.floats(0, 1), max_size=6)


@given(st.lists(st.tuples(scores, scores), max_size=6), st.integers(0, 30))
def test_any_scores_have_a_standing(
    windows: list[tuple[list[float], list[float]]], left: int
) -> None:
    evidence = [WindowEvidence(served=arm(*s), candidate=arm(*c)) for s, c in windows]
    shown = standing(evidence, left)
    if shown.low is not None:
        assert shown.high is not None
        assert shown.difference is not None
        assert shown.low <= shown.difference <= shown.high


# --- what it promises -------------------------------------------------------------------------


@dataclass
class Play:
    """An experiment as it is run: 20 % of the agents, then more; a look after each window."""

    agents: int
    more: float  # what the candidate earns more, in standard deviations of a score
    rng: random.Random

    def ends_with_a_promotion(self) -> bool:
        percent, windows = 20.0, list[WindowEvidence]()
        for _ in range(24):
            served, candidate = list[float](), list[float]()
            worth = self.rng.gauss(0, 0.25)  # of the window, for all
            for _ in range(self.agents):
                drawn = self.rng.random() * 100 < percent
                # Skewed and from 0 to 1 as scores are; the standard deviation is 0.2138.
                score = self.rng.betavariate(0.5, 2) + worth
                (candidate if drawn else served).append(score + 0.2138 * self.more * drawn)
            windows.append(WindowEvidence(served=arm(*served), candidate=arm(*candidate)))
            sums = sum_up(windows)
            found = interval(sums) if sums else None
            if found and found.low > 0:
                return True
            if sums is None or sums.difference >= 0:
                percent = min(50.0, 2 * percent)
        return False


@pytest.mark.parametrize("agents", [4, 12, 30])
def test_a_version_that_is_no_better_is_rarely_promoted(agents: int) -> None:
    """In at most 2.5 % of the experiments; of 300, 14 would be three standard deviations more."""
    rng = random.Random(agents)
    assert sum(Play(agents, 0.0, rng).ends_with_a_promotion() for _ in range(300)) <= 14


def test_a_version_that_is_better_is_promoted() -> None:
    rng = random.Random(1)
    plays = [Play(20, 0.5, rng).ends_with_a_promotion() for _ in range(60)]
    assert sum(plays) >= 51
