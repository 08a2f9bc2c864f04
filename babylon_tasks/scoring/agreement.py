"""How far two scorings of the same trajectories agree: pure statistics, with ties."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from math import sqrt
from statistics import correlation, fmean


@dataclass(frozen=True, slots=True)
class Pairs:
    """The pairs of trajectories, by what two scorings say of their order.

    `kept` have the same order in both, `changed` the opposite one. A pair is tied if its two
    numbers are equal: in our scoring, in theirs, or in both; it then neither keeps nor changes.
    """

    total: int
    kept: int
    changed: int
    tied_in_ours: int
    tied_in_theirs: int

    @property
    def kendall(self) -> float | None:
        """Kendall's tau-b, -1 to 1; None if all numbers of a side are equal."""
        ordered = (self.total - self.tied_in_ours) * (self.total - self.tied_in_theirs)
        return (self.kept - self.changed) / sqrt(ordered) if ordered else None

    @property
    def changed_share(self) -> float | None:
        """The share of all pairs whose order is the opposite; None without a pair."""
        return self.changed / self.total if self.total else None


def compare_pairs(ours: Sequence[float], theirs: Sequence[float]) -> Pairs:
    """Count the pairs; the numbers of one trajectory have the same place in both."""
    kept = changed = tied_in_ours = tied_in_theirs = total = 0
    for (a, x), (b, y) in combinations(zip(ours, theirs, strict=True), 2):
        total += 1
        tied_in_ours += a == b
        tied_in_theirs += x == y
        if a != b and x != y:
            if (a < b) == (x < y):
                kept += 1
            else:
                changed += 1
    return Pairs(total, kept, changed, tied_in_ours, tied_in_theirs)


def spearman(ours: Sequence[float], theirs: Sequence[float]) -> float | None:
    """Return Spearman's rank correlation, None if all numbers of a side are equal.

    Ties get their mean rank.
    """
    if any(len(set(numbers)) < 2 for numbers in (ours, theirs)):
        return None
    return correlation(ranks(ours), ranks(theirs))


def ranks(numbers: Sequence[float]) -> list[float]:
    """Return each number's rank, 1 for the largest; equal numbers share their mean rank."""
    places = defaultdict(list)
    for place, number in enumerate(sorted(numbers, reverse=True), start=1):
        places[number].append(place)
    return [fmean(places[number]) for number in numbers]
