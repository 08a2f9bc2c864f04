"""`babylon lineages`: what a person types, and what they read."""

from __future__ import annotations

import json
import os
import signal

import pytest

from tests.acceptance.conftest import Deployment
from tests.chaos.injection import Injection, injecting
from tests.rows import add_window, commit_steps, hours_ago, one, query
from workers.gpu.client import TrainerProcess


def lineages(deployment: Deployment, *arguments: str) -> str:
    done = deployment.call("babylon", "lineages", *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def refused(deployment: Deployment, *arguments: str) -> str:
    command = arguments if arguments[0] == "-m" else ("babylon", *arguments)
    done = deployment.call(*command)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    return done.stderr


def test_create_fork_set_pause_and_retire(deployment: Deployment, trainer: TrainerProcess) -> None:
    commit_steps(deployment.context, trainer, 2)
    assert lineages(deployment, "fork", "babylon-agent", "kl", "--set", "kl_penalty=0.2") == (
        "kl starts from step 2 (v1.0.1) of babylon-agent, with KL_PENALTY=0.2\n"
        "2 windows trained it already\n"
        "workers serve it from now on\n"
    )
    created = lineages(
        deployment, "create", "new", "--base-model", "org/m", "--revision", "a" * 40,
        "--set", "LINEAGE_WEIGHT=2", "--set", "DROPOUT=0.1",
    )  # fmt: skip
    assert created.startswith("new starts from org/m, with DROPOUT=0.1, LINEAGE_WEIGHT=2\n")
    assert lineages(deployment, "set", "new", "DROPOUT=") == "new has LINEAGE_WEIGHT=2\n"
    assert lineages(deployment, "pause", "new") == "new is paused\n"
    assert lineages(deployment, "pause", "new") == "new is paused already\n"
    assert lineages(deployment, "resume", "new") == "new is active\n"
    query(
        deployment.context,
        "INSERT INTO rl.leases (resource, holder, token, expires_at)"
        " VALUES ('model/new', 'gpu1:7', 1, now() + interval '1 hour') RETURNING 1",
    )
    assert lineages(deployment, "retire", "new") == (
        "new is retired\ngpu1:7 trains a step of it now, which is committed; none follows\n"
    )
    listed = json.loads(lineages(deployment, "list", "--json"))
    assert [(row["name"], row["state"], row["step"]) for row in listed] == [
        ("babylon-agent", "active", 2),
        ("kl", "active", 2),
        ("new", "retired", 0),
    ]
    table = lineages(deployment, "list")
    assert "babylon-agent@2" in table
    assert [line.split("│")[1].strip() for line in table.splitlines() if "│" in line] == [
        row["name"] for row in listed
    ]


def test_show(deployment: Deployment, trainer: TrainerProcess) -> None:
    commit_steps(deployment.context, trainer, 2)
    lineages(deployment, "fork", "babylon-agent@1", "kl", "--set", "KL_PENALTY=0.2")
    shown = lineages(deployment, "show", "babylon-agent")
    words = " ".join(shown.split())
    assert "babylon-agent: active, the primary one Start base model" in words
    assert "windows 2 trained works nobody, at this moment" in words
    assert "serves step 2 (v1.0.1) since" in words
    assert " 2 v1.0.1 after 1, " in words
    assert "Forks kl from step 1, active" in words
    assert all(len(line) <= 80 for line in shown.splitlines())
    told = json.loads(lineages(deployment, "show", "kl", "--json"))
    assert (told["forked_from"], told["forked_step"]) == ("babylon-agent", 1)
    assert (told["config"], told["steps"]) == ({"KL_PENALTY": "0.2"}, [])


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("show", "nobody"), "no lineage is called nobody: `babylon lineages list` shows"),
        (("fork", "nobody@3", "new"), "no lineage is called nobody: "),
        (("fork", "babylon-agent@3", "new"), "babylon-agent has no version or step '3': "),
        (("create", "a b"), "a lineage's name has 1 to 64 letters"),
        (("create", "new", "--set", "DROPOUT=7"), "DROPOUT: Input should be less than"),
        (("set", "babylon-agent", "SCORING"), "an override is KEY=VALUE"),
        (("set", "nobody", "SCORING=ruler"), "no lineage is called nobody: "),
        (("retire", "babylon-agent"), "babylon-agent is the lineage of MODEL_NAME, which cannot"),
    ],
)
def test_mistakes_get_one_line(
    deployment: Deployment, arguments: tuple[str, ...], why: str
) -> None:
    assert refused(deployment, "lineages", *arguments).startswith(why)


def test_the_lineage_of_another_deployment(deployment: Deployment) -> None:
    lineages(deployment, "list")  # babylon-agent has a row from now on
    done = deployment.call(
        "babylon", "lineages", "set", "babylon-agent", "KL_PENALTY=1", env={"MODEL_NAME": "other"}
    )
    assert done.stdout == (
        "babylon-agent has KL_PENALTY=1\n"
        "only workers with MODEL_NAME=babylon-agent served it, by their own settings; from now on "
        "every worker of this database serves it, by that worker's settings and these overrides\n"
    )


# --- reset and retry --------------------------------------------------------------------------


def test_reset_retry_go_on(deployment: Deployment, trainer: TrainerProcess) -> None:
    commit_steps(deployment.context, trainer, 5)
    done = deployment.call("babylon", "models", "reset", "v1.0.1", "--why", "a broken\nfeed")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == (
        "babylon-agent goes on from step 2 (v1.0.1); it was at step 5\n"
        "step 2 serves\n"
        "given up: steps 3 to 5, with 3 windows\n"
        "to train these windows again: babylon windows retry --step 3-5\n"
    )
    listed = deployment.call("babylon", "windows", "list").stdout
    assert listed.count(" was given up") == 3
    assert "step 5 was given up" in listed
    shown = deployment.call("babylon", "windows", "show", hours_ago(6)).stdout
    assert "given up; it was given up 20" in shown
    done = deployment.call("-m", "babylon_tasks", env={"MODE": "single", "WINDOW_ID": hours_ago(6)})
    assert done.returncode == 2
    assert "was trained by step 5, which was given up: `babylon windows retry" in done.stderr
    done = deployment.call("babylon", "windows", "retry", "--step", "4-4", "--step", "v1.0.4")
    assert done.stdout == f"{hours_ago(6)} is due\n{hours_ago(5)} is due\n"
    done = deployment.call("babylon", "windows", "retry", "--step", "4")
    assert done.stdout == "no window is left to try again\n"
    assert deployment.call("babylon", "train").returncode == 0
    rows = json.loads(deployment.call("babylon", "models", "list", "--json").stdout)
    assert [(row["step"], row["parent_step"], row["state"]) for row in rows] == [
        (6, 2, "served"),
        (5, 4, "given up"),
        (4, 3, "given up"),
        (3, 2, "given up"),
        (2, 1, "previous"),
        (1, 0, "kept"),
    ]
    assert "a broken feed" in lineages(deployment, "show", "babylon-agent")
    back = deployment.call("babylon", "models", "reset", "5", "--why", "it was not the feed").stdout
    assert back == (
        "babylon-agent goes on from step 5 (v1.0.4); it was at step 6\n"
        "step 5 serves\n"
        "on the way to the head again: steps 3 to 5\n"
        "given up: step 6, with 0 windows\n"
    )


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("models", "reset", "9", "--why", "x"), "babylon-agent has no version or step '9': "),
        (("models", "reset", "1", "--why", "x"), "step 1 is the head of babylon-agent already"),
        (("models", "reset", "0", "--why", ""), "say why: "),
        (("models", "reset", "0", "--why", "x", "--lineage", "y"), "no lineage is called y: "),
        (("windows", "retry", "--step", "1"), "step 1 is on the way to the head of babylon-agent"),
        (("windows", "retry", "--step", "7-9"), "babylon-agent has no step from 7 to 9"),
        (
            ("windows", "retry", "--step", "0-1"),
            "step 1 is on the way to the head of babylon-agent",
        ),
        (("windows", "retry", "--step", "7"), "babylon-agent has no version or step '7': "),
        (("windows", "retry", "--step", "1", "--failed"), "name the windows to try again, or"),
        (("models", "export", "0", "x"), "step 0 is the base model, which has no adapter"),
    ],
)
def test_mistakes_about_steps_get_one_line(
    deployment: Deployment, trainer: TrainerProcess, arguments: tuple[str, ...], why: str
) -> None:
    commit_steps(deployment.context, trainer, 1)
    assert refused(deployment, *arguments).startswith(why)


@pytest.mark.slow
@pytest.mark.parametrize("call", ["heads.move", "transitions.restore_trained"])
def test_killed_in_the_middle_of_a_reset(
    deployment: Deployment, trainer: TrainerProcess, call: str
) -> None:
    commit_steps(deployment.context, trainer, 3)
    kill = Injection(f"babylon_tasks.store.{call}", "kill", at="after")
    harm = injecting(kill, python_path=os.environ.get("PYTHONPATH", ""))
    reset = ("babylon", "models", "reset", "1", "--why", "back")
    assert deployment.run(*reset, env=harm).returncode == -signal.SIGKILL
    assert one(deployment.context, "SELECT step FROM rl.heads")["step"] == 3
    for table in ("rl.resets", "rl.steps WHERE given_up_at IS NOT NULL"):
        assert query(deployment.context, f"SELECT FROM {table}") == []
    # As soon as the dead one's lease has run out.
    deployment.wait(lambda: deployment.call(*reset).returncode == 0)
    assert one(deployment.context, "SELECT step FROM rl.heads")["step"] == 1


@pytest.mark.slow
def test_killed_just_after_a_reset(deployment: Deployment, trainer: TrainerProcess) -> None:
    """It is made, once, and the next step starts from there when its lease has run out."""
    commit_steps(deployment.context, trainer, 3)
    kill = Injection("babylon_tasks.store.leases.release", "kill", at="before")
    harm = injecting(kill, python_path=os.environ.get("PYTHONPATH", ""))
    reset = ("babylon", "models", "reset", "1", "--why", "back")
    assert deployment.run(*reset, env=harm).returncode == -signal.SIGKILL
    add_window(deployment.context, hours_ago(20))

    def trained() -> bool:
        deployment.call("babylon", "train")
        return bool(query(deployment.context, "SELECT FROM rl.steps WHERE step = 4"))

    deployment.wait(trained)
    assert one(deployment.context, "SELECT * FROM rl.steps WHERE step = 4")["parent_step"] == 1
    assert len(query(deployment.context, "SELECT FROM rl.resets")) == 1


# --- --lineage --------------------------------------------------------------------------------


def test_the_other_commands_for_a_lineage(deployment: Deployment, trainer: TrainerProcess) -> None:
    commit_steps(deployment.context, trainer, 2)
    lineages(deployment, "fork", "babylon-agent@1", "side", "--set", "MIN_AGENTS_PER_WINDOW=3")
    for_side = ("--lineage", "side")
    add_window(deployment.context, hours_ago(9), agents=2)
    listed = json.loads(deployment.call("babylon", "windows", "list", *for_side, "--json").stdout)
    assert [(row["window_id"], row["state"]) for row in listed["windows"]] == [
        (hours_ago(2), "trained"),
        (hours_ago(3), "ready"),
        (hours_ago(9), "few_agents"),
    ]
    due = deployment.call("babylon", "windows", "enqueue", hours_ago(3), *for_side)
    assert due.stdout == f"{hours_ago(3)} is due\n"
    done = deployment.call("babylon", "train", *for_side)
    assert "step 2 (v" in done.stdout
    assert one(deployment.context, "SELECT * FROM rl.steps WHERE model_name = 'side'")["step"] == 2
    rows = json.loads(deployment.call("babylon", "models", "list", *for_side, "--json").stdout)
    assert [row["step"] for row in rows] == [2]
    status = json.loads(deployment.call("babylon", "status", *for_side, "--json").stdout)
    assert (status["model"], status["step"], status["windows"]["trained"]) == ("side", 2, 2)
    shown = deployment.call("babylon", "windows", "show", hours_ago(2), *for_side).stdout
    assert f"{hours_ago(2)} of side: trained\n" in shown
    reset = deployment.call("babylon", "models", "reset", "1", "--why", "x", *for_side).stdout
    assert reset.endswith(
        "to train these windows again: babylon windows retry --step 2 --lineage side\n"
    )
    retried = deployment.call("babylon", "windows", "retry", "--step", "2", *for_side).stdout
    assert retried == f"{hours_ago(3)} is due\n"
    lineages(deployment, "pause", "side")
    assert refused(deployment, "train", *for_side).startswith("side is paused: ")
    lineages(deployment, "retire", "side")
    for command in (("windows", "enqueue"), ("windows", "retry", "--failed"), ("train",)):
        assert refused(deployment, *command, *for_side).startswith("side is retired, which is")


def test_train_wants_the_settings_of_the_lineages_own_workers(deployment: Deployment) -> None:
    lineages(deployment, "list")
    done = deployment.call(
        "babylon", "train", "--lineage", "babylon-agent", env={"MODEL_NAME": "other"}
    )
    assert done.returncode == 2
    assert done.stderr.startswith("babylon-agent is trained by the settings of its own workers: ")
    lineages(deployment, "create", "side")
    why = refused(deployment, "train", "--lineage", "side", "--model", "other/model")
    assert why == "--model: side starts from none\n"


def test_what_is_given_to_train_wins_over_the_overrides(deployment: Deployment) -> None:
    lineages(deployment, "create", "side", "--set", "MIN_AGENTS_PER_WINDOW=3")
    add_window(deployment.context, hours_ago(2), agents=2)
    done = deployment.call("babylon", "train", "--lineage", "side")
    assert done.returncode == 0
    assert done.stdout.startswith("no windows found: ")
    done = deployment.call("babylon", "train", "--lineage", "side", "--min-agents", "2")
    assert done.returncode == 0


def test_a_paused_lineage_is_trained_by_nobody(deployment: Deployment) -> None:
    add_window(deployment.context, hours_ago(2))
    lineages(deployment, "pause", "babylon-agent")
    assert refused(deployment, "train").startswith("babylon-agent is paused: `babylon lineages")
    assert refused(deployment, "-m", "babylon_tasks").startswith("babylon-agent is paused: ")
