"""One GPU worker for several lineages, of which some cannot be trained on its machine."""

from __future__ import annotations

import shutil

import pytest

from babylon_tasks import pipeline
from babylon_tasks.records.lineages import Lineage
from babylon_tasks.store import lineages
from babylon_tasks.work.context import Context
from babylon_tasks.work.fleet import Fleet
from tests.acceptance.conftest import Deployment
from tests.rows import add_window, hours_ago, one, query
from workers.gpu.client import TrainerProcess

pytestmark = pytest.mark.slow

GPU = ("celery", "-A", "babylon_tasks", "worker", "-Q", "gpu", "-n", "gpu@%h")
WINDOWS = [hours_ago(hours) for hours in (4, 3, 2)]


def add_lineage(deployment: Deployment, name: str) -> Context:
    """A lineage with scored windows, which takes its first turn after those added before."""
    context = deployment.context
    with context.database.transaction() as tx:
        assert lineages.create(tx, Lineage(name, "none", primary=False, created_by="test"))
    made = Fleet(context.database, context.settings, context.holder).context(name)
    pipeline.produce(made)
    pipeline.score(made)
    return made


def windows_by_state(deployment: Deployment, name: str) -> dict[str, int]:
    text = "SELECT state, count(*) AS n FROM rl.windows WHERE model_name = %s GROUP BY state"
    return {row["state"]: row["n"] for row in query(deployment.context, text, name)}


def start_training(deployment: Deployment, **env: str) -> None:
    deployment.start(*GPU, env={"MAX_STEP_TOKENS": "1", "RETRY_SECONDS": "60", **env})
    done = deployment.run("celery", "-A", "babylon_tasks", "call", "babylon.train")
    assert done.returncode == 0, done.stderr


def test_a_lineage_that_cannot_be_loaded_harms_no_other(
    deployment: Deployment, trainer: TrainerProcess
) -> None:
    """Without beat: one message is enough, whoever's turn is first."""
    for window in WINDOWS:
        add_window(deployment.context, window)
    broken = add_lineage(deployment, "broken")
    report = pipeline.train(broken, trainer, only=WINDOWS[:1])
    assert report
    shutil.rmtree(report.checkpoint)
    add_lineage(deployment, "good")
    start_training(deployment)
    deployment.wait(lambda: windows_by_state(deployment, "good") == {"trained": 3})
    assert windows_by_state(deployment, "broken") == {"trained": 1, "scored": 2}
    waiting = one(
        deployment.context,
        """SELECT attempts, last_error FROM rl.windows
            WHERE model_name = 'broken' AND last_error IS NOT NULL""",
    )
    assert waiting["attempts"] == 0  # no window is to blame
    assert waiting["last_error"].startswith("CheckpointUnreadable: ")
    assert deployment.logs().count(" ERROR workers.tasks: train: ") == 1


def test_a_machine_that_can_train_none_does_not_try_them_all(deployment: Deployment) -> None:
    add_window(deployment.context, WINDOWS[0])
    for name in "abcd":
        add_lineage(deployment, name)
    start_training(deployment, CHECKPOINT_STORE="/dev/null/none")

    def failures() -> int:
        return deployment.logs().count(" ERROR workers.tasks: train: cannot write the checkpoint")

    deployment.wait(lambda: failures() == 2)
    # It rests, and says so where a canary would.
    deployment.wait(lambda: bool(query(deployment.context, "SELECT FROM rl.canaries")))
    assert failures() == 2
