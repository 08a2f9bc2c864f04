"""One scale for the numbers that a judge gave to several groups.

A judge stretches and shifts its numbers differently in each prompt. The groups of `judge.groups`
are alike by design, so their means and spreads should be too. The spread decides each group's
stretch, since a few noisy anchors would decide it badly; the anchors and the mean together decide
its shift.
benchmarks/judge_groups.py compares this with other methods by simulation.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from math import sqrt
from statistics import fmean

_SPREAD_PRIOR = 1.0  # weight of the common spread in a group's own, as a count of numbers
_MEAN_PRIOR = 3.0  # weight of a group's mean in its shift, as a count of shared ids
_SWEEPS = 1000  # at most; a few are enough if groups share few ids
_TOLERANCE = 1e-9


def on_one_scale(groups: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return one number in [0, 1] for each id; `groups` map ids to the judge's finite numbers.

    A single group stays as it is. Otherwise each group is (1) stretched about its mean towards the
    common spread, by a factor of at most √(1 + n) for n numbers, so that equal numbers stay equal;
    (2) shifted so that ids in several groups agree, by least squares with a ridge that holds the
    groups' means together. An id in several groups gets the mean of its numbers. If a number is
    then outside [0, 1], all numbers are squeezed; none is clipped.

    Both steps keep the order of a group's ids, up to rounding; only the mean of an id that is in
    several groups may change its place. Groups that share no id, directly or through others, are
    compared by their means and spreads alone. The order of groups and ids does not matter.
    """
    groups = [group for group in groups if group]
    if len(groups) == 1:
        return dict(groups[0])
    stretched = match_spreads(groups)
    numbers: dict[str, list[float]] = defaultdict(list)
    for group, shift in zip(stretched, _shifts(stretched), strict=True):
        for each, deviation in group.items():
            numbers[each].append(deviation + shift)
    middle = fmean(number for group in groups for number in group.values()) if groups else 0.0
    scaled = {each: middle + fmean(several) for each, several in numbers.items()}
    lowest = min([0.0, *scaled.values()])
    highest = max([1.0, *scaled.values()])
    return {each: (number - lowest) / (highest - lowest) for each, number in scaled.items()}


def match_spreads(groups: Sequence[Mapping[str, float]]) -> list[dict[str, float]]:
    """Return each group's deviations from its mean, times (common spread) / (its spread).

    The common variance v is the mean squared deviation over all groups; a group of n numbers with
    sum of squares S has (v + S) / (1 + n), the estimate shrunk towards v by one number's weight.
    """
    centred = []
    for group in groups:
        mean = fmean(group.values())
        centred.append({each: number - mean for each, number in group.items()})
    squares = [sum(deviation**2 for deviation in group.values()) for group in centred]
    common = sum(squares) / max(1, sum(len(group) for group in centred))
    if common == 0.0:
        return centred
    stretched = []
    for group, square_sum in zip(centred, squares, strict=True):
        variance = (_SPREAD_PRIOR * common + square_sum) / (_SPREAD_PRIOR + len(group))
        factor = sqrt(common / variance)
        stretched.append({each: factor * deviation for each, deviation in group.items()})
    return stretched


def _shifts(groups: Sequence[Mapping[str, float]]) -> list[float]:
    """Return the shift b_g of each group g, which minimises Σ (z_ig + b_g - s_i)² + λ Σ b_g².

    The first sum is over ids i in several groups, with s_i free. It is solved alternately for s and
    for b; the ridge makes the sum strictly convex, so there is one solution, and this reaches it.
    """
    count = Counter(each for group in groups for each in group)
    shared = [{each: z for each, z in group.items() if count[each] > 1} for group in groups]
    shifts = [0.0] * len(groups)
    for _ in range(_SWEEPS):
        agreed: dict[str, float] = defaultdict(float)
        for group, shift in zip(shared, shifts, strict=True):
            for each, z in group.items():
                agreed[each] += (z + shift) / count[each]
        before = shifts
        shifts = [
            sum(agreed[each] - z for each, z in group.items()) / (_MEAN_PRIOR + len(group))
            for group in shared
        ]
        if max((abs(a - b) for a, b in zip(before, shifts, strict=True)), default=0) < _TOLERANCE:
            break
    return shifts
