"""The scorers by their names."""

from __future__ import annotations

from collections.abc import Callable

from babylon_tasks.errors import JudgeUnavailable, UserError
from babylon_tasks.records.scores import JUDGED, Score
from babylon_tasks.scoring.blend import Blend
from babylon_tasks.scoring.correctness import Correctness
from babylon_tasks.scoring.heuristic import Heuristic
from babylon_tasks.scoring.judge.client import Judge
from babylon_tasks.scoring.rubric import Rubric
from babylon_tasks.scoring.ruler import Ruler
from babylon_tasks.scoring.scorer import Group, Scorer
from babylon_tasks.settings import Settings
from babylon_tasks.work.context import Context

WITHOUT_JUDGE: dict[str, Scorer] = {scorer.name: scorer for scorer in (Heuristic(), Correctness())}
SCORERS = (*WITHOUT_JUDGE, *JUDGED)


class _NoJudge:
    """Stands in for a judge with unusable settings: its windows show why, and wait or fall back."""

    sees_runs = False
    rubric: Rubric | None = None

    def __init__(self, name: str, why: str) -> None:
        self.name = name
        self._why = why

    async def score(self, group: Group) -> list[Score]:
        raise JudgeUnavailable(self._why)


def judged_scorers(context: Context, on_answer: Callable[[int, int], None]) -> dict[str, Scorer]:
    """Return the scorers that ask a judge, for one task; `on_answer` is the `Ruler`'s."""
    try:
        judge = Judge(context)
    except UserError as error:
        return {name: _NoJudge(name, str(error)) for name in JUDGED}
    return asking(judge, context.settings, on_answer)


def asking(
    judge: Judge,
    settings: Settings,
    on_answer: Callable[[int, int], None] = lambda answered, asked: None,
) -> dict[str, Scorer]:
    """Return the scorers that ask this judge; `on_answer` is the `Ruler`'s."""
    ruler = Ruler(judge, settings.judge_model, on_answer)
    return {"ruler": ruler, "blend": Blend(ruler, settings.ruler_weight)}
