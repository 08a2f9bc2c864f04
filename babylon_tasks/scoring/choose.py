"""From a scorer's name to the scorer."""

from __future__ import annotations

from babylon_tasks.judge.judge import Judge
from babylon_tasks.scoring.blend import Blend
from babylon_tasks.scoring.correctness import Correctness
from babylon_tasks.scoring.heuristic import Heuristic
from babylon_tasks.scoring.ruler import Ruler
from babylon_tasks.scoring.scorer import Scorer
from babylon_tasks.worker import Worker

WITHOUT_JUDGE: dict[str, Scorer] = {scorer.name: scorer for scorer in (Heuristic(), Correctness())}
WITH_JUDGE = ("ruler", "blend")
SCORERS = (*WITHOUT_JUDGE, *WITH_JUDGE)


def judged_scorers(worker: Worker) -> dict[str, Scorer]:
    """Those that ask a judge, for one task; inside its event loop.

    Raises:
        UserError: No judge can be asked as it is set.
    """
    settings = worker.settings
    ruler = Ruler(Judge(worker), settings.judge_model)
    return {"ruler": ruler, "blend": Blend(ruler, settings.ruler_weight)}
