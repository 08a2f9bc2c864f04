"""`babylon models replay` and `babylon models diff`, as a person types them."""

from __future__ import annotations

import json

import pytest

from babylon_tasks.records.steps import Trainer
from tests.acceptance.conftest import Deployment
from tests.rows import add_window, commit_steps, hours_ago, one, query
from tests.unit.tiny import make_tiny_model


@pytest.mark.slow
def test_replay_in_a_process_of_its_own(deployment: Deployment) -> None:
    """A step by `babylon train` is made again, bit for bit; then with what has changed since."""
    pytest.importorskip("art")
    env = {
        "TRAINER": "torch",
        "BASE_MODEL": make_tiny_model(deployment.folder / "tiny"),
        "LEARNING_RATE": "0.001",
        "OMP_NUM_THREADS": "1",
    }
    add_window(deployment.context, hours_ago(2))
    trained = deployment.call("babylon", "train", env=env)
    assert trained.returncode == 0, trained.stderr
    query(
        deployment.context,
        """UPDATE rl.steps SET recipe = jsonb_set(recipe, '{packages,peft}', '"0.1"')
           RETURNING 1""",
    )
    now = {**env, "LEARNING_RATE": "0.1", "TRAINER": "noop"}
    done = deployment.call("babylon", "models", "replay", "1", "--json", env=now)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["lineage"], told["step"], told["version"]) == ("babylon-agent", 1, "v1.0.0")
    assert told["weights"]["equal"]
    assert (told["weights"]["largest"], told["weights"]["differing"]) == (0.0, 0)
    assert told["loss"]["then"] == told["loss"]["now"]
    recipe = one(deployment.context, "SELECT recipe FROM rl.steps")["recipe"]
    assert recipe["machine"]["OMP_NUM_THREADS"] == "1"
    assert told["samples"] == recipe["samples"]["sha256"]
    peft = told["surroundings"].pop("peft")
    assert (peft["then"], told["surroundings"]) == ("0.1", {})
    shown = deployment.call("babylon", "models", "replay", "v1.0.0", env=now)
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.splitlines() == [
        "step 1 (v1.0.0) of babylon-agent, made again from the base model",
        f"samples: the same, 3 trajectories of 1 windows, sha256 {told['samples']}",
        f"loss: {told['loss']['then']} then, {told['loss']['now']} now",
        f"weights: equal, all {told['weights']['tensors']} tensors",
        f"peft: 0.1 then, {peft['now']} now",
    ]


def test_a_replay_that_cannot_be(deployment: Deployment, trainer: Trainer) -> None:
    commit_steps(deployment.context, trainer, 1)
    for arguments, env, why in (
        (["1"], {}, "it was made with TRAINER=noop, which makes no weights"),
        (["1"], {"TRAIN_RL_LOCAL": "false"}, "training is off: set TRAIN_RL_LOCAL=true"),
        (["2"], {}, "babylon-agent has no version or step '2'"),
        (["1", "--lineage", "none"], {}, "no lineage is called none"),
    ):
        done = deployment.call("babylon", "models", "replay", *arguments, env=env)
        assert (done.returncode, done.stdout) == (2, "")
        assert why in done.stderr
        assert done.stderr.count("\n") == 1


def test_diff(deployment: Deployment, trainer: Trainer) -> None:
    commit_steps(deployment.context, trainer, 2)
    done = deployment.call(
        "babylon", "lineages", "fork", "babylon-agent@1", "bold", "--set", "KL_PENALTY=1"
    )
    assert done.returncode == 0, done.stderr
    done = deployment.call("babylon", "models", "diff", "v1.0.1", "bold", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["a"] == {
        "lineage": "babylon-agent", "head": 2, "step": 2, "version": "v1.0.1", "has_recipe": True,
    }  # fmt: skip
    assert (told["b"]["lineage"], told["b"]["step"]) == ("bold", 1)
    assert told["common"] == {"lineage": "babylon-agent", "step": 1}
    assert told["overrides"] == {"KL_PENALTY": {"a": None, "b": "1"}}
    assert told["recipe"] == {}
    assert told["windows"] == {"only_a": [hours_ago(3)], "only_b": [], "both": []}
    assert (told["steps"], told["trajectories"]) == ({"a": 1, "b": 0}, {"a": 3, "b": 0})
    assert told["metrics"]["sequences"] == {"a": 9, "b": 9}
    shown = deployment.call("babylon", "models", "diff", "v1.0.1", "bold").stdout
    for line in (
        "a: step 2 (v1.0.1) of babylon-agent, whose head is step 2",
        "b: step 1 (v1.0.0) of bold, whose head is step 1",
        "in common: up to step 1 (v1.0.0) of babylon-agent",
        "recipe: the same",
        f"windows only in a: 1 ({hours_ago(3)})",
        "windows in both: 0",
    ):
        assert line in shown.splitlines()
    assert "KL_PENALTY" in shown
    query(deployment.context, "UPDATE rl.steps SET recipe = '{}' WHERE step = 2 RETURNING 1")
    shown = deployment.call("babylon", "models", "diff", "2", "0").stdout.splitlines()
    assert "in common: no step" in shown
    assert (
        "recipe: a has none, since a worker of release 0.1.0 made it and b is the base model"
    ) in shown
    done = deployment.call("babylon", "models", "diff", "2", "none@1")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
