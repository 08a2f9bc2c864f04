"""How far two scorings agree, and what two opposite orders say of a judge."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from babylon_tasks.records.actions import AgentRun, RunStep
from babylon_tasks.records.traces import Outcome
from babylon_tasks.scoring.agreement import Pairs, compare_pairs, ranks, spearman
from babylon_tasks.scoring.judge.bill import Bill
from babylon_tasks.scoring.judge.check import check
from babylon_tasks.scoring.judge.client import Judged
from babylon_tasks.scoring.scorer import Group


def test_spearman_by_hand() -> None:
    # Ranks 0 1 2 3 against 0 1 3 2: 1 - 6 · (1 + 1) / (4 · 15) = 0.8
    assert spearman([1, 2, 3, 4], [10, 20, 40, 30]) == pytest.approx(0.8)
    assert spearman([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)
    # A tie takes the mean rank: 0.5 0.5 2 against 0 1 2, Pearson 1.5 / sqrt(1.5 · 2)
    assert spearman([5, 5, 9], [1, 2, 3]) == pytest.approx(0.8660, abs=1e-4)
    assert spearman([5, 5, 5], [1, 2, 3]) is None


def test_pairs_by_hand() -> None:
    # a b c d are 1 2 2 3, then 1 3 2 2. ab, ac and ad keep their order, bd turns; bc was tied, cd
    # is. Of 6 pairs 5 are ordered on each side: (3 - 1) / sqrt(5 · 5).
    pairs = compare_pairs([1, 2, 2, 3], [1, 3, 2, 2])
    assert pairs == Pairs(total=6, kept=3, changed=1, tied_in_ours=1, tied_in_theirs=1)
    assert pairs.kendall == pytest.approx(0.4)
    assert pairs.changed_share == pytest.approx(1 / 6)


def test_pairs_in_extremes() -> None:
    assert compare_pairs([1, 2, 3], [4, 5, 6]).kendall == 1
    assert compare_pairs([1, 2, 3], [6, 5, 4]).kendall == -1
    assert compare_pairs([1, 2, 3], [6, 5, 4]).changed_share == 1
    # A tie in both, and one in theirs alone: of 3 pairs 2 are ordered in ours, none in theirs.
    flat = compare_pairs([5, 5, 9], [1, 1, 1])
    assert flat == Pairs(total=3, kept=0, changed=0, tied_in_ours=1, tied_in_theirs=3)
    assert (flat.kendall, flat.changed_share) == (None, 0)
    for numbers in ([], [7.0]):
        lonely = compare_pairs(numbers, numbers)
        assert (lonely.kendall, lonely.changed_share) == (None, None)


def test_ranks_by_hand() -> None:
    assert ranks([0.5, 0.9, 0.1]) == [2, 1, 3]
    assert ranks([0.5, 0.9, 0.5, 0.1, 0.5]) == [3, 1, 3, 5, 3]  # places 2, 3 and 4
    assert ranks([]) == []


def group(size: int) -> Group:
    names = [f"t{n}" for n in range(size)]
    return Group(
        "2025-01-15T10:00",
        [Outcome(name, name, 100.0 * n, 1, 0, 1, {}, 1, "h") for n, name in enumerate(names)],
        {
            name: AgentRun(name, name, (RunStep(0, "BUY", {"n": n}, True, None, None, None, ""),))
            for n, name in enumerate(names)
        },
        [],
    )


class Biased:
    """A judge who knows the P&L, and adds `bias` to the first half of what it is shown."""

    def __init__(self, bias: float) -> None:
        self.bias = bias
        self.orders: list[list[str]] = []
        self.bought = {group(4).window_id: Bill(2, 20, None)}

    def room(self, context: str) -> int:
        return 30_000

    async def ask(self, window_id: str, shown: Any, context: str, *, again: bool) -> Any:
        assert again
        ids = [each.trajectory_id for each in shown]
        self.orders.append(ids)
        half = len(ids) // 2
        return {
            each: Judged(0.1 * int(each[1:]) + (self.bias if place < half else 0.0), "")
            for place, each in enumerate(ids)
        }


@pytest.mark.parametrize("size", [4, 5])
def test_the_bias_towards_the_first_half_is_found(size: int) -> None:
    judge = Biased(0.07)
    found = asyncio.run(check(group(size), judge))  # type: ignore[arg-type]
    assert judge.orders[0] == judge.orders[1][::-1]
    assert found.position_bias == pytest.approx(0.07)
    assert found.largest_change == pytest.approx(0.07)
    # 0.07 is less than the 0.1 between neighbours: every order is right.
    assert found.self_consistency == pytest.approx(1)
    assert found.agreement_with_pnl == pytest.approx(1)
    assert found.agreement_with_heuristic == pytest.approx(1)
