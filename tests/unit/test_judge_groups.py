"""The groups that a judge sees: who meets whom, and that nobody is forgotten."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from babylon_tasks.scoring.judge.groups import halves, plan


def agents(count: int) -> list[str]:
    return [f"a{number:03}" for number in range(count)]


def anchors_of(groups: list[list[str]]) -> set[str]:
    return set.intersection(*(set(group) for group in groups))


def test_the_plan_by_hand() -> None:
    groups = plan(agents(10), 6, "s")
    # min(4, 6/2) = 3 anchors, the middles of thirds of 10: ranks 10/6, 30/6, 50/6 → 1, 5, 8.
    # The other 7 need ⌈7/3⌉ = 3 groups, dealt forth and back: 0 2 3 | 7 6 4 | 9
    assert [sorted(group) for group in groups] == [
        ["a000", "a001", "a005", "a007", "a008", "a009"],
        ["a001", "a002", "a005", "a006", "a008"],
        ["a001", "a003", "a004", "a005", "a008"],
    ]


def test_one_group_where_all_fit() -> None:
    (group,) = plan(agents(12), 12, "s")
    assert sorted(group) == agents(12)
    assert group != agents(12)
    assert plan(agents(1), 1, "s") == [["a000"]]
    assert plan([], 12, "s") == []


@pytest.mark.parametrize("size", [-1, 0, 1, 2])
def test_too_small_a_size_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match="3 or more"):
        plan(agents(3), size, "s")


@given(st.integers(0, 150), st.integers(3, 40), st.text(max_size=5))
def test_everyone_is_judged_in_groups_alike(count: int, size: int, seed: str) -> None:
    ranked = agents(count)
    groups = plan(ranked, size, seed)
    sizes = [len(group) for group in groups]
    times = Counter(each for group in groups for each in group)
    assert set(times) == set(ranked)
    assert all(len(set(group)) == len(group) <= size for group in groups)
    if len(groups) > 1:
        anchors = anchors_of(groups)
        assert len(anchors) == max(2, min(4, size // 2))
        assert all(times[each] == (len(groups) if each in anchors else 1) for each in ranked)
        assert max(sizes) - min(sizes) <= 1
        # No fewer groups would do
        assert (len(groups) - 1) * (size - len(anchors)) < count - len(anchors)


def test_each_group_covers_the_range() -> None:
    ranked = agents(64)
    for group in plan(ranked, 12, "s"):
        places = sorted(ranked.index(each) for each in group)
        assert places[0] < 8 + 1
        assert places[-1] >= 56 - 1
        assert sum(places) / len(places) == pytest.approx(31.5, abs=3)
    assert sorted(anchors_of(plan(ranked, 12, "s"))) == ["a008", "a024", "a040", "a056"]


def test_the_same_seed_gives_the_same_groups() -> None:
    assert plan(agents(30), 8, "s") == plan(agents(30), 8, "s")
    assert plan(agents(30), 8, "s") != plan(agents(30), 8, "t")
    # Pinned: another order after an upgrade would have all groups judged again.
    assert plan(agents(5), 5, "s") == [["a000", "a002", "a004", "a001", "a003"]]


def test_a_place_says_nothing() -> None:
    ranked = agents(20)
    first = Counter(plan(ranked, 20, f"window-{number}")[0][0] for number in range(2000))
    # 100 each expected, standard deviation √(2000·0.05·0.95) = 9.7
    assert set(first) == set(ranked)
    assert all(50 < times < 150 for times in first.values())
    # Nor do anchors stand at the same places in each group
    groups = plan(agents(64), 12, "s")
    assert len({tuple(group.index(each) for each in ("a008", "a024")) for group in groups}) > 4


def test_halves_by_hand() -> None:
    ranked = agents(20)
    group = ["a011", "a003", "a001", "a007", "a019", "a005"]
    # By rank 1 3 5 7 11 19; ⌊6/4⌋ → 2 anchors, the middles of two halves: places 1, 4 → 3, 11.
    # The others 1 5 7 19, dealt forth and back: the ends to one, the middle to the other.
    assert [sorted(half) for half in halves(group, ranked, "s")] == [
        ["a001", "a003", "a011", "a019"],
        ["a003", "a005", "a007", "a011"],
    ]
    assert halves(group, ranked, "s") == halves(group[::-1], ranked, "s")


def test_too_small_a_group_is_not_halved() -> None:
    assert halves(agents(3), agents(3), "s") == []
    assert [len(half) for half in halves(agents(4), agents(4), "s")] == [3, 3]


def test_a_stranger_in_the_group_is_refused() -> None:
    with pytest.raises(ValueError, match="nobody"):
        halves([*agents(4), "nobody"], agents(4), "s")


@given(st.integers(4, 40), st.text(max_size=5))
def test_halves_are_smaller_and_overlap(count: int, seed: str) -> None:
    ranked = agents(60)
    group = ranked[7 : 7 + count]
    one, other = halves(group, ranked, seed)
    assert set(one) | set(other) == set(group)
    assert 2 <= len(set(one) & set(other)) <= 4
    assert max(len(one), len(other)) < count
    assert abs(len(one) - len(other)) <= 1


def test_halving_comes_to_an_end() -> None:
    ranked = agents(16)
    left, judged = [ranked], 0
    while left:
        judged += 1
        left += halves(left.pop(), ranked, "s")
    assert judged < 150
