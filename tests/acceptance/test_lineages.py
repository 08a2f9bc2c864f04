"""`babylon lineages`: what a person types, and what they read."""

from __future__ import annotations

import json

import pytest

from tests.acceptance.conftest import Deployment
from tests.rows import commit_steps, query
from workers.gpu.client import TrainerProcess


def lineages(deployment: Deployment, *arguments: str) -> str:
    done = deployment.call("babylon", "lineages", *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def refused(deployment: Deployment, *arguments: str) -> str:
    done = deployment.call("babylon", *arguments)
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
    assert "forks            kl from step 1\n" in shown
    assert "v1.0.1" in shown
    told = json.loads(lineages(deployment, "show", "kl", "--json"))
    assert (told["forked_from"], told["forked_step"]) == ("babylon-agent", 1)
    assert (told["config"], told["steps"]) == ({"KL_PENALTY": "0.2"}, [])


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("show", "nobody"), "no lineage is called nobody: `babylon lineages list` shows"),
        (("fork", "nobody@3", "new"), "no lineage is called nobody: "),
        (("fork", "babylon-agent@3", "new"), "babylon-agent has no version or step '3': "),
        (("create", "a b"), "MODEL_NAME: String should match pattern"),
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
