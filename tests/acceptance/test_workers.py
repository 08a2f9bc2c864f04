"""The literal commands of the README, working on each other's output."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import httpx
import pytest
import redis

from babylon_tasks.embedded import free_port
from tests.acceptance.conftest import Deployment
from tests.rows import add_window, hours_ago, one, query, states

CPU = ("celery", "-A", "babylon_tasks", "worker", "-Q", "cpu", "-n", "cpu@%h", "-c", "2")
GPU = ("celery", "-A", "babylon_tasks", "worker", "-Q", "gpu")
BEAT = ("celery", "-A", "babylon_tasks", "beat")
FLOWER = ("celery", "-A", "babylon_tasks", "flower")


def all_trained(deployment: Deployment, *windows: str) -> bool:
    return states(deployment.worker) == dict.fromkeys(windows, "trained")


def published(deployment: Deployment) -> bool:
    heads = query(deployment.worker, "SELECT * FROM rl.heads WHERE step = published_step")
    return bool(heads) and heads[0]["step"] > 0


def test_all_roles_turn_windows_into_a_served_version(deployment: Deployment) -> None:
    windows = [hours_ago(h) for h in range(2, 12)]
    for window in windows:
        add_window(deployment.worker, window)
    add_window(deployment.worker, hours_ago(20), spread=0.0)
    port = free_port()
    deployment.start(*CPU)
    deployment.start(*GPU)
    # Beat comes last, so that Flower below sees every event.
    deployment.start(*FLOWER, f"--port={port}", env={"FLOWER_UNAUTHENTICATED_API": "true"})
    deployment.wait(lambda: _answers(f"http://127.0.0.1:{port}/healthcheck"))
    deployment.start(*BEAT)
    deployment.wait(
        lambda: (
            all(states(deployment.worker).get(w) == "trained" for w in windows)
            and published(deployment)
        )
    )
    assert states(deployment.worker)[hours_ago(20)] == "skipped"
    steps = query(deployment.worker, "SELECT step, window_ids FROM rl.steps ORDER BY step")
    assert [s["step"] for s in steps] == list(range(1, len(steps) + 1))
    trained = [w for s in steps for w in s["window_ids"]]
    assert sorted(trained) == sorted(windows)
    models = query(deployment.worker, "SELECT status FROM trained_models")
    assert {m["status"] for m in models} == {"ready"}
    deployment.wait(lambda: _flower_shows(port, "score", windows[0]))
    status = json.loads(deployment.run("babylon", "status", "--json").stdout)
    assert status["windows"]["trained"] == len(windows)
    assert status["version"] == f"v1.0.{len(steps) - 1}"


def _answers(url: str) -> bool:
    try:
        return httpx.get(url).status_code == 200
    except httpx.HTTPError:
        return False


def _flower_shows(port: int, name: str, window_id: str) -> bool:
    tasks = httpx.get(f"http://127.0.0.1:{port}/api/tasks").json()
    return any(t["name"].endswith(name) and window_id in t["args"] for t in tasks.values())


def test_a_gpu_worker_has_one_pool_process_a_visible_gpu(deployment: Deployment) -> None:
    gpus = "GPU-11111111-aaaa,GPU-22222222-bbbb,GPU-33333333-cccc"
    deployment.start(*GPU, env={"CUDA_VISIBLE_DEVICES": gpus})
    deployment.wait(lambda: _pool_size(deployment) == 3)


def _pool_size(deployment: Deployment) -> int:
    asked = deployment.run("celery", "-A", "babylon_tasks", "inspect", "stats", "--json")
    if asked.returncode:
        return 0
    (stats,) = json.loads(asked.stdout).values()
    return len(stats["pool"]["processes"])


@pytest.mark.parametrize(
    "enqueue",
    [
        ("babylon", "windows", "enqueue"),
        ("babylon", "windows", "enqueue", hours_ago(2)),
        ("celery", "-A", "babylon_tasks", "call", "babylon.produce"),
        ("celery", "-A", "babylon_tasks", "call", "babylon.enqueue",
         "--args", json.dumps([[hours_ago(2)]])),
        ("-m", "tests.acceptance.two_lines"),
    ],
)  # fmt: skip
def test_any_scheduler_can_enqueue(deployment: Deployment, enqueue: tuple[str, ...]) -> None:
    """Without beat: one call from outside sets the whole chain off."""
    window = hours_ago(2)
    add_window(deployment.worker, window)
    deployment.start(*CPU)
    deployment.start(*GPU)
    root = str(Path(__file__).parents[2])
    done = deployment.run(*enqueue, env={"PYTHONPATH": root})
    assert done.returncode == 0, done.stderr
    deployment.wait(lambda: all_trained(deployment, window) and published(deployment))


def test_redis_may_lose_everything(deployment: Deployment) -> None:
    windows = [hours_ago(h) for h in range(2, 6)]
    for window in windows:
        add_window(deployment.worker, window)
    deployment.run("babylon", "windows", "enqueue")
    with redis.Redis.from_url(deployment.redis_url) as client:
        client.flushall()
    deployment.start(*CPU)
    deployment.start(*GPU)
    deployment.start(*BEAT)
    deployment.wait(lambda: all_trained(deployment, *windows) and published(deployment))


def test_killed_workers_are_followed_by_others(deployment: Deployment) -> None:
    """kill -9 of the whole GPU worker, its lease still running: the next one waits it out."""
    window = hours_ago(2)
    add_window(deployment.worker, window)
    query(
        deployment.worker,
        """INSERT INTO rl.leases (resource, holder, token, expires_at)
           VALUES ('model/babylon-agent', 'dead', nextval('rl.lease_tokens'),
                   now() + interval '2 seconds') RETURNING 1""",
    )
    first = deployment.start(*GPU, "-n", "first@%h")
    deployment.start(*CPU)
    deployment.start(*BEAT)
    deployment.wait(lambda: states(deployment.worker) == {window: "scored"})
    os.kill(first.pid, signal.SIGKILL)
    deployment.start(*GPU, "-n", "second@%h")
    deployment.wait(lambda: all_trained(deployment, window) and published(deployment))
    assert one(deployment.worker, "SELECT count(*) AS n FROM rl.steps")["n"] == 1


def test_hostile_messages_do_no_harm(deployment: Deployment) -> None:
    window = hours_ago(2)
    add_window(deployment.worker, window)
    call = ("celery", "-A", "babylon_tasks", "call")
    deployment.start(*CPU)
    deployment.start(*GPU)
    for name, args in [
        ("babylon.nonsense", "[]"),
        ("babylon.score", '["not a list", 2, 3]'),
        ("babylon.enqueue", '[["2025-99-99T00:00", "\'; DROP TABLE trajectories; --"]]'),
        ("babylon.train", '["other-model"]'),
    ]:
        deployment.run(*call, name, "--args", args)
    deployment.run("babylon", "windows", "enqueue")
    deployment.wait(lambda: all_trained(deployment, window))


def test_a_worker_that_may_not_train_says_so_and_does_not(deployment: Deployment) -> None:
    add_window(deployment.worker, hours_ago(2))
    deployment.start(*GPU, env={"TRAIN_RL_LOCAL": ""})
    deployment.start(*CPU)
    deployment.run("babylon", "windows", "enqueue")
    deployment.wait(lambda: "training is off: set TRAIN_RL_LOCAL=true" in deployment.logs())
    assert states(deployment.worker) == {hours_ago(2): "scored"}


@pytest.mark.parametrize(
    ("role", "change", "says"),
    [
        (CPU, {"REDIS_URL": ""}, "REDIS_URL is not set"),
        (CPU, {"DATABASE_URL": ""}, "DATABASE_URL is not set"),
        (GPU, {"DATABASE_URL": "postgresql://u:s3cret@127.0.0.1:1/x"}, "Postgres"),
        (BEAT, {"DATABASE_URL": "postgresql://u:s3cret@127.0.0.1:1/x"}, "Postgres"),
        (FLOWER, {"FLOWER_ADDRESS": "0.0.0.0"}, "FLOWER_BASIC_AUTH"),
    ],
)
def test_roles_that_cannot_work_say_why_in_one_line(
    deployment: Deployment, role: tuple[str, ...], change: dict[str, str], says: str
) -> None:
    done = deployment.run(*role, env=change)
    said = done.stdout + done.stderr
    assert done.returncode != 0
    assert says in said
    assert "Traceback" not in said
    assert "s3cret" not in said
