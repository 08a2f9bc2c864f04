"""A scorer's verdict on one group: its scores, and whether a step can learn from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

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

    The scorer sees the runs that were not done badly by a version of the lineage; those that were
    get the lowest of its scores. Runs for exams alone are scored with the others, but whether a
    step can learn from the group is for the others to say.

    Raises:
        JudgeUnavailable, JudgeFault, ServerUnavailable: As `Scorer.score` does.
    """
    why_skip = _too_small(group, settings.min_agents_per_window)
    if why_skip:
        return Verdict(scorer.name, [], why_skip)
    scores = await scorer.score(group)
    lowest = min(score.score for score in scores)
    scores = [*scores, *(_floored(outcome, lowest) for outcome in group.floored)]
    exam_only = {o.trajectory_id for o in group.everything() if o.exam_only}
    scores = [replace(score, exam_only=score.trajectory_id in exam_only) for score in scores]
    why_skip = no_signal(_rewards(group, scores, lowest), settings.min_reward_spread)
    return Verdict(scorer.name, scores, why_skip, scorer.rubric)


def _too_small(group: Group, min_agents: int) -> str | None:
    outcomes = group.everything()
    agents = len({o.agent_id for o in outcomes if not o.evaluation})
    if agents < min_agents:
        return f"{agents} agents with usable traces, needs {min_agents}"
    trainable = sum(o.trainable and not o.exam_only for o in outcomes)
    if trainable < 2:
        return f"{trainable} trainable trajectories, a comparison needs 2"
    graded = sum(not o.exam_only for o in group.outcomes)
    floored = sum(not o.exam_only for o in group.floored)
    if floored and graded < 2:
        return (
            f"{graded} trajectories to score, a comparison needs 2 "
            f"(of this lineage's own, {floored} were done badly)"
        )
    return None


def _floored(outcome: Outcome, lowest: float) -> Score:
    """Return the score of a run that a version of the lineage did badly."""
    return Score(
        trajectory_id=outcome.trajectory_id,
        agent_id=outcome.agent_id,
        score=lowest,
        raw_score=lowest,
        components={"floored": 1.0},
        reasoning=f"{outcome.floored}: a version of this lineage did this, so it gets the "
        "group's lowest score",
        content_hash=outcome.content_hash,
    )


def _rewards(group: Group, scores: Sequence[Score], lowest: float) -> list[float]:
    """Return the rewards of all that can be trained, a run's bad calls apart from the others."""
    outcomes = {o.trajectory_id: o for o in group.everything() if not o.exam_only}
    known = [(outcomes[s.trajectory_id], s.score) for s in scores if s.trajectory_id in outcomes]
    rewards = [score for outcome, score in known if outcome.text_bytes]
    return rewards + [lowest for outcome, _ in known if outcome.badly]
