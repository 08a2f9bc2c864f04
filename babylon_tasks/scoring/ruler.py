"""RULER: a judge compares the trajectories of a window, several at a time, knowing the outcomes."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from babylon_tasks.errors import JudgeFault
from babylon_tasks.records.scores import Score
from babylon_tasks.records.traces import Outcome
from babylon_tasks.scoring.judge.client import Judge, Judged
from babylon_tasks.scoring.judge.groups import halves, plan
from babylon_tasks.scoring.judge.prompt import Exhibit, prepare
from babylon_tasks.scoring.judge.scale import on_one_scale
from babylon_tasks.scoring.rubric import Rubric
from babylon_tasks.scoring.scorer import Group
from babylon_tasks.work.aio import all_done

_SPLITS = 2  # of a question without a usable answer: into halves, and those once more

Judgments = list[dict[str, Judged]]  # a mapping a question: trajectory id → judged


class Ruler:
    """Scores by `judge`; one question where all fit its context, else groups with anchors."""

    name = "ruler"
    sees_runs = True

    def __init__(self, judge: Judge, judge_model: str) -> None:
        self._judge = judge
        self.rubric: Rubric | None = judge.rubric
        self._judge_model = judge_model

    async def score(self, group: Group) -> list[Score]:
        """Score by the judge's numbers on one scale; `raw_score` is the mean of what it gave."""
        # In a thread: long runs take seconds to condense, and leases must be renewed meanwhile.
        exhibit = await asyncio.to_thread(prepare, group, self._judge)
        if len(set(exhibit.texts.values())) == 1:
            # Nothing to compare, so nobody is paid: equal scores, of which nobody learns.
            return [_alike(outcome) for outcome in group.outcomes]
        judged = await self._compare(exhibit)
        numbers = [{each: found.score for each, found in one.items()} for one in judged]
        scaled = on_one_scale(numbers)
        scores = []
        for outcome in group.outcomes:
            found = [one[outcome.trajectory_id] for one in judged if outcome.trajectory_id in one]
            scores.append(
                Score(
                    trajectory_id=outcome.trajectory_id,
                    agent_id=outcome.agent_id,
                    score=scaled[outcome.trajectory_id],
                    raw_score=sum(each.score for each in found) / len(found),
                    components={"groups": float(len(found))} if len(judged) > 1 else {},
                    reasoning=f"ruler: {found[0].explanation}",
                    content_hash=outcome.content_hash,
                    judge_model=self._judge_model,
                )
            )
        return scores

    async def _compare(self, exhibit: Exhibit) -> Judgments:
        """Return what the judge says, a mapping a question; anchors are in several."""
        questions = plan(exhibit.ranked, exhibit.together, seed=exhibit.window_id)
        answers = await all_done(self._ask(exhibit, members, _SPLITS) for members in questions)
        return [one for several in answers for one in several]

    async def _ask(self, exhibit: Exhibit, members: Sequence[str], splits: int) -> Judgments:
        """One question, or two smaller ones where it gets no usable answer."""
        try:
            shown = exhibit.shown(members)
            return [await self._judge.ask(exhibit.window_id, shown, exhibit.context)]
        except JudgeFault:
            smaller = halves(members, exhibit.ranked, exhibit.window_id) if splits else []
            if not smaller:
                raise
        answers = await all_done(self._ask(exhibit, half, splits - 1) for half in smaller)
        return [one for several in answers for one in several]


def _alike(outcome: Outcome) -> Score:
    return Score(
        trajectory_id=outcome.trajectory_id,
        agent_id=outcome.agent_id,
        score=0.5,
        raw_score=0.5,
        components={},
        reasoning="ruler: all runs look the same to a judge, who was not asked",
        content_hash=outcome.content_hash,
    )
