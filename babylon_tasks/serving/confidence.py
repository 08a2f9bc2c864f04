"""How much more a version earns than another one, as sure after each window as after the last.

An always-valid confidence sequence: however often it is looked at, and whenever it is stopped by
what it shows, it misses the true difference with a probability of at most alpha. It is the
sequential t mixture of Lindon, Ham, Tingley and Bojinov, "Anytime-Valid Linear Models and
Regression Adjusted Causal Inference in Randomized Experiments" (2022), equation 9 for one effect;
earlier Lai, "On Confidence Sequences" (1976); why an unknown variance costs no more than this, Wang
and Ramdas, "Anytime-valid t-tests and confidence sequences for Gaussian means with unknown
variance" (2024).

The model of a run's score is: what its window was worth, plus the difference if the candidate
answered, plus noise. A run is an agent in a window. What the window was worth cancels, since only
runs of the same window are compared; agents are drawn anew for each window, so that no agent's
skill stays with one version.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from babylon_tasks.records.experiments import Arm, Standing, WindowEvidence

ALPHA = 0.05

# The mixture's precision, in runs: differences are expected to be about 1/sqrt(10) = 0.3 standard
# deviations of a score, the least that 24 windows of some 20 agents can show. The interval holds
# with any value; with this one it is narrowest where that is decided. A larger difference is seen
# soon with any value; for a smaller one there would not be windows enough.
PRECISION = 10.0

# A variance of the scores, which are from 0 to 1, below which they count as all equal.
_NO_SPREAD = 1e-12


class Interval(NamedTuple):
    """Where a difference is."""

    low: float
    high: float


class Sums(NamedTuple):
    """What some windows show together.

    `information` is the sum over windows of n_c n_s / (n_c + n_s), with the runs of candidate and
    served version; `difference` is the mean of the windows' differences, weighted by it. `squares`
    is the sum of squares that neither windows nor versions explain, with `freedom` degrees.
    """

    information: float
    difference: float
    squares: float
    freedom: float


def sum_up(windows: Iterable[WindowEvidence]) -> Sums | None:
    """Add up windows; None if in none of them both versions have runs."""
    both = [each for each in windows if each.served.runs and each.candidate.runs]
    if not both:
        return None
    weights = [_information(each) for each in both]
    differences = [each.candidate.mean - each.served.mean for each in both]
    information = math.fsum(weights)
    difference = math.fsum(w * d for w, d in zip(weights, differences, strict=True)) / information
    within = math.fsum(each.served.squares + each.candidate.squares for each in both)
    between = math.fsum(
        w * (d - difference) ** 2 for w, d in zip(weights, differences, strict=True)
    )
    freedom = sum(each.served.runs + each.candidate.runs - 1 for each in both) - 1
    return Sums(information, difference, within + between, freedom)


def interval(sums: Sums, alpha: float = ALPHA) -> Interval | None:
    """Return where the difference is, with confidence 1 - alpha at every look.

    None where it may be anything: too few runs, or scores that are all equal, whose spread is not
    known.

    With r = precision / (precision + information), t the usual statistic of a difference and f its
    degrees of freedom, the mixture's Bayes factor against a difference is

        sqrt(r) * ((1 + t^2/f) / (1 + r t^2/f)) ^ ((f + 1) / 2)

    which under it exceeds 1/alpha at any look with a probability of at most alpha (Ville). Solved
    for t, with K = (1 / (alpha sqrt(r))) ^ (2 / (f + 1)): t^2/f < (K - 1) / (1 - K r).
    """
    if sums.freedom <= 0 or sums.squares <= _NO_SPREAD * sums.freedom:
        return None
    r = PRECISION / (PRECISION + sums.information)
    exponent = 2 / (sums.freedom + 1)
    k = math.exp(exponent * -(math.log(alpha) + math.log(r) / 2))
    if k * r >= 1:
        return None
    half = math.sqrt((k - 1) / (1 - k * r) * sums.squares / sums.information)
    return Interval(sums.difference - half, sums.difference + half)


def standing(windows: Sequence[WindowEvidence], windows_left_at_most: int) -> Standing:
    """Return what all windows so far show, those with runs of one version alone included.

    `windows_left_at_most` are those that the experiment has left.
    """
    sums = sum_up(windows)
    found = None if sums is None else interval(sums)
    return Standing(
        windows=len(windows),
        served_runs=sum(each.served.runs for each in windows),
        candidate_runs=sum(each.candidate.runs for each in windows),
        difference=None if sums is None else sums.difference,
        low=found.low if found else None,
        high=found.high if found else None,
        windows_left=_windows_left(sums, len(windows), windows_left_at_most),
    )


def nothing() -> WindowEvidence:
    """Return the evidence of a window in which neither version has runs."""
    return WindowEvidence(served=Arm(0, 0.0, 0.0), candidate=Arm(0, 0.0, 0.0))


def _information(window: WindowEvidence) -> float:
    served, candidate = window.served.runs, window.candidate.runs
    return served * candidate / (served + candidate)


def _windows_left(sums: Sums | None, windows: int, at_most: int) -> int | None:
    """Return after how many windows like those so far 0 is outside; None: not within `at_most`."""
    if sums is None:
        return None
    for more in range(at_most + 1):
        growth = (windows + more) / windows
        freedom = (sums.freedom + 1) * growth - 1
        squares = sums.squares * growth
        found = interval(sums._replace(
            information=sums.information * growth, squares=squares, freedom=freedom
        ))  # fmt: skip
        if found and not found.low <= 0 <= found.high:
            return more
    return None
