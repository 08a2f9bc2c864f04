"""RULER: a judge who knows the outcomes compares a window's trajectories, several at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

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

_SPLITS = 2  # a question without a usable answer is split into halves, and these once more

Judgments = list[dict[str, Judged]]  # one dict a question: trajectory id → judged


class Ruler:
    """Scores by `judge`: one question if all fit into its context, else groups with anchors.

    `on_answer` gets how many questions are through, of how many that were asked so far.
    """

    name = "ruler"
    sees_runs = True

    def __init__(
        self, judge: Judge, judge_model: str, on_answer: Callable[[int, int], None]
    ) -> None:
        self._judge, self._on_answer = judge, on_answer
        self._asked = self._through = 0  # questions of all windows
        self.rubric: Rubric | None = judge.rubric
        self._rubric_hash = judge.rubric.hash
        self._judge_model = judge_model

    async def score(self, group: Group) -> list[Score]:
        """Score by the judge's numbers on one scale; `raw_score` is the mean of its own numbers.

        Raises:
            JudgeUnavailable: The judge cannot be asked now.
            JudgeFault: It gave no usable answer, even for the halves of a question.
            ServerUnavailable: Postgres does not answer.
        """
        # In a thread: long runs take seconds to condense, and leases must be renewed meanwhile.
        exhibit = await asyncio.to_thread(prepare, group, self._judge)
        if len(set(exhibit.texts.values())) == 1:
            # Nothing to compare, so no judge is paid: scores are equal, and the window is skipped.
            return [_alike(outcome) for outcome in group.outcomes]
        judgments = await self._compare(exhibit)
        numbers = [{each: judged.score for each, judged in one.items()} for one in judgments]
        scaled = on_one_scale(numbers)
        scores = []
        for outcome in group.outcomes:
            trajectory_id = outcome.trajectory_id
            several = [one[trajectory_id] for one in judgments if trajectory_id in one]
            scores.append(
                Score(
                    trajectory_id=trajectory_id,
                    agent_id=outcome.agent_id,
                    score=scaled[trajectory_id],
                    raw_score=sum(each.score for each in several) / len(several),
                    components={"groups": float(len(several))} if len(judgments) > 1 else {},
                    reasoning=f"ruler: {several[0].explanation}",
                    content_hash=outcome.content_hash,
                    judge_model=self._judge_model,
                    rubric_hash=self._rubric_hash,
                )
            )
        return scores

    async def _compare(self, exhibit: Exhibit) -> Judgments:
        """Return the judge's answers, one dict a question; anchors are in several."""
        questions = plan(exhibit.ranked, exhibit.together, seed=exhibit.window_id)
        self._asked += len(questions)
        answers = await all_done(self._ask(exhibit, members, _SPLITS) for members in questions)
        return [one for judgments in answers for one in judgments]

    async def _ask(self, exhibit: Exhibit, members: Sequence[str], splits: int) -> Judgments:
        """Ask one question, or two smaller ones if it gets no usable answer."""
        try:
            shown = exhibit.shown(members)
            return [await self._judge.ask(exhibit.window_id, shown, exhibit.context)]
        except JudgeFault:
            smaller = halves(members, exhibit.ranked, exhibit.window_id) if splits else []
            if not smaller:
                raise
            self._asked += len(smaller)
        finally:
            self._through += 1
            self._on_answer(self._through, self._asked)
        answers = await all_done(self._ask(exhibit, half, splits - 1) for half in smaller)
        return [one for judgments in answers for one in judgments]


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
