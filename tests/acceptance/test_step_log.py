"""Steps on W&B: what real wandb writes without a key, and what happens where W&B is away."""

from __future__ import annotations

import base64
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from babylon_tasks import pipeline
from babylon_tasks.records.exams import Compared
from babylon_tasks.records.experiments import Standing
from babylon_tasks.settings import Settings
from babylon_tasks.store import leases
from tests.acceptance.conftest import Deployment
from tests.rows import add_exam, add_experiment, add_look, query, scored_windows
from tests.unit.tiny import make_tiny_model
from tests.wandb_file import OfflineRun, offline_runs
from tests.wandb_runs import serving
from workers.gpu.client import TrainerProcess
from workers.watch import step_log

pytestmark = pytest.mark.slow

WORKER = ("celery", "-A", "babylon_tasks", "worker")
LOG = ("-m", "workers.watch.step_log")
# As it is, but W&B has 2 seconds to answer at all, and not 30.
IMPATIENT = (
    "-c",
    "import sys\nfrom workers.watch import step_log\n"
    "step_log._INIT_SECONDS = 2\nsys.exit(step_log.main())",
)


def train(deployment: Deployment, trainer: TrainerProcess, *hours: int) -> None:
    scored_windows(deployment.context, *hours)
    assert pipeline.train(deployment.context, trainer)


def log_steps(deployment: Deployment, **env: str) -> subprocess.CompletedProcess[str]:
    return deployment.run(*LOG, env={"WANDB_DIR": str(deployment.folder), **env})


def not_logged(deployment: Deployment) -> list[int]:
    rows = query(deployment.context, "SELECT step FROM rl.steps WHERE logged_at IS NULL ORDER BY 1")
    return [row["step"] for row in rows]


def logged(folder: Path) -> dict[int, OfflineRun]:
    """The file that has each step."""
    return {step: run for run in offline_runs(folder) for step in run.history}


def test_one_run_a_model_that_goes_on_after_a_restart(
    deployment: Deployment, trainer: TrainerProcess
) -> None:
    train(deployment, trainer, 2)
    train(deployment, trainer, 3)
    assert log_steps(deployment).returncode == 0
    assert not_logged(deployment) == []
    train(deployment, trainer, 4)
    assert log_steps(deployment).returncode == 0
    assert log_steps(deployment).returncode == 0  # nothing is left: no third file
    first, second = offline_runs(deployment.folder)
    assert (list(first.history), list(second.history)) == ([1, 2], [3])
    for run in (first, second):
        assert (run.run_id, run.name, run.project) == (
            "babylon-agent-steps", "babylon-agent", "babylon-rl",
        )  # fmt: skip
        assert run.config["base_model"] == deployment.context.settings.base_model
    row = query(deployment.context, "SELECT * FROM rl.steps WHERE step = 3")[0]
    told = second.history[3]
    assert told["data/windows"] == 1
    assert told["data/trajectories"] == told["data/scored"] == row["trajectories"]
    assert told["seconds/read"] == pytest.approx(row["seconds"]["read"])
    assert told["data/calls"] > told["data/scored"]
    assert "train/loss" in told


def test_online_the_run_is_resumed_and_no_step_comes_twice(
    deployment: Deployment, trainer: TrainerProcess
) -> None:
    """Also where a process died between sending a step and noting that."""
    key = "0123456789abcdef0123456789abcdef01234567"
    with serving() as wandb:
        env = {"WANDB_API_KEY": key, "WANDB_BASE_URL": wandb.url, "WANDB_ENTITY": "us"}
        train(deployment, trainer, 2)
        train(deployment, trainer, 3)
        assert log_steps(deployment, **env).returncode == 0
        query(deployment.context, "UPDATE rl.steps SET logged_at = NULL WHERE step = 2 RETURNING 1")
        train(deployment, trainer, 4)
        done = log_steps(deployment, **env)
    assert (done.returncode, "W&B has step 2" in done.stderr) == (0, True), done.stderr
    assert not_logged(deployment) == []
    assert [line["_step"] for line in wandb.history["babylon-agent-steps"]] == [1, 2, 3]
    assert wandb.keys == {f"Basic {base64.b64encode(f'api:{key}'.encode()).decode()}"}
    assert key not in done.stdout + done.stderr


def not_logged_of(deployment: Deployment, table: str) -> list[int]:
    rows = query(deployment.context, f"SELECT step FROM rl.{table} WHERE logged_at IS NULL")
    return sorted(row["step"] for row in rows)


def test_exams_and_experiments_are_in_the_next_steps_row_once(
    deployment: Deployment, trainer: TrainerProcess
) -> None:
    """W&B's history only goes forward, and the row of the step that was examined is there."""
    context, key = deployment.context, "0123456789abcdef0123456789abcdef01234567"
    with serving() as wandb:
        env = {"WANDB_API_KEY": key, "WANDB_BASE_URL": wandb.url, "WANDB_ENTITY": "us"}
        train(deployment, trainer, 2)
        assert log_steps(deployment, **env).returncode == 0
        add_exam(context, 1, "failed", "?", {"form": Compared(1.0, 0.2, -0.8, -0.9, -0.7, 8)})
        id_ = add_experiment(context, 1, "promoted")
        shown = Standing(5, 30, 10, 0.0123, -0.004, 0.0286, 12)
        add_look(context, id_, "2026-01-01T00:00", shown, "promoted")
        assert log_steps(deployment, **env).returncode == 0
        assert not_logged_of(deployment, "exams") == [1], "it waits for the next step"
        train(deployment, trainer, 3)
        assert log_steps(deployment, **env).returncode == 0
        assert not_logged_of(deployment, "exams") == not_logged_of(deployment, "experiments") == []
        # A process that died before it noted what it sent, then one that logs the next step.
        for table in ("steps", "exams", "experiments"):
            query(context, f"UPDATE rl.{table} SET logged_at = NULL RETURNING 1")
        add_exam(context, 2)
        train(deployment, trainer, 4)
        assert log_steps(deployment, **env).returncode == 0
    assert not_logged_of(deployment, "exams") == not_logged_of(deployment, "experiments") == []
    first, second, third = wandb.history["babylon-agent-steps"]
    assert [row["_step"] for row in (first, second, third)] == [1, 2, 3]
    assert not [name for name in first if name.startswith(("exam/", "experiment/"))]
    assert (second["exam/step"], second["exam/passed"]) == (1, 0)
    assert (second["exam/form/candidate"], second["exam/form/low"]) == (0.2, -0.9)
    assert (second["experiment/step"], second["experiment/promoted"]) == (1, 1)
    assert (second["experiment/difference"], second["experiment/windows"]) == (0.0123, 5)
    assert "train/loss" in second
    assert (third["exam/step"], third["exam/passed"]) == (2, 1)
    assert "experiment/step" not in third


def test_what_could_not_be_logged_is_logged_later(
    deployment: Deployment, trainer: TrainerProcess
) -> None:
    """W&B away: one line, without the key, and the steps wait."""
    key = "0123456789abcdef0123456789abcdef01234567"
    train(deployment, trainer, 2)
    away = {"WANDB_API_KEY": key, "WANDB_BASE_URL": "http://127.0.0.1:1"}
    done = deployment.run(*IMPATIENT, env={"WANDB_DIR": str(deployment.folder), **away})
    assert done.returncode == 1
    assert "steps are not logged to W&B" in done.stderr
    assert "Traceback" not in done.stderr
    assert key not in done.stdout + done.stderr
    assert not_logged(deployment) == [1]
    assert log_steps(deployment).returncode == 0
    assert not_logged(deployment) == []


def test_an_empty_variable_of_wandb_counts_as_not_set(
    deployment: Deployment, trainer: TrainerProcess
) -> None:
    """As Compose hands on a line of `.env` without a value."""
    train(deployment, trainer, 2)
    empty = {name: "" for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL", "WANDB_DIR")}
    done = deployment.run(*LOG, env=empty)
    assert done.returncode == 0, done.stderr
    assert not_logged(deployment) == []
    assert list(logged(deployment.folder / ".babylon")) == [1]


def test_ctrl_c_ends_it_without_a_word(deployment: Deployment, trainer: TrainerProcess) -> None:
    train(deployment, trainer, 2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        env = {"WANDB_API_KEY": "0" * 40, "WANDB_BASE_URL": url}
        process = deployment.start(*LOG, env=env)
        silent.accept()[0].close()
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130, deployment.logs()
    assert "Traceback" not in deployment.logs()
    assert query(deployment.context, "SELECT * FROM rl.leases") == []


def test_two_at_once_log_a_step_once(deployment: Deployment, trainer: TrainerProcess) -> None:
    train(deployment, trainer, 2)
    with deployment.context.database.transaction() as tx:
        lease = leases.acquire(tx, "wandb/babylon-agent", "another", 60)
    assert lease
    assert log_steps(deployment).returncode == 0
    assert offline_runs(deployment.folder) == []
    with deployment.context.database.transaction() as tx:
        leases.release(tx, [lease])
    assert log_steps(deployment).returncode == 0
    assert list(logged(deployment.folder)) == [1]


def test_a_killed_process_leaves_its_steps_to_the_next(
    deployment: Deployment, trainer: TrainerProcess
) -> None:
    train(deployment, trainer, 2)
    process = deployment.start(*LOG, env={"WANDB_DIR": str(deployment.folder)})
    deployment.wait(lambda: (deployment.folder / "wandb").is_dir())
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    if not_logged(deployment):  # else it was faster than the kill
        query(
            deployment.context,
            "DELETE FROM rl.leases WHERE resource = 'wandb/babylon-agent' RETURNING 1",
        )
    assert log_steps(deployment).returncode == 0
    assert not_logged(deployment) == []
    assert 1 in logged(deployment.folder)


def test_a_process_that_cannot_start_ends_nothing(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The thread that runs it goes on: it cannot be started twice, and the next step is due."""
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    step_log.log_steps(settings.model_copy(update={"trainer": "torch"}))
    assert "not logged to W&B" in caplog.text


def test_a_gpu_worker_logs_its_steps(deployment: Deployment) -> None:
    """With the real trainer, whose loss, KL and rewards arrive; ART opens no run of its own."""
    scored_windows(deployment.context, 2)
    model = make_tiny_model(deployment.folder)
    env = {"TRAINER": "torch", "BASE_MODEL": model, "WANDB_DIR": str(deployment.folder)}
    env["KL_PENALTY"] = "0.1"  # a step without has no KL
    for queue in ("cpu", "gpu"):
        name = f"{queue}@%h"
        deployment.start(*WORKER, "-Q", queue, "-n", name, "-c", "1", env=env)
    deployment.start("celery", "-A", "babylon_tasks", "beat", env=env)
    deployment.wait(lambda: not_logged(deployment) == [] and logged(deployment.folder) != {}, 110)
    (run,) = offline_runs(deployment.folder)
    told = run.history[1]
    for name in (
        "train/loss", "train/kl", "train/entropy", "reward/mean", "reward/std",
        "speed/tokens_per_second", "seconds/forward_backward",
    ):  # fmt: skip
        assert isinstance(told[name], int | float), name
