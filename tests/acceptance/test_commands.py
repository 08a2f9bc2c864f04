"""What a person types: results, and errors in one line that say what to do."""

from __future__ import annotations

import json
import re
import shutil
import signal
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from babylon_tasks.store import canaries
from tests.acceptance.conftest import Deployment, Ended
from tests.chaos.injection import Injection, injecting
from tests.clock import at_half_past
from tests.rows import add_request, add_trajectory, add_window, hours_ago, one, query, states
from tests.unit.tiny import make_tiny_model

MODULE = ("-m", "babylon_tasks")
FAKE_NVML = Path(__file__).parents[1] / "nvml"  # it knows no GPU
NOBODY = "postgresql://user:s3cret@127.0.0.1:1/babylon"


def test_list_as_json(deployment: Deployment) -> None:
    add_window(deployment.context, hours_ago(2))
    add_window(deployment.context, hours_ago(3), agents=1)
    done = deployment.run("babylon", "windows", "list", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert 0 < told["query_seconds"] < 5
    shown = [(w["window_id"], w["agents"], w["trajectories"], w["state"]) for w in told["windows"]]
    assert shown == [
        (hours_ago(2), 3, 3, "ready"),
        (hours_ago(3), 1, 1, "few_agents"),
    ]  # fmt: skip
    table = deployment.call("babylon", "windows", "list").stdout
    assert hours_ago(2) in table


def test_mode_list(deployment: Deployment) -> None:
    add_window(deployment.context, hours_ago(2))
    add_window(deployment.context, hours_ago(3), agents=1)
    done = deployment.run(*MODULE, env={"MODE": "list", "TRAIN_RL_LOCAL": ""})
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"Ready windows (1):\n  {hours_ago(2)}: 3 agents\n"


@pytest.mark.slow
def test_mode_single_trains_the_newest_window_and_asks_it(
    deployment: Deployment, tiny_model: Path
) -> None:
    add_window(deployment.context, hours_ago(2))
    add_window(deployment.context, hours_ago(3))
    env = {"MODE": "single", "TRAINER": "torch", "BASE_MODEL": str(tiny_model)}
    # No Redis and no worker is needed.
    done = deployment.run(*MODULE, env={**env, "REDIS_URL": ""})
    assert done.returncode == 0, done.stderr
    assert f"Training on: {hours_ago(2)}" in done.stdout
    assert "Model: babylon-agent-v1.0.0 (step 1)" in done.stdout
    assert done.stdout.strip().splitlines()[-1].startswith("Response: ")
    assert states(deployment.context) == {hours_ago(2): "trained"}
    assert one(deployment.context, "SELECT status FROM trained_models")["status"] == "deployed"
    step = one(deployment.context, "SELECT * FROM rl.steps")
    assert step["trainable_tokens"] > 0
    files = {p.name for p in Path(step["checkpoint"]).iterdir()}
    assert {"adapter_model.safetensors", "adapter_config.json", "optimizer.pt"} <= files


def test_mode_single_answers_a_request(deployment: Deployment, unserved: None) -> None:
    window = hours_ago(4)
    add_window(deployment.context, window)
    add_request(deployment.context, "batch-1", window, "v4.0.0")
    env = {"MODE": "single", "WINDOW_ID": window, "BATCH_ID": "batch-1", "MODEL_VERSION": "v4.0.0"}
    done = deployment.call(*MODULE, env=env)
    # That nobody serves it is said after the training is safe.
    assert "Model: babylon-agent-v4.0.0 (step 1)" in done.stdout
    batch = one(deployment.context, "SELECT * FROM training_batches")
    assert (batch["status"], batch["modelVersion"]) == ("completed", "v4.0.0")
    model = one(deployment.context, "SELECT * FROM trained_models")
    assert (model["status"], model["trainingBatch"]) == ("deployed", "batch-1")


def test_mode_single_leaves_a_request_for_the_running_hour_waiting(deployment: Deployment) -> None:
    """What the app's own trigger spawns."""
    at_half_past(deployment.context)
    add_window(deployment.context, hours_ago(0))
    add_request(deployment.context, "batch-2", hours_ago(0), "v1.0.0")
    env = {"MODE": "single", "WINDOW_ID": hours_ago(0), "BATCH_ID": "batch-2"}
    done = deployment.call(*MODULE, env=env)
    assert done.returncode == 0, done.stderr
    assert f"Request batch-2 waits for window {hours_ago(0)}" in done.stdout
    assert one(deployment.context, "SELECT status FROM training_batches")["status"] == "pending"


def test_mode_single_beside_running_workers(deployment: Deployment, unserved: None) -> None:
    window = hours_ago(2)
    add_window(deployment.context, window)
    deployment.start("celery", "-A", "babylon_tasks", "worker", "-Q", "cpu", "-c", "1")
    deployment.call("babylon", "windows", "enqueue")
    done = deployment.call(*MODULE, env={"MODE": "single", "WINDOW_ID": window})
    assert "(step 1)" in done.stdout
    assert one(deployment.context, "SELECT count(*) AS n FROM rl.steps")["n"] == 1


def test_mode_continuous_until_it_is_stopped(deployment: Deployment) -> None:
    windows = [hours_ago(h) for h in (2, 3)]
    add_window(deployment.context, windows[0])
    process = deployment.start(*MODULE, env={"MODE": "continuous"})
    deployment.wait(lambda: states(deployment.context) == {windows[0]: "trained"})
    add_window(deployment.context, windows[1])
    deployment.wait(lambda: states(deployment.context) == dict.fromkeys(windows, "trained"))
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=15) == 0
    assert query(deployment.context, "SELECT * FROM rl.leases") == []


def test_mode_continuous_outlives_a_lease_that_another_took(deployment: Deployment) -> None:
    """It used to end with the first lost lease."""
    window = hours_ago(2)
    add_window(deployment.context, window)
    once = deployment.folder / "once"
    stale = Injection(
        "babylon_tasks.store.steps.commit",
        "raise",
        error="babylon_tasks.errors.StaleClaim",
        once=once,
    )
    deployment.start(*MODULE, env={"MODE": "continuous", **injecting(stale)})
    deployment.wait(lambda: states(deployment.context) == {window: "trained"})
    assert once.exists()
    told = query(deployment.context, "SELECT outcome FROM rl.attempts WHERE stage = 'train'")
    assert [t["outcome"] for t in told] == ["given_back", "done"]


def test_a_failed_window_tells_its_story_and_is_tried_again(
    deployment: Deployment, unserved: None
) -> None:
    window = hours_ago(2)
    add_window(deployment.context, window)
    refusal = Injection(
        "workers.trainer.noop.NoopTrainer.step",
        "raise",
        error="babylon_tasks.errors.Final",
        arguments=("CUDA out of memory with one sequence",),
    )
    failed = deployment.call(*MODULE, env={"MODE": "single", **injecting(refusal)})
    assert failed.returncode == 2
    assert "Final: CUDA out of memory" in failed.stderr
    shown = deployment.call("babylon", "windows", "show", window)
    assert "Final: CUDA out of memory with one sequence" in " ".join(shown.stdout.split())
    story = json.loads(deployment.call("babylon", "windows", "show", window, "--json").stdout)
    assert (story["state"], story["agents"]) == ("failed", 3)
    assert [(a["stage"], a["outcome"]) for a in story["attempts"]] == [
        ("score", "done"),
        ("train", "error"),
    ]
    retried = deployment.call("babylon", "windows", "retry", window)
    assert retried.stdout == f"{window} is due\n"
    again = deployment.call("babylon", "windows", "retry", window)
    assert again.returncode == 2
    assert "neither failed nor skipped" in again.stderr
    assert (
        "no window has failed" in deployment.call("babylon", "windows", "retry", "--failed").stdout
    )
    done = deployment.call(*MODULE, env={"MODE": "single", "WINDOW_ID": window})
    assert "(step 1)" in done.stdout
    assert "v1.0.0" in deployment.call("babylon", "windows", "show", window).stdout


def test_a_mode_single_that_is_stopped_gives_its_window_back(deployment: Deployment) -> None:
    add_window(deployment.context, hours_ago(2))
    slow = Injection("workers.trainer.noop.NoopTrainer.step", "sleep", seconds=60)
    process = deployment.start(*MODULE, env={"MODE": "single", **injecting(slow)})
    under_way = "SELECT FROM rl.attempts WHERE stage = 'train' AND ended_at IS NULL"
    deployment.wait(lambda: bool(query(deployment.context, under_way)))
    process.terminate()
    assert process.wait(timeout=15) == 130
    assert query(deployment.context, "SELECT * FROM rl.leases") == []
    assert query(deployment.context, under_way) == []


def test_windows_are_due_also_where_nobody_can_be_woken(deployment: Deployment) -> None:
    add_window(deployment.context, hours_ago(2))
    away = {"REDIS_URL": "redis://:s3cret@127.0.0.1:1/0"}
    done = deployment.call("babylon", "windows", "enqueue", "--json", env=away)
    assert done.returncode == 0
    assert json.loads(done.stdout)["due"] == [hours_ago(2)]
    assert "beat's sweep will ring" in done.stderr
    assert "s3cret" not in done.stderr


@pytest.mark.slow
def test_up_until_idle_on_servers_of_ones_own(deployment: Deployment) -> None:
    windows = [hours_ago(h) for h in range(2, 6)]
    for window in windows:
        add_window(deployment.context, window)
    done = deployment.run("babylon", "up", "--until-idle")
    assert done.returncode == 0, done.stdout + done.stderr
    assert states(deployment.context) == dict.fromkeys(windows, "trained")
    assert one(deployment.context, "SELECT step = published_step AS ok FROM rl.heads")["ok"]


def test_up_is_ended_by_sigterm_with_all_its_processes(deployment: Deployment) -> None:
    process = deployment.start("babylon", "up")
    deployment.wait(lambda: "Flower" in deployment.logs())
    children = _children(process.pid)
    assert len(children) >= 4
    process.terminate()
    assert process.wait(timeout=40) == 0
    deployment.wait(lambda: not any(Path(f"/proc/{pid}").exists() for pid in children), 5)


def _children(pid: int) -> list[int]:
    path = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in path.read_text().split()]


def _without_what_the_demo_lacks() -> str:
    """A `sitecustomize` that hides what `make demo` does not install."""
    constraints = Path(__file__).parents[2].joinpath("constraints.txt").read_text()
    left_out = {
        _canonical(line.partition("==")[0])
        for line in constraints.partition("# Not in the demo")[2].split()
    }
    hidden = {
        module
        for module, packages in packages_distributions().items()
        if left_out.issuperset(map(_canonical, packages))
    }
    assert {"weave", "pytest", "moto"} <= hidden
    return f"""
import sys
from importlib.machinery import PathFinder

class Rest(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name.partition(".")[0] not in {sorted(hidden)}:
            return PathFinder.find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Rest
"""


def _canonical(package: str) -> str:
    return re.sub(r"[-_.]+", "-", package).lower()


@pytest.mark.slow
def test_demo(deployment: Deployment, tiny_model: Path) -> None:
    home = deployment.folder / ".babylon" / "demo"
    home.mkdir(parents=True)
    shutil.copytree(tiny_model, home / "base-model")  # made once for all tests
    for variable in ("DATABASE_URL", "REDIS_URL", "TRAINER"):
        del deployment.env[variable]
    deployment.env["SCORING"] = "ruler"  # a judge that the demo must not ask
    (deployment.folder / "sitecustomize.py").write_text(_without_what_the_demo_lacks())
    deployment.env["PYTHONPATH"] = str(deployment.folder)
    process = deployment.start("babylon", "demo", "--windows", "3", "--agents", "4", "--keep")
    deployment.wait(lambda: "runs until Ctrl-C" in deployment.logs() or process.poll(), 110)
    said = deployment.logs()
    assert process.poll() is None, said
    assert "Flower: http://127.0.0.1:" in said
    assert max(map(len, said.splitlines())) <= 80
    # The commands that it names find the servers in this folder.
    status = json.loads(deployment.run("babylon", "status", "--json").stdout)
    # Step 3 waits for its exam on an hour that is not played any more.
    assert (status["step"], status["version"]) == (3, "v1.0.1")
    assert status["gate"]["awaits_exam"] == 3
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 0
    assert not (home.parent / "servers.env").exists()
    summary = json.loads((home / "summary.json").read_text())
    assert summary["windows_total"] == 4
    assert summary["windows_trained"] == 3
    assert summary["windows_skipped"] == 1
    assert summary["quarantined"] > 0
    assert summary["steps"] == 3
    assert summary["model_version"] == "v1.0.1"
    assert [w["step"] for w in summary["windows"]] == [None, 1, 2, 3]
    assert all(f"{w['window_id']} " in said for w in summary["windows"][1:])
    learning = summary["learning"]
    assert learning["windows"] == 3
    assert len(learning["policy"]) == len(learning["well_formed"]) == 4
    assert all(learning["noise"] < each < learning["oracle"] for each in learning["policy"])
    assert min(learning["well_formed"]) > 0.9
    gained = learning["policy"][-1] - learning["noise"]
    gap = learning["oracle"] - learning["noise"]
    assert learning["gap_closed"] == pytest.approx(gained / gap)
    assert learning["question"].startswith("Will ") or " perpetual " in learning["question"]
    assert summary["answer"] == learning["answer_after"]
    assert learning["answer_before"] in said
    assert learning["answer_after"] in said
    assert Path(summary["base_model"], "config.json").is_file()
    assert summary["seconds"] > 0


def test_doctor_says_all_is_well_or_what_is_not(deployment: Deployment) -> None:
    add_window(deployment.context, hours_ago(2))
    base_model = make_tiny_model(deployment.folder / "base-model")
    env = {"BASE_MODEL": base_model, "TRAINER": "torch"}
    silent = deployment.call("babylon", "doctor", "--json", env={**env, "TRAINER": "noop"})
    assert silent.returncode == 2
    wrong = {each["check"]: each["detail"] for each in json.loads(silent.stdout) if not each["ok"]}
    assert set(wrong) == {"queues"}
    assert "start beat and the workers (`babylon up` runs them all)" in wrong["queues"]
    with deployment.context.database.transaction() as tx:
        for queue in ("cpu", "gpu"):
            canaries.note(tx, queue, "somebody")
    well = deployment.call("babylon", "doctor", "--json", env=env)
    assert well.returncode == 0, well.stdout
    assert all(finding["ok"] for finding in json.loads(well.stdout))
    ill = deployment.call(
        "babylon",
        "doctor",
        env={"DATABASE_URL": NOBODY, "REDIS_URL": "redis://:s3cret@127.0.0.1:1/0",
             "TRAIN_RL_LOCAL": "no", "BASE_MODEL": "/nowhere",
             "CUDA_VISIBLE_DEVICES": "0", "PYTHONPATH": str(FAKE_NVML)},
    )  # fmt: skip
    assert ill.returncode == 2
    assert "s3cret" not in ill.stdout + ill.stderr
    for said in (
        "DATABASE_URL", "REDIS_URL", "TRAIN_RL_LOCAL=true", "/nowhere",
        "CUDA_VISIBLE_DEVICES names 0, and `nvidia-smi -L` does not say",
    ):  # fmt: skip
        assert said in ill.stdout


def test_nothing_due_is_no_mistake(deployment: Deployment) -> None:
    """An hourly cron has quiet hours."""
    done = deployment.call("babylon", "train")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("no windows found: 0 trajectories in the database")
    done = deployment.call("babylon", "train", "--json")
    assert done.returncode == 0
    assert json.loads(done.stdout) == {"steps": [], "published": [], "left": {}}


SHELL = "import subprocess, sys; sys.exit(subprocess.run(sys.argv[1], shell=True).returncode)"


def test_an_output_that_cannot_be_written_is_one_line(deployment: Deployment) -> None:
    command = f"{Path(sys.executable).with_name('babylon')} lineages list --json"
    full = deployment.run("-c", SHELL, f"{command} > /dev/full")
    assert (full.returncode, full.stderr) == (
        1,
        "cannot write the output: No space left on device\n",
    )
    closed = deployment.run("-c", SHELL, f"{command} | true")
    assert closed.stderr == ""
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    odd = deployment.run("babylon", "windows", "list", "--lineage", "\u4e2d…", env=ascii_only)
    assert odd.returncode == 2
    assert "Traceback" not in odd.stderr


def test_an_endpoint_without_its_packages_is_one_line(deployment: Deployment) -> None:
    code = (
        "import runpy, sys; sys.modules['uvicorn'] = None; sys.argv = ['serve'];"
        "runpy.run_module('workers.serve', run_name='__main__')"
    )
    done = deployment.run("-c", code)
    assert done.returncode == 2
    assert done.stderr == "uvicorn is not installed: pip install 'babylon-tasks[serve]'\n"


@pytest.mark.parametrize(
    ("command", "env", "says"),
    [
        (("babylon", "windows", "list"), {"DATABASE_URL": ""}, "DATABASE_URL is not set"),
        (("babylon", "windows", "list"), {"DATABASE_URL": NOBODY}, "is DATABASE_URL right?"),
        (("babylon", "windows", "list"), {"DATABASE_URL": "mysql://u:s3cret@h/d"}, "postgresql://"),
        (("babylon", "status"), {"REDIS_URL": "redis://:s3cret@127.0.0.1:1/0"}, "REDIS_URL right?"),
        (("babylon", "status"), {"REDIS_URL": ""}, "REDIS_URL is not set"),
        (("babylon", "migrate"), {"DATABASE_URL": NOBODY}, "is DATABASE_URL right?"),
        (("babylon", "up"), {"REDIS_URL": ""}, "REDIS_URL is not set"),
        (("babylon", "up", "--until-idle"), {"TRAIN_RL_LOCAL": ""}, "TRAIN_RL_LOCAL=true"),
        (("babylon", "windows", "enqueue", "yesterday"), {}, "2025-01-15T10:00"),
        (("babylon", "windows", "enqueue", "2025-01-15T10:00"), {}, "no trajectories in window"),
        (("babylon", "status"), {"MIN_AGENTS_PER_WINDOW": "1"}, "MIN_AGENTS_PER_WINDOW"),
        (("babylon", "windows", "show", "2025-01-15T10:00"), {}, "`babylon windows enqueue"),
        (("babylon", "windows", "retry"), {}, "--failed"),
        (MODULE, {"MODE": "list"}, "few agents"),
        (MODULE, {"MODE": "single"}, "no windows found: 1 trajectories"),
        (MODULE, {"MODE": "single", "TRAIN_RL_LOCAL": ""}, "TRAIN_RL_LOCAL=true"),
        (MODULE, {"MODE": "single", "BATCH_ID": "nope"}, "BATCH_ID=nope"),
        (MODULE, {"MODE": "single", "WINDOW_ID": "x"}, "2025-01-15T10:00"),
        (MODULE, {"MODE": "sometimes"}, "MODE"),
    ],
)  # fmt: skip
def test_mistakes_end_with_one_line_and_code_2(
    deployment: Deployment, command: tuple[str, ...], env: dict[str, str], says: str
) -> None:
    add_trajectory(deployment.context, hours_ago(2), "alone")
    assert_one_line(deployment.call(*command, env=env), says)


@pytest.mark.parametrize(
    "command", [("babylon", "windows", "list"), ("babylon", "judge", "check"), MODULE]
)
def test_a_mistake_in_a_program_of_its_own(
    deployment: Deployment, command: tuple[str, ...]
) -> None:
    done = deployment.run(*command, env={"DATABASE_URL": NOBODY, "MODE": "list"})
    assert_one_line(done, "is DATABASE_URL right?")


def assert_one_line(done: Ended, says: str) -> None:
    assert done.returncode == 2, done.stdout + done.stderr
    (line,) = done.stderr.strip().splitlines()
    assert says in line
    assert "s3cret" not in done.stdout + done.stderr


def test_missing_migrations_are_named(deployment: Deployment, fresh_database: str) -> None:
    env = {"DATABASE_URL": fresh_database}
    for command in (("babylon", "windows", "list"), MODULE):
        done = deployment.call(*command, env=env)
        assert done.returncode == 2
        assert done.stderr.strip() == "migrations are not applied: run `babylon migrate`"
    assert deployment.run("babylon", "migrate", env=env).returncode == 0
    assert deployment.call(*MODULE, env={**env, "MODE": "list"}).stderr.startswith("no windows")


def test_a_window_without_signal_is_a_clear_end_of_single(deployment: Deployment) -> None:
    add_window(deployment.context, hours_ago(2), spread=0.0)
    done = deployment.call(*MODULE, env={"MODE": "single"})
    assert done.returncode == 2
    assert "skipped: no signal" in done.stderr


def test_every_command_has_help_with_an_example(deployment: Deployment) -> None:
    done = deployment.run("babylon", "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert deployment.call("babylon", "--help").stdout == done.stdout
    assert deployment.call("babylon", "windows", "--help").returncode == 0
    for name in (["demo"], ["up"], ["migrate"], ["status"], ["doctor"], ["windows", "list"],
                 ["windows", "enqueue"]):  # fmt: skip
        done = deployment.call("babylon", *name, "--help")
        assert done.returncode == 0
        assert "Example:" in done.stdout
