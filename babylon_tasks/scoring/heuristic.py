"""Upstream's formula, which needs nothing but how a run ended."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from babylon_tasks.records.scores import Score
from babylon_tasks.records.traces import Outcome
from babylon_tasks.scoring.rubric import Rubric
from babylon_tasks.scoring.scorer import Group


class Heuristic:
    """Upstream's simplified trainer's score, from P&L and the number of steps."""

    name = "heuristic"
    sees_runs = False
    rubric: Rubric | None = None

    async def score(self, group: Group) -> list[Score]:
        """At once; it asks nobody."""
        return heuristic(group.outcomes)


def heuristic(outcomes: Sequence[Outcome]) -> list[Score]:
    """Upstream's formula, an agent at a time; each of an agent's trajectories gets its score.

    0.5 · clamp((ΣP&L + 1000) / 2000, 0, 1) + 0.3 · wins / (wins + losses) + 0.2 · min(1, steps/20),
    where a trajectory with P&L above 0 is a win and below 0 a loss, the rate is 0.5 without either,
    and sums run over the agent's trajectories. Source: Babylon's `BabylonTrainer.score_locally`.
    """
    by_agent: dict[str, list[Outcome]] = defaultdict(list)
    for outcome in outcomes:
        by_agent[outcome.agent_id].append(outcome)
    return [
        Score(
            trajectory_id=outcome.trajectory_id,
            agent_id=agent_id,
            score=score,
            raw_score=score,
            components=components,
            reasoning=_explain(own, components),
            content_hash=outcome.content_hash,
        )
        for agent_id, own in by_agent.items()
        for score, components in [_score_agent(own)]
        for outcome in own
    ]


def _score_agent(own: Sequence[Outcome]) -> tuple[float, dict[str, float]]:
    pnl = sum(o.pnl for o in own)
    wins = sum(o.pnl > 0 for o in own)
    losses = sum(o.pnl < 0 for o in own)
    components = {
        "pnl": max(0.0, min(1.0, (pnl + 1000) / 2000)),
        "win_rate": wins / (wins + losses) if wins + losses else 0.5,
        "activity": min(1.0, sum(o.steps for o in own) / 20),
    }
    score = 0.5 * components["pnl"] + 0.3 * components["win_rate"] + 0.2 * components["activity"]
    return score, components


def _explain(own: Sequence[Outcome], components: dict[str, float]) -> str:
    pnl = sum(o.pnl for o in own)
    steps = sum(o.steps for o in own)
    return (
        f"heuristic: P&L {pnl:+.2f} ({components['pnl']:.2f}), "
        f"win rate {components['win_rate']:.0%}, {steps} actions ({components['activity']:.2f})"
    )
