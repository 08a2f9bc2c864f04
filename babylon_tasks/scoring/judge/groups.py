"""Groups of trajectories that a judge sees together, if one prompt cannot hold the whole window.

A judge's numbers can be compared only within one prompt. So a few trajectories, the anchors, are in
every group, and `judge.scale` uses them to bring the groups to one scale.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256

ANCHORS = 4  # each costs a judgement in every group; benchmarks/judge_groups.py has the figures
_SMALLEST_TO_SPLIT = 4  # two anchors, and one more for each half


def plan(ranked: Sequence[str], size: int, seed: str) -> list[list[str]]:
    """Return the groups to judge, each of at most `size` ids, in the order that the judge sees.

    `ranked` are distinct ids, best guess first; the guess only serves to make the groups alike. If
    all ids fit, there is one group. Otherwise all groups share the same anchors (`size // 2`, but
    at least 2 and at most 4), spread over the ranking, and each other id is in one group. Every
    group covers the whole range, and sizes differ by one at most. The same arguments give the same
    groups on any machine, so groups that were judged before a crash need no new judgement.

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
    """Split a group without a usable answer into two that share anchors.

    A quarter of the group, 2 to 4 ids, are the anchors of both halves; each other id is in one
    half. A group of fewer than 4 cannot be split: the result is empty. A half may be split again,
    down to groups of 3.

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
    """Return `count` groups with all anchors in each; the other ids are dealt by rank.

    Every second round goes backwards, so that no group gets the best id of each round.
    """
    # The middles of equal stretches of the ranking: the ids at its ends may be outliers.
    places = {(2 * n + 1) * len(ranked) // (2 * anchors) for n in range(anchors)}
    groups = [[ranked[place] for place in sorted(places)] for _ in range(count)]
    others = [each for place, each in enumerate(ranked) if place not in places]
    for start in range(0, len(others), count):
        turn = groups if start // count % 2 == 0 else groups[::-1]
        for group, each in zip(turn, others[start : start + count], strict=False):
            group.append(each)
    return [_shuffled(group, f"{seed} {number}") for number, group in enumerate(groups)]


def _shuffled(ids: Sequence[str], seed: str) -> list[str]:
    """Return the ids in an order from which the judge cannot guess a rank or an anchor."""
    return sorted(ids, key=lambda each: sha256(f"{seed}\n{each}".encode()).digest())
