"""Two deployments that share a Redis database by mistake: each has its own messages and workers."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis

from babylon_tasks.local.ports import free_port
from babylon_tasks.work.context import Context
from tests.acceptance.conftest import Deployment
from tests.hostile import message
from tests.rows import add_window, hours_ago, query, states

pytestmark = pytest.mark.slow

CELERY = ("celery", "-A", "babylon_tasks")
CPU = (*CELERY, "worker", "-Q", "cpu", "-c", "1")
GPU = (*CELERY, "worker", "-Q", "gpu", "-n", "gpu@%h")
BEAT = (*CELERY, "beat")


@pytest.fixture
def other(
    deployment: Deployment,
    make_context: Callable[..., Context],
    other_database_url: str,
    tmp_path: Path,
) -> Iterator[Deployment]:
    """A deployment on a database of its own and the Redis database of `deployment`."""
    folder = tmp_path / "other"
    folder.mkdir()
    store = str(folder / "checkpoints")
    context = make_context(database_url=other_database_url, checkpoint_store=store)
    made = Deployment(context, deployment.redis_url, folder)
    yield made
    made.stop()


@pytest.fixture
def client(deployment: Deployment) -> Iterator[redis.Redis]:
    """The Redis of both."""
    with redis.Redis.from_url(deployment.redis_url) as client:
        yield client


def wait_until_ready(deployment: Deployment) -> None:
    """Until a worker of this deployment takes messages and commands."""
    deployment.wait(lambda: " ready." in deployment.logs())


def answers(deployment: Deployment) -> list[str]:
    """The workers that a `celery inspect ping` of this deployment reaches, without their hosts."""
    asked = deployment.run(*CELERY, "inspect", "ping", "--json")
    assert asked.returncode == 0, asked.stderr
    return [name.partition("@")[0] for name in json.loads(asked.stdout)]


def test_each_worker_takes_its_own_messages(
    deployment: Deployment, other: Deployment, client: redis.Redis
) -> None:
    window = hours_ago(2)
    for each in (deployment, other):
        add_window(each.context, window)
    deployment.start(*CPU, "-n", "cpu@%h")
    wait_until_ready(deployment)
    assert other.call("babylon", "windows", "enqueue").returncode == 0
    assert deployment.call("babylon", "windows", "enqueue").returncode == 0
    deployment.wait(lambda: states(deployment.context) == {window: "scored"})
    assert states(other.context) == {window: "due"}
    status = json.loads(other.call("babylon", "status", "--json").stdout)
    assert status["queues"] == {"cpu": 1, "gpu": 0}
    other.start(*CPU, "-n", "cpu@%h")  # of the same name
    other.wait(lambda: states(other.context) == {window: "scored"})
    for each in (deployment, other):
        gpu = each.key("gpu")
        each.wait(lambda gpu=gpu: client.llen(gpu) == 1)


@pytest.mark.slow
def test_broadcasts_reach_ones_own_workers_alone(deployment: Deployment, other: Deployment) -> None:
    ours = deployment.start(*CPU, "-n", "ours@%h")
    theirs = other.start(*CPU, "-n", "theirs@%h")
    wait_until_ready(deployment)
    wait_until_ready(other)
    assert answers(deployment) == ["ours"]
    assert answers(other) == ["theirs"]
    other.run(*CELERY, "control", "shutdown")
    assert theirs.wait(timeout=30) == 0
    assert answers(deployment) == ["ours"]
    assert ours.poll() is None


def test_flower_shows_its_own_deployment(
    deployment: Deployment, other: Deployment, client: redis.Redis
) -> None:
    client.lpush(deployment.key("gpu"), "{}", "{}")
    client.lpush(other.key("gpu"), "{}")
    client.lpush("gpu", "{}")  # an older release's
    port = free_port()
    api = f"http://127.0.0.1:{port}/api"
    flower = (*CELERY, "flower", f"--port={port}")
    deployment.start(*flower, env={"FLOWER_UNAUTHENTICATED_API": "true"})
    deployment.wait(lambda: bool(_get(f"{api}/queues/length")))
    lengths = _get(f"{api}/queues/length")["active_queues"]
    assert {each["name"]: each["messages"] for each in lengths} == {"cpu": 0, "gpu": 2}
    deployment.start(*CPU, "-n", "ours@%h")
    other.start(*CPU, "-n", "theirs@%h")
    other.start(*BEAT)
    other.wait(lambda: bool(query(other.context, "SELECT FROM rl.canaries WHERE queue = 'cpu'")))

    def workers() -> list[str]:
        return [name.partition("@")[0] for name in _get(f"{api}/workers?refresh=1")]

    deployment.wait(lambda: workers() == ["ours"])
    assert _get(f"{api}/tasks") == {}  # those of `theirs` would be here
    metrics = httpx.get(f"http://127.0.0.1:{port}/metrics").text
    assert 'babylon_queue_messages{queue="gpu"} 2.0' in metrics


def _get(url: str) -> dict[str, Any]:
    try:
        answer = httpx.get(url, timeout=10)
    except httpx.HTTPError:
        return {}
    return dict(answer.json()) if answer.status_code == 200 else {}


def test_an_older_releases_messages_stay_where_they_are(
    deployment: Deployment, client: redis.Redis
) -> None:
    """Its keys have no prefix. Both releases work, since Postgres decides."""
    window = hours_ago(2)
    add_window(deployment.context, window)
    client.lpush("cpu", json.dumps(message("babylon.produce")))
    for role in ((*CPU, "-n", "cpu@%h"), GPU, BEAT):
        deployment.start(*role)
    deployment.wait(lambda: states(deployment.context) == {window: "trained"})
    assert client.llen("cpu") == 1
    client.flushall()
    add_window(deployment.context, hours_ago(3))
    deployment.wait(lambda: states(deployment.context).get(hours_ago(3)) == "trained")
    assert [key for key in client.scan_iter() if not key.startswith(b"babylon:")] == []


def test_without_postgres_a_command_says_so_in_one_line(deployment: Deployment) -> None:
    away = {"DATABASE_URL": "postgresql://u:s3cret@127.0.0.1:1/x"}
    asked = deployment.run(*CELERY, "inspect", "ping", env=away)
    said = asked.stdout + asked.stderr
    assert asked.returncode != 0
    assert "cannot reach Postgres at 127.0.0.1:1/x" in said
    assert "Traceback" not in said
    assert "s3cret" not in said
    doctor = deployment.call("babylon", "doctor", "--json", env=away)
    ok = {each["check"]: each["ok"] for each in json.loads(doctor.stdout)}
    assert (ok["Postgres"], ok["Redis"], ok["queues"]) == (False, True, False)
