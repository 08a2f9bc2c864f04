"""The literal commands of the README, working on each other's output."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis

from babylon_tasks.local.ports import free_port
from tests.acceptance.conftest import Deployment
from tests.rows import add_window, hours_ago, query, states

CPU = ("celery", "-A", "babylon_tasks", "worker", "-Q", "cpu", "-n", "cpu@%h", "-c", "2")
GPU = ("celery", "-A", "babylon_tasks", "worker", "-Q", "gpu")
BEAT = ("celery", "-A", "babylon_tasks", "beat")
FLOWER = ("celery", "-A", "babylon_tasks", "flower")


def all_trained(deployment: Deployment, *windows: str) -> bool:
    return states(deployment.context) == dict.fromkeys(windows, "trained")


def published(deployment: Deployment) -> bool:
    heads = query(deployment.context, "SELECT * FROM rl.heads WHERE step = published_step")
    return bool(heads) and heads[0]["step"] > 0


def test_all_roles_turn_windows_into_a_served_version(deployment: Deployment) -> None:
    """In a folder that has a package `workers` of its own."""
    (deployment.folder / "workers").mkdir()
    (deployment.folder / "workers" / "__init__.py").write_text("raise ImportError('not ours')")
    windows = [hours_ago(h) for h in range(2, 12)]
    for window in windows:
        add_window(deployment.context, window)
    add_window(deployment.context, hours_ago(20), spread=0.0)
    port = free_port()
    deployment.start(*CPU)
    deployment.start(*GPU)
    # Beat comes last, so that Flower below sees every event.
    deployment.start(*FLOWER, f"--port={port}", env={"FLOWER_UNAUTHENTICATED_API": "true"})
    deployment.wait_for_page(f"http://127.0.0.1:{port}/healthcheck")
    deployment.start(*BEAT)
    deployment.wait(
        lambda: (
            all(states(deployment.context).get(w) == "trained" for w in windows)
            and published(deployment)
        )
    )
    assert states(deployment.context)[hours_ago(20)] == "skipped"
    steps = query(deployment.context, "SELECT step, window_ids FROM rl.steps ORDER BY step")
    assert [s["step"] for s in steps] == list(range(1, len(steps) + 1))
    trained = [w for s in steps for w in s["window_ids"]]
    assert sorted(trained) == sorted(windows)
    models = query(deployment.context, 'SELECT status FROM trained_models ORDER BY "createdAt"')
    assert [m["status"] for m in models] == ["ready"] * (len(models) - 1) + ["deployed"]
    deployment.wait(lambda: _flower_shows(port, "score"))
    deployment.wait(lambda: len(query(deployment.context, "SELECT * FROM rl.canaries")) == 2)
    status = json.loads(deployment.run("babylon", "status", "--json").stdout)
    assert status["windows"]["trained"] == len(windows)
    assert status["version"] == f"v1.0.{len(steps) - 1}"
    assert 0 <= status["canary_age_seconds"]["cpu"] < 30
    metrics = httpx.get(f"http://127.0.0.1:{port}/metrics").text
    assert f'babylon_windows{{lineage="babylon-agent",state="trained"}} {len(windows)}.0' in metrics
    for line in (
        'babylon_canary_age_seconds{queue="cpu"}',
        'babylon_queue_messages{queue="gpu"}',
        'babylon_up{server="redis"} 1.0',
        f'babylon_step{{lineage="babylon-agent",which="newest"}} {len(steps)}.0',
    ):
        assert line in metrics


def _flower_shows(port: int, name: str) -> bool:
    tasks = httpx.get(f"http://127.0.0.1:{port}/api/tasks").json()
    return any(t["name"].endswith(name) and t["state"] == "SUCCESS" for t in tasks.values())


ENQUEUE = [
    ("babylon", "windows", "enqueue"),
    ("babylon", "windows", "enqueue", "WINDOW"),
    ("celery", "-A", "babylon_tasks", "call", "babylon.produce"),
    ("celery", "-A", "babylon_tasks", "call", "babylon.enqueue", "--args", '[["WINDOW"]]'),
    ("-m", "tests.acceptance.two_lines"),
]


@pytest.mark.slow
def test_any_scheduler_can_enqueue(deployment: Deployment) -> None:
    """Without beat: one call from outside sets the whole chain off, each time for a new window.

    The workers have the other pools that are supported.
    """
    deployment.start(*CPU, "-P", "solo")
    deployment.start(*GPU, "--autoscale", "2,1")
    root = str(Path(__file__).parents[2])
    windows: list[str] = []
    for hours, enqueue in enumerate(ENQUEUE, start=2):
        windows.append(hours_ago(hours))
        add_window(deployment.context, windows[-1])
        command = [part.replace("WINDOW", windows[-1]) for part in enqueue]
        done = deployment.run(*command, env={"PYTHONPATH": root})
        assert done.returncode == 0, f"{command}: {done.stderr}"
        deployment.wait(lambda: all_trained(deployment, *windows) and published(deployment))


@pytest.mark.slow
def test_a_worker_that_may_not_train_says_so_and_does_not(deployment: Deployment) -> None:
    add_window(deployment.context, hours_ago(2))
    deployment.start(*GPU, env={"TRAIN_RL_LOCAL": ""})
    deployment.start(*CPU)
    deployment.call("babylon", "windows", "enqueue")
    deployment.wait(lambda: "training is off: set TRAIN_RL_LOCAL=true" in deployment.logs())
    assert states(deployment.context) == {hours_ago(2): "scored"}


@pytest.mark.slow
def test_a_machine_that_cannot_train_leaves_the_messages_to_others(deployment: Deployment) -> None:
    """Without beat: the one message that it took comes to the machine that can."""
    add_window(deployment.context, hours_ago(2))
    unfit = {"CHECKPOINT_STORE": "/dev/null/none", "RETRY_SECONDS": "30"}
    deployment.start(*GPU, "-n", "nodisk@%h", env=unfit)
    deployment.start(*CPU)
    deployment.call("babylon", "windows", "enqueue")
    deployment.wait(lambda: "cannot write the checkpoint" in deployment.logs())
    deployment.start(*GPU, "-n", "gpu@%h")
    deployment.wait(lambda: all_trained(deployment, hours_ago(2)))


@pytest.mark.parametrize(
    ("role", "change", "code", "says"),
    [
        (CPU, {"REDIS_URL": ""}, 2, "REDIS_URL is not set"),
        (CPU, {"DATABASE_URL": ""}, 2, "DATABASE_URL is not set"),
        (BEAT, {"REDIS_URL": "sentinel://u:s3cret@h"}, 2, "REDIS_URL names Sentinels"),
        (FLOWER, {"MAX_ATTEMPTS": "s3cret"}, 2, "MAX_ATTEMPTS: "),
        ((*CPU[:3], "inspect", "ping"), {"REDIS_URL": ""}, 2, "REDIS_URL is not set"),
        (
            (*CPU[:3], "call", "babylon.produce"),
            {"CELERY_BROKER_URL": "redis://:s3cret@h/0"},
            2,
            "CELERY_BROKER_URL is set, and the broker is that of REDIS_URL: unset it",
        ),
        (GPU, {"DATABASE_URL": "postgresql://u:s3cret@127.0.0.1:1/x"}, 75, "Postgres"),
        (BEAT, {"DATABASE_URL": "postgresql://u:s3cret@127.0.0.1:1/x"}, 75, "Postgres"),
        (FLOWER, {"DATABASE_URL": ""}, 2, "DATABASE_URL is not set"),
        (FLOWER, {"DATABASE_URL": "postgresql://u:s3cret@127.0.0.1:1/x"}, 75, "Postgres"),
        (FLOWER, {"FLOWER_ADDRESS": "0.0.0.0"}, 2, "FLOWER_BASIC_AUTH"),
        (FLOWER, {"FLOWER_BASIC_AUTH": "user:s3cret,s3cret"}, 2, "Commas separate users"),
        ((*FLOWER, "--basic-auth=s3cret"), {}, 2, "has no colon: write user:password"),
        ((*FLOWER, "--persistent", "--db=/tmp/flower"), {}, 2, "others may write /tmp,"),
        ((*CPU, "-P", "threads"), {}, 2, "this pool (-P) is not supported"),
        ((*CPU, "-Q", "cpu,urgent"), {}, 2, "there is no queue urgent: -Q takes cpu and gpu"),
    ],
)
def test_roles_that_cannot_work_say_why_in_one_line(
    deployment: Deployment, role: tuple[str, ...], change: dict[str, str], code: int, says: str
) -> None:
    """Code 2: a person must change something; 75: a supervisor should start it again."""
    done = deployment.run(*role, env=change)
    said = done.stdout + done.stderr
    assert done.returncode == code
    assert says in said
    assert "Traceback" not in said
    assert "s3cret" not in said


@pytest.mark.slow
def test_every_role_writes_json_and_ends_with_0_on_sigterm(deployment: Deployment) -> None:
    """As `systemctl stop` and `docker compose stop` end them; for a step in work, see chaos/."""
    window = hours_ago(2)
    add_window(deployment.context, window)
    deployment.env["LOG_FORMAT"] = "json"
    ports = free_port(), free_port()
    flower, serve = (*FLOWER, f"--port={ports[0]}"), ("-m", "workers.serve", f"--port={ports[1]}")
    roles = [deployment.start(*role) for role in (CPU, GPU, BEAT, flower, serve)]
    deployment.wait_for_page(f"http://127.0.0.1:{ports[0]}/healthcheck")
    deployment.wait_for_page(f"http://127.0.0.1:{ports[1]}/healthz")
    deployment.wait(lambda: len(query(deployment.context, "SELECT * FROM rl.canaries")) == 2)
    deployment.wait(lambda: all_trained(deployment, window) and published(deployment))
    for process in roles:
        process.terminate()
    assert [process.wait(timeout=15) for process in roles] == [0, 0, 0, 0, 0]
    cpu, gpu, beat, *others = (_json_lines(deployment, number) for number in range(len(roles)))
    assert all(others)
    for said in (cpu, gpu, beat):
        assert any(line["logger"].startswith("celery.") for line in said)
    (scored,) = (line for line in cpu if line["event"].startswith("scored "))
    assert (scored["lineage"], scored["window"]) == ("babylon-agent", window)
    (committed,) = (line for line in gpu if line["event"].startswith("step 1 ("))
    assert (committed["lineage"], committed["windows"]) == ("babylon-agent", [window])
    assert (committed["step"], type(committed["token"])) == (1, int)


# Ours for people, Celery's and Tornado's.
_OTHER_FORM = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} |\[\d{4}-|\[[DIWEC] \d{6} ")


def _json_lines(deployment: Deployment, number: int) -> list[dict[str, Any]]:
    """The JSON of a role's log. The rest is what Celery prints to stdout for people: a banner."""
    said = (deployment.folder / f"{number}.log").read_text().splitlines()
    rest = [line for line in said if not line.startswith("{")]
    assert not [line for line in rest if _OTHER_FORM.match(line)]
    return [json.loads(line) for line in said if line.startswith("{")]


@pytest.mark.slow
def test_queues_are_bounded_while_nobody_works(deployment: Deployment) -> None:
    """Whatever was sent how often; and `doctor` says who is missing."""
    with redis.Redis.from_url(deployment.redis_url) as client:
        cpu, gpu = deployment.key("cpu"), deployment.key("gpu")
        client.rpush(cpu, *["{}"] * 12_000)
        deployment.start(*BEAT, env={"SWEEP_SECONDS": "0.02", "PRODUCE_SECONDS": "0.02"})
        deployment.wait(lambda: client.llen(cpu) == 10_000)
        client.delete(cpu)
        deployment.wait(lambda: client.llen(cpu) == 72)
        time.sleep(1)
        assert (client.llen(cpu), client.llen(gpu)) == (72, 1)
    told = json.loads(deployment.run("babylon", "doctor", "--json").stdout)
    (queues,) = (finding for finding in told if finding["check"] == "queues")
    assert not queues["ok"]
    assert "is `celery -A babylon_tasks worker -Q cpu` running?" in queues["detail"]
