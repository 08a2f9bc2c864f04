"""Rank correlation, and what two opposite orders say of a judge."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from babylon_tasks.records.actions import AgentRun, RunStep
from babylon_tasks.records.traces import Outcome
from babylon_tasks.scoring.judge.agreement import spearman
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

    tokens, usd = 20, None

    def __init__(self, bias: float) -> None:
        self.bias = bias
        self.orders: list[list[str]] = []

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
