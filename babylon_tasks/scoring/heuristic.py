"""Upstream's formula, which needs only a run's outcome."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from babylon_tasks.records.scores import Score
from babylon_tasks.records.traces import Outcome
from babylon_tasks.scoring.rubric import Rubric
from babylon_tasks.scoring.scorer import Group


class Heuristic:
    """The score of upstream's simplified trainer, from P&L and the number of steps."""

    name = "heuristic"
    sees_runs = False
    rubric: Rubric | None = None

    async def score(self, group: Group) -> list[Score]:
        """Score by the formula; no judge is asked."""
        return heuristic(group.outcomes)


def heuristic(outcomes: Sequence[Outcome]) -> list[Score]:
    """Score each agent by upstream's formula; all its trajectories get the agent's score.

    0.5 · clamp((ΣP&L + 1000) / 2000, 0, 1) + 0.3 · wins / (wins + losses) + 0.2 · min(1, steps/20).
    A trajectory with P&L above 0 is a win, one below 0 a loss; without either the rate is 0.5. Sums
    run over the agent's trajectories; those of rows with `isEvaluation` are summed apart, so that
    they move no reward. Source: Babylon's `BabylonTrainer.score_locally`.
    """
    by_agent: dict[tuple[str, bool], list[Outcome]] = defaultdict(list)
    for outcome in outcomes:
        by_agent[outcome.agent_id, outcome.evaluation].append(outcome)
    return [
        Score(
            trajectory_id=outcome.trajectory_id,
            agent_id=agent_id,
            score=score,
            raw_score=score,
            components=components,
            reasoning=_explain(of_agent, components),
            content_hash=outcome.content_hash,
        )
        for (agent_id, _), of_agent in by_agent.items()
        for score, components in [_score_agent(of_agent)]
        for outcome in of_agent
    ]


def _score_agent(outcomes: Sequence[Outcome]) -> tuple[float, dict[str, float]]:
    pnl = sum(o.pnl for o in outcomes)
    wins = sum(o.pnl > 0 for o in outcomes)
    losses = sum(o.pnl < 0 for o in outcomes)
    components = {
        "pnl": max(0.0, min(1.0, (pnl + 1000) / 2000)),
        "win_rate": wins / (wins + losses) if wins + losses else 0.5,
        "activity": min(1.0, sum(o.steps for o in outcomes) / 20),
    }
    score = 0.5 * components["pnl"] + 0.3 * components["win_rate"] + 0.2 * components["activity"]
    return score, components


def _explain(outcomes: Sequence[Outcome], components: dict[str, float]) -> str:
    pnl = sum(o.pnl for o in outcomes)
    steps = sum(o.steps for o in outcomes)
    return (
        f"heuristic: P&L {pnl:+.2f} ({components['pnl']:.2f}), "
        f"win rate {components['win_rate']:.0%}, {steps} actions ({components['activity']:.2f})"
    )
