"""What anybody who reaches Redis could push: a worker refuses it and takes the next message."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import redis

from tests.acceptance.conftest import Deployment
from tests.hostile import hostile, message
from tests.rows import add_window, hours_ago, states

pytestmark = pytest.mark.slow

CPU = ("celery", "-A", "babylon_tasks", "worker", "-Q", "cpu", "-n", "cpu@%h", "-c", "1")
CONTROL = "/0.celery.pidbox"  # every worker listens to it


def good(name: str) -> str:
    """A message that a worker answers without doing anything: no window is scored."""
    return json.dumps(message("babylon.train", task_id=name))


def test_a_worker_outlives_them_all(deployment: Deployment, tmp_path: Path) -> None:
    trap = tmp_path / "unpickled"
    context = deployment.start(*CPU)
    cpu = deployment.key("cpu")
    with redis.Redis.from_url(deployment.redis_url) as client:

        def answered(names: set[str]) -> None:
            def done() -> set[str]:
                return {n for n in names if client.exists(f"babylon:celery-task-meta-{n}")}

            deployment.wait(lambda: done() == names or context.poll() is not None)
            missed = sorted(names - done())
            assert not missed, f"it ended before {missed}\n{deployment.logs()[-3000:]}"

        deployment.wait(lambda: bool(client.exists(deployment.key("_kombu.binding.cpu"))))
        client.lpush(cpu, good("first"))
        answered({"first"})
        pushed = set()
        for number, (name, data) in enumerate(hostile(trap).items()):
            follower = f"{number:02} after {name}"
            client.lpush(cpu, data, good(follower))
            pushed.add(follower)
        answered(pushed)
        for number, data in enumerate([b"\xff", b"7", b"[]", b"{}", json.dumps(message())]):
            client.publish(deployment.key(CONTROL), data)
            client.lpush(cpu, good(f"control {number}"))
            answered({f"control {number}"})
        client.lpush(cpu, *(b"\xff garbage %d" % number for number in range(10_000)))
        client.lpush(cpu, good("last"))
        answered({"last"})
        window = hours_ago(2)
        add_window(deployment.context, window)
        client.lpush(cpu, json.dumps(message("babylon.produce")))
        deployment.wait(lambda: states(deployment.context) == {window: "scored"})
        # An unacknowledged one would come back when the worker ends, and end its successor too.
        deployment.wait(lambda: client.hlen(deployment.key("unacked")) == 0)
    assert not trap.exists()
    lines = deployment.logs().splitlines()
    assert not [line for line in lines if line.startswith("ERROR forged")]
    assert max(map(len, lines)) < 10_000
