"""A scorer's verdict on one group: its scores, and whether a step can learn from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from babylon_tasks.records.scores import Score, no_signal
from babylon_tasks.records.traces import Outcome
from babylon_tasks.scoring.rubric import Rubric
from babylon_tasks.scoring.scorer import Group, Scorer
from babylon_tasks.settings import Settings


@dataclass(frozen=True, slots=True)
class Verdict:
    """Scores and their scorer, or the reason to skip the window.

    `fell_back`: a judge was asked first, and perhaps paid, but none of the scores is the judge's.
    """

    scorer: str
    scores: Sequence[Score]
    why_skip: str | None
    rubric: Rubric | None = None
    fell_back: bool = False


async def verdict_on(group: Group, scorer: Scorer, settings: Settings) -> Verdict:
    """Score a group, unless it is too small to train: then no judge is asked.

    Raises:
        JudgeUnavailable, JudgeFault, ServerUnavailable: As `Scorer.score` does.
    """
    why_skip = _too_small(group.outcomes, settings.min_agents_per_window)
    if why_skip:
        return Verdict(scorer.name, [], why_skip)
    scores = await scorer.score(group)
    trainable = {o.trajectory_id for o in group.outcomes if o.text_bytes}
    rewards = [s.score for s in scores if s.trajectory_id in trainable]
    why_skip = no_signal(rewards, settings.min_reward_spread)
    return Verdict(scorer.name, scores, why_skip, scorer.rubric)


def _too_small(outcomes: Sequence[Outcome], min_agents: int) -> str | None:
    agents = len({o.agent_id for o in outcomes})
    if agents < min_agents:
        return f"{agents} agents with usable traces, needs {min_agents}"
    trainable = sum(bool(o.text_bytes) for o in outcomes)
    return None if trainable > 1 else f"{trainable} trainable trajectories, a comparison needs 2"
