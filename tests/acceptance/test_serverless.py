"""The seed's second flow: with a key of W&B, from listing to an answer; and who dies on the way."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from pydantic import SecretStr

pytest.importorskip("art")

from babylon_tasks.pipeline import SCORE_BATCH
from tests import wandb_server as wandb
from tests.acceptance.conftest import Deployment
from tests.chaos.injection import Injection, injecting
from tests.rows import add_window, hours_ago, one, query, states
from tests.wandb_server import KEY, WandbServer
from workers.gpu import slots
from workers.gpu.client import TrainerOptions, TrainerProcess

pytestmark = pytest.mark.slow

MODULE = ("-m", "babylon_tasks")
NAME = "wandb-artifact:///team/babylon-rl/babylon-agent:step1"
POST = "art.serverless.client.TrainingJobs.create"


@pytest.fixture
def server() -> Iterator[WandbServer]:
    with WandbServer() as running:
        yield running


@pytest.fixture
def on_wandb(deployment: Deployment, server: WandbServer) -> Deployment:
    """What upstream's user sets: a key and a base model, and here the server's address."""
    del deployment.env["TRAINER"]
    deployment.env |= {
        "WANDB_API_KEY": KEY,
        "BASE_MODEL": "OpenPipe/Qwen3-14B-Instruct",
        "SERVERLESS_URL": server.url,
        "REDIS_URL": "",
        "WANDB_MODE": "disabled",  # of the steps' log; for that see test_step_log.py
    }
    return deployment


@pytest.fixture(scope="module")
def warm() -> Iterator[TrainerProcess]:
    """A trainer process for all commands in this process: it imports ART's client for seconds."""
    process = TrainerProcess(
        TrainerOptions("serverless", None, "cpu-0", 0.5, 60.0, 600.0, wandb_api_key=SecretStr(KEY))
    )
    yield process
    process.close()


@pytest.fixture
def warm_trainer(warm: TrainerProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands in this process train with that process, and leave it to the next one."""
    kept = SimpleNamespace(step=warm.step, close=lambda: None)
    monkeypatch.setattr(slots, "make_trainer", lambda slot: kept)


def test_from_listing_to_an_answer(on_wandb: Deployment, server: WandbServer) -> None:
    window = hours_ago(2)
    add_window(on_wandb.context, window, recorded=True)
    add_window(on_wandb.context, hours_ago(3), agents=1, recorded=True)
    listed = on_wandb.call(*MODULE, env={"MODE": "list"})
    assert listed.stdout == f"Ready windows (1):\n  {window}: 3 agents\n"
    env = {"MODE": "single", "LOG_LEVEL": "DEBUG", "WANDB_MODE": "offline"}
    done = on_wandb.run(*MODULE, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines() == [
        f"Training on: {window}",
        f"Model: babylon-agent-v1.0.0 (step 1): {NAME}",
        "Response: Wait for a dip.",
    ]
    assert KEY not in done.stderr
    model = one(on_wandb.context, "SELECT * FROM trained_models")
    assert (model["status"], model["storagePath"]) == ("deployed", NAME)
    assert model["baseModel"] == "OpenPipe/Qwen3-14B-Instruct"
    step = one(on_wandb.context, "SELECT * FROM rl.steps")
    assert (step["trainer"], step["metrics"]["inference_name"]) == ("serverless", NAME)
    assert [p.name for p in Path(step["checkpoint"]).glob("*.json")] != []
    assert server.posts == 1
    assert server.asked[0]["model"] == NAME


@pytest.mark.parametrize(
    ("env", "recorded", "says"),
    [
        ({"BASE_MODEL": "Qwen/Qwen2.5-0.5B-Instruct"}, True, "or TRAINER=torch to train on this"),
        ({}, False, "LOGPROBS_URL"),
        ({"WANDB_API_KEY": "wrong-key"}, True, "W&B refuses WANDB_API_KEY"),
        ({"WANDB_API_KEY": "", "TRAINER": "serverless"}, True, "WANDB_API_KEY is not set"),
    ],
)
def test_what_w_and_b_would_not_train_ends_with_one_line(
    on_wandb: Deployment, server: WandbServer, env: dict[str, str], recorded: bool, says: str
) -> None:
    add_window(on_wandb.context, hours_ago(2), recorded=recorded)
    done = on_wandb.call(*MODULE, env={"MODE": "single", "LOG_LEVEL": "ERROR", **env})
    assert done.returncode == 2, done.stdout + done.stderr
    assert says in done.stderr.strip().splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert server.posts == 0


def test_w_and_b_away_ends_with_one_line_and_blames_nobody(
    on_wandb: Deployment, warm_trainer: None
) -> None:
    add_window(on_wandb.context, hours_ago(2), recorded=True)
    env = {"MODE": "single", "SERVERLESS_URL": "http://127.0.0.1:1/v1"}
    done = on_wandb.call(*MODULE, env=env)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "W&B does not answer" in done.stderr.strip().splitlines()[-1]
    row = one(on_wandb.context, "SELECT * FROM rl.windows")
    assert (row["state"], row["attempts"]) == ("scored", 0)


def test_mode_continuous_outlives_a_window_without_logprobs(
    on_wandb: Deployment, server: WandbServer
) -> None:
    context, (old, new) = on_wandb.context, (hours_ago(3), hours_ago(2))
    add_window(context, old)
    on_wandb.start(*MODULE, env={"MODE": "continuous", "RETRY_SECONDS": "600"})
    refused = "SELECT FROM rl.windows WHERE last_error IS NOT NULL"
    on_wandb.wait(lambda: bool(query(context, refused)))
    add_window(context, new, recorded=True)
    on_wandb.wait(lambda: states(context) == {old: "scored", new: "trained"})


def test_babylon_train_goes_on_beyond_windows_without_logprobs(
    on_wandb: Deployment, server: WandbServer, warm_trainer: None
) -> None:
    """More of them than one claim scores, and then one that can be trained."""
    for hours in range(3, 3 + SCORE_BATCH):
        add_window(on_wandb.context, hours_ago(hours), agents=2)
    add_window(on_wandb.context, hours_ago(2), recorded=True)
    done = on_wandb.call("babylon", "train", "--json", env={"RETRY_SECONDS": "600"})
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(done.stdout)
    assert told["steps"] == [{"step": 1, "version": "v1.0.0"}]
    assert told["left"] == {"scored": SCORE_BATCH}


def test_babylon_train_says_why_nothing_was_trained(
    on_wandb: Deployment, server: WandbServer
) -> None:
    add_window(on_wandb.context, hours_ago(2))
    done = on_wandb.call("babylon", "train", env={"RETRY_SECONDS": "600"})
    assert done.returncode == 2
    assert "LOGPROBS_URL" in done.stderr.strip().splitlines()[-1]


# --- killed ----------------------------------------------------------------------------------


def killed(deployment: Deployment, injection: Injection | None = None) -> subprocess.Popen[str]:
    """A MODE=single that will be killed."""
    env = {"MODE": "single"}
    if injection:
        ours = os.environ.get("PYTHONPATH", "")
        env |= injecting(injection, python_path=ours)
    return deployment.start(*MODULE, env=env)


@pytest.mark.parametrize(
    ("injection", "jobs_before"),
    [
        # The intent is written, and the id is not.
        (Injection(POST, "kill_parent"), 0),
        (Injection(POST, "kill_parent", at="after"), 1),
    ],
    ids=["before the POST", "after the POST"],
)
def test_killed_around_the_post_one_job_and_one_step(
    on_wandb: Deployment,
    server: WandbServer,
    warm_trainer: None,
    injection: Injection,
    jobs_before: int,
) -> None:
    window = hours_ago(2)
    add_window(on_wandb.context, window, recorded=True)
    if not jobs_before:
        on_wandb.env["SERVERLESS_LOST_SECONDS"] = "3"
    assert killed(on_wandb, injection).wait(timeout=80) == -signal.SIGKILL
    (job,) = query(on_wandb.context, "SELECT * FROM rl.jobs")
    assert job["ended_at"] is None
    assert server.posts == jobs_before
    _finished_by_another(on_wandb, server, window)


def test_killed_in_the_post_one_job_and_one_step(
    on_wandb: Deployment, server: WandbServer, warm_trainer: None
) -> None:
    """W&B has taken the job, and its answer is on its way."""
    window = hours_ago(2)
    add_window(on_wandb.context, window, recorded=True)
    server.script = [wandb.hang_after]
    process = killed(on_wandb)
    on_wandb.wait(lambda: server.posts == 1)
    process.kill()
    process.wait()
    (job,) = query(on_wandb.context, "SELECT * FROM rl.jobs")
    assert (job["state"], job["job_id"]) == ("intent", None)
    _finished_by_another(on_wandb, server, window)


def test_a_trainer_process_that_is_killed_costs_no_second_job(
    on_wandb: Deployment, server: WandbServer
) -> None:
    window = hours_ago(2)
    add_window(on_wandb.context, window, recorded=True)
    once = on_wandb.folder / "once"
    harm = Injection("workers.trainer.wandb.client.WandbClient.events", "kill", once=once)
    done = killed(on_wandb, harm)
    assert done.wait(timeout=80) == 0, on_wandb.logs()
    assert once.exists()
    assert server.posts == 1
    assert states(on_wandb.context) == {window: "trained"}


def _finished_by_another(deployment: Deployment, server: WandbServer, window: str) -> None:
    done = deployment.call(*MODULE, env={"MODE": "single", "WINDOW_ID": window})
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Response: Wait for a dip." in done.stdout
    assert server.posts == 1
    assert states(deployment.context) == {window: "trained"}
    step = one(deployment.context, "SELECT * FROM rl.steps")
    assert step["metrics"]["remote_step"] == 1
    remote = (Path(step["checkpoint"]) / "remote.json").read_text()
    assert json.loads(remote)["inference_name"] == NAME


def test_celery_workers_train_on_w_and_b(on_wandb: Deployment, server: WandbServer) -> None:
    """The worker is killed with the job running; the next one goes on with it."""
    on_wandb.env["REDIS_URL"] = on_wandb.redis_url
    add_window(on_wandb.context, hours_ago(2), recorded=True)
    server.may_end.clear()
    celery = ("celery", "-A", "babylon_tasks")
    on_wandb.start(*celery, "beat")
    on_wandb.start(*celery, "worker", "-Q", "cpu", "-c", "1", "-n", "cpu@%h")
    first = on_wandb.start(*celery, "worker", "-Q", "gpu", "-n", "gpu1@%h")
    posted = "SELECT FROM rl.jobs WHERE job_id IS NOT NULL"
    on_wandb.wait(lambda: bool(query(on_wandb.context, posted)), 80)
    for pid in [*_children(first.pid), first.pid]:
        os.kill(pid, signal.SIGKILL)
    on_wandb.start(*celery, "worker", "-Q", "gpu", "-n", "gpu2@%h")
    lost = "SELECT FROM rl.attempts WHERE outcome = 'lost'"
    on_wandb.wait(lambda: bool(query(on_wandb.context, lost)), 80)
    server.may_end.set()
    ready = "SELECT FROM trained_models WHERE status = 'deployed'"
    on_wandb.wait(lambda: bool(query(on_wandb.context, ready)), 80)
    assert server.posts == 1
    assert one(on_wandb.context, "SELECT count(*) AS n FROM rl.steps")["n"] == 1
    assert KEY not in on_wandb.logs()


def _children(pid: int) -> list[int]:
    return [int(c) for c in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
