"""What Celery says of tasks that fail: to Flower by events, in the result, and in the log."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import redis
from celery import Celery

from tests.acceptance.conftest import Deployment
from tests.hostile import message
from tests.rows import hours_ago, scored_windows, states

WORKER = ("celery", "-A", "babylon_tasks", "worker", "-c", "1")
NO_DISK = {"CHECKPOINT_STORE": "/dev/null/none", "RETRY_SECONDS": "1"}


@contextmanager
def failures(deployment: Deployment) -> Iterator[dict[str, dict[str, Any]]]:
    """Events of failed tasks by task id, as Flower receives them."""
    seen: dict[str, dict[str, Any]] = {}
    app = Celery("watcher", broker=deployment.redis_url, set_as_current=False)
    app.conf.broker_transport_options = {"global_keyprefix": deployment.key("")}
    with app.connection_for_read() as connection:
        receiver = app.events.Receiver(
            connection, handlers={"task-failed": lambda event: seen.update({event["uuid"]: event})}
        )
        over, ready = threading.Event(), threading.Event()

        def receive() -> None:
            with receiver.consumer_context(wakeup=False) as (connection, _, _):
                ready.set()
                while not over.is_set():
                    with suppress(TimeoutError):
                        connection.drain_events(timeout=0.2)

        thread = threading.Thread(target=receive, daemon=True)
        thread.start()
        assert ready.wait(10)
        try:
            yield seen
        finally:
            over.set()
            thread.join(10)


def test_a_failed_task_has_failed_for_celery_and_is_one_line_of_the_log(
    deployment: Deployment,
) -> None:
    window = hours_ago(2)
    scored_windows(deployment.context, 2)
    deployment.start(*WORKER, "-Q", "cpu", "-n", "cpu@%h")
    unfit = deployment.start(*WORKER, "-Q", "gpu", "-n", "gpu@%h", env=NO_DISK)
    cpu, gpu = deployment.key("cpu"), deployment.key("gpu")
    with (
        failures(deployment) as failed,
        redis.Redis.from_url(deployment.redis_url, decode_responses=True) as client,
    ):
        client.lpush(
            cpu, json.dumps(message("babylon.enqueue", [["2025-01-15T10:00"]], task_id="bad"))
        )
        client.lpush(cpu, json.dumps(message("babylon.enqueue", [7], task_id="odd")))
        client.lpush(gpu, json.dumps(message("babylon.train", task_id="step")))
        deployment.wait(lambda: failed.keys() >= {"bad", "odd", "step"})
        result = json.loads(client.get("babylon:celery-task-meta-step") or "{}")
        assert not client.exists("babylon:celery-task-meta-bad", "babylon:celery-task-meta-odd")
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
