"""What a few seeds say: means with intervals, and how soon a curve gets somewhere."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, stdev

# Student's t, 97.5 %, of 1 to 10 degrees of freedom.
_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
_Z = 1.959964


def student_t(degrees: int) -> float:
    """Return the 97.5 % point of Student's t.

    Above 10 degrees of freedom by Fisher's expansion around the normal distribution, whose error
    there is below 0.001.
    """
    if degrees <= len(_T):
        return _T[degrees - 1]
    z3, z5, z7 = _Z**3, _Z**5, _Z**7
    return (
        _Z
        + (z3 + _Z) / (4 * degrees)
        + (5 * z5 + 16 * z3 + 3 * _Z) / (96 * degrees**2)
        + (3 * z7 + 19 * z5 + 17 * z3 - 15 * _Z) / (384 * degrees**3)
    )


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean, and how far its 95 % interval reaches to each side.

    That is t(n - 1) * s / sqrt(n), with s the standard deviation of the n values over n - 1. It
    takes the values for independent draws. Of one value the reach is infinite.
    """
    if len(values) < 2:
        return fmean(values), math.inf
    return fmean(values), student_t(len(values) - 1) * stdev(values) / math.sqrt(len(values))


def paired(after: Sequence[float], before: Sequence[float]) -> tuple[float, float]:
    """Return the interval of the mean difference of values that belong together."""
    return interval([a - b for a, b in zip(after, before, strict=True)])


def windows_until(curve: Sequence[float], level: float, start: int = 0) -> int | None:
    """Return how many windows after look `start` the curve first is at the level; None: never."""
    return next((at for at, value in enumerate(curve[start:]) if value >= level), None)


def mean_curve(curves: Sequence[Sequence[float]]) -> list[float]:
    """Return the mean of curves, as long as the shortest of them."""
    return [fmean(values) for values in zip(*curves, strict=False)]


def wilson(hits: int, of: int) -> tuple[float, float]:
    """Return the 95 % interval of a share (Wilson 1927).

    (p + z²/2n ± z sqrt(p (1 - p)/n + z²/4n²)) / (1 + z²/n).
    """
    if not of:
        return 0.0, 1.0
    share, z2 = hits / of, _Z**2
    middle = share + z2 / (2 * of)
    reach = _Z * math.sqrt(share * (1 - share) / of + z2 / (4 * of * of))
    scale = 1 + z2 / of
    return max(0.0, (middle - reach) / scale), min(1.0, (middle + reach) / scale)
