"""The weighted mean of the judge's score and the heuristic."""

from __future__ import annotations

from dataclasses import replace

from babylon_tasks.records.scores import Score
from babylon_tasks.scoring.heuristic import heuristic
from babylon_tasks.scoring.ruler import Ruler
from babylon_tasks.scoring.scorer import Group


class Blend:
    """ruler_weight · RULER + (1 - ruler_weight) · heuristic; `raw_score` is the judge's number."""

    name = "blend"
    sees_runs = True

    def __init__(self, ruler: Ruler, ruler_weight: float) -> None:
        self._ruler = ruler
        self.rubric = ruler.rubric
        self._weight = ruler_weight

    async def score(self, group: Group) -> list[Score]:
        """Score by both; each trajectory's components hold the two scores.

        Raises:
            JudgeUnavailable, JudgeFault, ServerUnavailable: As `Ruler.score` does.
        """
        by_money = {score.trajectory_id: score for score in heuristic(group.outcomes)}
        blended = []
        for judged in await self._ruler.score(group):
            money = by_money[judged.trajectory_id]
            components = {**money.components, "ruler": judged.score, "heuristic": money.score}
            blended.append(
                replace(
                    judged,
                    score=self._weight * judged.score + (1 - self._weight) * money.score,
                    components=components,
                    reasoning=f"{judged.reasoning}; {money.reasoning}",
                )
            )
        return blended
