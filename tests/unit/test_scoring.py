"""The heuristic against numbers worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from babylon_tasks.records.scores import no_signal
from babylon_tasks.records.traces import Outcome
from babylon_tasks.scoring.heuristic import heuristic


def outcome(trajectory: str, agent: str, pnl: float, steps: int) -> Outcome:
    return Outcome(trajectory, agent, pnl, steps, 0, steps, {}, 100, "hash")


def test_the_formula_by_hand() -> None:
    scores = heuristic([outcome("t1", "a", 200.0, 10), outcome("t2", "b", -400.0, 30)])
    # a: 0.5·(200+1000)/2000 + 0.3·1/1 + 0.2·10/20 = 0.3 + 0.3 + 0.1
    # b: 0.5·(-400+1000)/2000 + 0.3·0/1 + 0.2·1    = 0.15 + 0 + 0.2
    assert [s.score for s in scores] == pytest.approx([0.7, 0.35], abs=1e-12)
    assert scores[0].components == {"pnl": 0.6, "win_rate": 1.0, "activity": 0.5}
    assert all(s.raw_score == s.score for s in scores)


def test_an_agents_trajectories_are_scored_together() -> None:
    scores = heuristic(
        [outcome("t1", "a", 100.0, 4), outcome("t2", "b", 0.0, 1), outcome("t3", "a", -300.0, 8)]
    )
    # a: ΣP&L -200 → 0.5·800/2000 = 0.2; 1 win of 2 → 0.15; 12 steps → 0.12: 0.47
    # b: P&L 0 → 0.25; neither win nor loss → 0.15; 1 step → 0.01: 0.41
    by_id = {s.trajectory_id: s.score for s in scores}
    assert by_id == pytest.approx({"t1": 0.47, "t3": 0.47, "t2": 0.41}, abs=1e-12)


def test_an_agents_evaluations_move_no_reward_of_it() -> None:
    examined = replace(outcome("t2", "a", -400.0, 30), evaluation=True)
    scores = heuristic([outcome("t1", "a", 200.0, 10), examined])
    # as in the first test, where they are of two agents
    assert [s.score for s in scores] == pytest.approx([0.7, 0.35], abs=1e-12)


@pytest.mark.parametrize(("pnl", "expected"), [(5e3, 1.0), (-5e3, 0.0), (1e308, 1.0)])
def test_pnl_is_clamped(pnl: float, expected: float) -> None:
    assert heuristic([outcome("t", "a", pnl, 1)])[0].components["pnl"] == expected


def test_nobody_scores_nothing() -> None:
    assert heuristic([]) == []


def test_rounding_noise_is_no_signal() -> None:
    assert "spread" in (no_signal([0.1, 0.1, 0.3 - 0.2], 1e-9) or "")
    assert "spread" in (no_signal([0.5, 0.5], 0.0) or "")
    assert "0.0010" in (no_signal([0.500, 0.501], 0.01) or "")
    assert "1 trainable" in (no_signal([0.5], 0.01) or "")
    assert no_signal([0.5, 0.52], 0.01) is None
