"""A score without a judge: bets that came true, risk-adjusted return, actions that worked.

It costs nothing, but it needs market outcomes. A component without data is 0.5.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise

from babylon_tasks.records.actions import AgentRun, RunStep, failed_share, pnl_path
from babylon_tasks.records.markets import Market
from babylon_tasks.records.scores import Score
from babylon_tasks.scoring.rubric import Rubric
from babylon_tasks.scoring.scorer import Group

WEIGHTS = {"correctness": 0.5, "risk_adjusted": 0.3, "success": 0.2}

_EXITS = ("SELL", "CLOSE")  # in an action's type: the action sells the side that it names


class Correctness:
    """0.5 · correctness + 0.3 · risk-adjusted return + 0.2 · action success."""

    name = "correctness"
    sees_runs = True
    rubric: Rubric | None = None

    async def score(self, group: Group) -> list[Score]:
        """Score each trajectory by itself."""
        markets = {key: m for m in group.markets for key in (m.ticker, m.id) if key}
        scores = []
        for outcome in group.outcomes:
            components = rate(group.runs[outcome.trajectory_id], markets)
            score = sum(WEIGHTS[name] * value for name, value in components.items())
            scores.append(
                Score(
                    trajectory_id=outcome.trajectory_id,
                    agent_id=outcome.agent_id,
                    score=score,
                    raw_score=score,
                    components=components,
                    reasoning="correctness: "
                    + ", ".join(f"{name} {value:.2f}" for name, value in components.items()),
                    content_hash=outcome.content_hash,
                )
            )
        return scores


def rate(run: AgentRun, markets: Mapping[str, Market]) -> dict[str, float]:
    """Return the three components, each in [0, 1].

    Correctness is the share of decided bets that came true: a purchase of a side that won, or a
    sale of a side that lost. Risk-adjusted return is the Sharpe ratio of the P&L's changes (mean
    over deviation; 1 or -1 if there is only one change), mapped by (1 + tanh) / 2. Success is the
    share of actions that worked.
    """
    decided = [
        right
        for step in run.steps
        if step.is_trade and step.success and (right := _was_right(step, markets)) is not None
    ]
    return {
        "correctness": sum(decided) / len(decided) if decided else 0.5,
        "risk_adjusted": (1 + math.tanh(_sharpe(pnl_path(run)))) / 2,
        "success": 1 - failed_share(run),
    }


def _was_right(step: RunStep, markets: Mapping[str, Market]) -> bool | None:
    market = markets.get(step.market or "")
    right = market.was_right(step.side or "") if market else None
    if right is None:
        return None
    return right != any(word in step.action.upper() for word in _EXITS)


def _sharpe(path: list[float]) -> float:
    changes = [after - before for before, after in pairwise(path)]
    if not changes:
        return 0.0
    mean = sum(changes) / len(changes)
    deviation = math.sqrt(sum((change - mean) ** 2 for change in changes) / len(changes))
    if deviation < 1e-9:  # cents are the smallest change, so all changes were equal
        if abs(mean) < 1e-9:
            return 0.0
        return math.copysign(math.inf if len(changes) > 1 else 1.0, mean)
    return mean / deviation
