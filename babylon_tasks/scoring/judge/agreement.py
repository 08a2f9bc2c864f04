"""How far two judgments of the same trajectories agree."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from statistics import correlation, fmean


def spearman(ours: Sequence[float], theirs: Sequence[float]) -> float | None:
    """Return Spearman's rank correlation, None if all numbers of a side are equal.

    Ties get their mean rank.
    """
    if any(len(set(numbers)) < 2 for numbers in (ours, theirs)):
        return None
    return correlation(_ranks(ours), _ranks(theirs))


def _ranks(numbers: Sequence[float]) -> list[float]:
    places = defaultdict(list)
    for place, number in enumerate(sorted(numbers)):
        places[number].append(place)
    return [fmean(places[number]) for number in numbers]
