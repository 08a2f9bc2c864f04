"""What Celery says of tasks that fail: to Flower by events, in the result, and in the log."""

from __future__ import annotations

import json

import pytest
import redis

from tests.acceptance.conftest import Deployment
from tests.flower_events import watching
from tests.hostile import message
from tests.rows import hours_ago, scored_windows, states

WORKER = ("celery", "-A", "babylon_tasks", "worker", "-c", "1")
NO_DISK = {"CHECKPOINT_STORE": "/dev/null/none", "RETRY_SECONDS": "1"}


@pytest.mark.slow
def test_a_failed_task_has_failed_for_celery_and_is_one_line_of_the_log(
    deployment: Deployment,
) -> None:
    window = hours_ago(2)
    scored_windows(deployment.context, 2)
    deployment.start(*WORKER, "-Q", "cpu", "-n", "cpu@%h")
    unfit = deployment.start(*WORKER, "-Q", "gpu", "-n", "gpu@%h", env=NO_DISK)
    cpu, gpu = deployment.key("cpu"), deployment.key("gpu")
    with (
        watching(deployment.redis_url, deployment.key("")) as watcher,
        redis.Redis.from_url(deployment.redis_url, decode_responses=True) as client,
    ):
        client.lpush(
            cpu, json.dumps(message("babylon.enqueue", [["2025-01-15T10:00"]], task_id="bad"))
        )
        client.lpush(cpu, json.dumps(message("babylon.enqueue", [7], task_id="odd")))
        client.lpush(gpu, json.dumps(message("babylon.train", task_id="step")))
        deployment.wait(lambda: watcher.of("task-failed").keys() >= {"bad", "odd", "step"})
        result = json.loads(client.get("babylon:celery-task-meta-step") or "{}")
        assert not client.exists("babylon:celery-task-meta-bad", "babylon:celery-task-meta-odd")
    failed = watcher.of("task-failed")
    assert failed["bad"]["exception"].startswith("no trajectories in window 2025-01-15T10:00")
    assert failed["odd"]["exception"].startswith("TypeError at workers/")
    assert failed["step"]["exception"].startswith("cannot write the checkpoint")
    assert (result["status"], result["result"]["exc_type"]) == ("FAILURE", "UserError")
    assert "cannot write the checkpoint" in result["result"]["exc_message"][0]
    assert states(deployment.context) == {window: "scored"}  # no window is to blame
    log = deployment.logs()
    lines = [line for line in log.splitlines() if " ERROR " in line]
    (bad,) = (line for line in lines if "no trajectories" in line)
    assert " ERROR workers.tasks: enqueue: no trajectories in window 2025-01-15T10:00" in bad
    assert any(" ERROR workers.tasks: train: cannot write" in line for line in lines)
    assert log.count("Traceback (most recent call last)") == 1  # of the one that nobody expects
    assert "TypeError: 'int' object is not iterable" in log
    unfit.kill()  # SIGTERM would wait for its task
