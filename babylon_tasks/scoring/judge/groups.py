"""Which trajectories a judge sees together, where a window holds more than one prompt can.

A judge's numbers can be compared within one prompt only. So a few trajectories, the anchors, are in
every group, and `judge.scale` brings the groups to one scale by them.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256

ANCHORS = 4  # more cost judgements in every group; benchmarks/judge_groups.py has the figures
_SMALLEST_TO_SPLIT = 4  # two anchors, and one more for each half


def plan(ranked: Sequence[str], size: int, seed: str) -> list[list[str]]:
    """Return the groups to judge, each of at most `size` ids, in the order that the judge sees.

    `ranked` are distinct ids, best guess first; the guess only serves to make the groups alike. One
    group where all fit. Otherwise all groups share the same anchors (4, or `size // 2` where that
    is fewer, but at least 2), spread over the ranking, and each other id is in one group. Every
    group covers the whole range, and their sizes differ by one at most. The same arguments give
    the same groups on any machine, so those that were judged before a crash need no new judgement.

    Raises:
        ValueError: Not all fit into one group, and `size` is less than 3.
    """
    if len(ranked) <= size:
        return [_shuffled(ranked, seed)] if ranked else []
    if size < 3:
        raise ValueError(f"groups of {size} cannot share 2 anchors and hold another: use 3 or more")
    anchors = max(2, min(ANCHORS, size // 2))
    count = -(-(len(ranked) - anchors) // (size - anchors))
    return _deal(ranked, anchors, count, seed)


def halves(group: Sequence[str], ranked: Sequence[str], seed: str) -> list[list[str]]:
    """Split a group that the judge could not answer for in two, which share anchors.

    A quarter of the group, 2 to 4 ids, are the anchors of both; each other id is in one half. Empty
    where the group is too small to split (fewer than 4): nothing is left but to give it up. A half
    may be split in its turn, down to groups of 3.

    Raises:
        ValueError: An id of the group is not in `ranked`.
    """
    if len(group) < _SMALLEST_TO_SPLIT:
        return []
    rank = {each: place for place, each in enumerate(ranked)}
    if unknown := [each for each in group if each not in rank]:
        raise ValueError(f"not in the ranking: {unknown}")
    anchors = max(2, min(ANCHORS, len(group) // 4))
    return _deal(sorted(group, key=rank.__getitem__), anchors, 2, f"{seed} half")


def _deal(ranked: Sequence[str], anchors: int, count: int, seed: str) -> list[list[str]]:
    """`count` groups: the anchors in all of them, the others forth and back in order of rank.

    Dealt so, as captains choose teams, no group gets the better of each round.
    """
    # The middles of so many equal stretches of the ranking: its very ends may be odd ones out.
    places = {(2 * n + 1) * len(ranked) // (2 * anchors) for n in range(anchors)}
    groups = [[ranked[place] for place in sorted(places)] for _ in range(count)]
    others = [each for place, each in enumerate(ranked) if place not in places]
    for start in range(0, len(others), count):
        turn = groups if start // count % 2 == 0 else groups[::-1]
        for group, each in zip(turn, others[start : start + count], strict=False):
            group.append(each)
    return [_shuffled(group, f"{seed} {number}") for number, group in enumerate(groups)]


def _shuffled(ids: Sequence[str], seed: str) -> list[str]:
    """In an order that says nothing: a judge must not learn a rank, or an anchor, from a place."""
    return sorted(ids, key=lambda each: sha256(f"{seed}\n{each}".encode()).digest())
