"""Bootstrap intervals over trajectories, paired between versions.

The answers of one trajectory are alike, so whole trajectories are drawn (a cluster bootstrap;
Davison and Hinkley 1997, "Bootstrap Methods and their Application"). Both versions are counted on
the same draws, so what makes a trajectory hard cancels in their difference.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from math import sqrt
from statistics import NormalDist

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from babylon_tasks.records.exams import Compared

Floats = NDArray[np.float64]
# Of draws, [draws, clusters] with how often each cluster was drawn, to a number for each: [draws].
Statistic = Callable[[Floats], Floats]

DRAWS = 2_000
LEAST_CLUSTERS = 5  # with fewer an interval says nothing: five have 126 different draws
_CONFIDENCE = 0.95
_DECIMALS = 9  # further ones are rounding, which is on one side of 0 as well
_SEED = 15  # the same data in the same order always has the same interval
_NORMAL = NormalDist()


class Clusters:
    """Answers by their trajectory, in the order in which the trajectories first come."""

    def __init__(self, names: Sequence[str]) -> None:
        numbers = {name: n for n, name in enumerate(dict.fromkeys(names))}
        self.names = list(names)
        self._size = len(numbers)
        self._number = np.array([numbers[name] for name in names], dtype=np.intp)

    def sums(self, numbers: Sequence[float]) -> Floats:
        """Return the sum of the answers' numbers for each trajectory."""
        sums = np.zeros(self._size)
        np.add.at(sums, self._number, np.array(numbers, dtype=np.float64))
        return sums


def with_interval(
    figure: Compared, statistic: Statistic, clusters: int, fitted: int = 1
) -> Compared:
    """Return a figure with the interval of its difference, or why there is none."""
    bounds = interval(statistic, clusters, fitted)
    if bounds is None:
        return replace(figure, left_out=f"{clusters} trajectories are too few for an interval")
    return replace(figure, low=bounds[0], high=bounds[1])


def interval(statistic: Statistic, clusters: int, fitted: int = 1) -> tuple[float, float] | None:
    """Return the 95 % interval of a statistic, or None if there are too few clusters.

    `fitted` counts the means that were computed from the same clusters. Draws for which the
    statistic is not finite (nothing of what it divides by was drawn) do not count; None if they are
    half or more.
    """
    if clusters - fitted < LEAST_CLUSTERS - 1:
        return None
    with np.errstate(divide="ignore", invalid="ignore"):
        values = statistic(_draws(clusters))
    values = values[np.isfinite(values)].round(_DECIMALS)
    if 2 * len(values) <= DRAWS:
        return None
    tail = tail_of(clusters, fitted)
    low, high = np.quantile(values, [tail, 1 - tail])
    return float(low), float(high)


def tail_of(clusters: int, fitted: int = 1) -> float:
    """Return the share of draws that an interval leaves out at each end.

    It is less than 2.5 %, as draws of few clusters vary too little: the expanded percentile
    interval (Hesterberg 2015, "What Teachers Should Know About the Bootstrap").
    """
    freedom = clusters - fitted
    expanded = sqrt(clusters / freedom) * _student(freedom)
    return _NORMAL.cdf(-expanded)


def _student(freedom: int) -> float:
    """Return the 97.5 % quantile of Student's t (Abramowitz and Stegun 1964, 26.7.5)."""
    z = _NORMAL.inv_cdf((1 + _CONFIDENCE) / 2)
    return (
        z
        + (z**3 + z) / (4 * freedom)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * freedom**3)
    )


@lru_cache(maxsize=4)
def _draws(clusters: int) -> Floats:
    """Draw that many of so many clusters, again and again: [DRAWS, clusters], read-only."""
    generator = np.random.default_rng([_SEED, clusters])
    counts = generator.multinomial(clusters, [1 / clusters] * clusters, size=DRAWS)
    draws = counts.astype(np.float64)
    draws.flags.writeable = False
    return draws
