"""`babylon models`, and what retention leaves when its process is killed."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from babylon_tasks.checkpoints.export import ADAPTER_FILES
from babylon_tasks.records.exams import Compared
from babylon_tasks.records.experiments import Standing
from babylon_tasks.work.context import Context
from tests.acceptance.conftest import Deployment
from tests.chaos.injection import Injection, injecting
from tests.rows import (
    add_exam,
    add_experiment,
    add_look,
    add_window,
    commit_steps,
    hours_ago,
    one,
    query,
)
from workers.gpu.client import TrainerProcess


def commit_with_retention(deployment: Deployment, trainer: TrainerProcess, count: int) -> None:
    """Steps without weights, of which no more stay than must."""
    settings = deployment.context.settings.model_copy(update={"keep_checkpoints": 1})
    commit_steps(Context.of_deployment(settings, "test:2"), trainer, count)


def listed(deployment: Deployment) -> list[dict[str, Any]]:
    done = deployment.call("babylon", "models", "list", "--json")
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def folders(deployment: Deployment) -> list[int]:
    """Steps that have a folder."""
    store = Path(deployment.context.settings.checkpoint_store)
    return sorted(int(folder.name.split("-")[0]) for folder in store.glob("*/*"))


def test_list(deployment: Deployment, trainer: TrainerProcess) -> None:
    assert listed(deployment) == []
    assert "no step of babylon-agent" in deployment.run("babylon", "models", "list").stdout
    commit_with_retention(deployment, trainer, 5)
    query(deployment.context, "UPDATE rl.heads SET published_step = 4 RETURNING 1")
    found = listed(deployment)
    assert [(each["step"], each["version"], each["state"]) for each in found] == [
        (5, "v1.0.4", "head"),
        (4, "v1.0.3", "served"),
        (3, "v1.0.2", "previous"),
        (2, "v1.0.1", "removed"),
        (1, "v1.0.0", "removed"),
    ]
    assert [each["removed_at"] is None for each in found] == [True] * 3 + [False] * 2
    assert found[0]["trajectories"] == 3
    assert found[0]["loss"] == 0.0
    shown = deployment.call("babylon", "models", "list").stdout
    assert f"{found[0]['checkpoint']} " in shown
    assert found[4]["checkpoint"] not in shown


def shown_of(deployment: Deployment, step: str) -> str:
    """What `models show` writes; lines that were wrapped are one again."""
    done = deployment.call("babylon", "models", "show", step)
    assert done.returncode == 0, done.stderr
    return " ".join(done.stdout.split())


def test_show(deployment: Deployment, trainer: TrainerProcess) -> None:
    context = deployment.context
    commit_steps(context, trainer, 2, publish=False)
    plain = shown_of(deployment, "2")
    assert "step 2 (v1.0.1) of babylon-agent: head Made after step 1 by the trainer noop" in plain
    assert "Exam none" in plain
    assert "it does not serve now" in plain
    assert "RETRY_SECONDS=0.0" in plain
    assert "LORA_RANK" not in plain, "it is the default"
    assert "trained tokens" in plain
    assert f" files {context.settings.checkpoint_store}/" in plain
    promoted = deployment.call("babylon", "models", "promote", "2", "--why", "it sells at the top")
    assert promoted.returncode == 0, promoted.stderr
    served = shown_of(deployment, "2")
    assert "of babylon-agent: served Made" in served
    assert "Serving serves since 20" in served
    assert ": it sells at the top Exam none" in served
    query(context, "UPDATE rl.heads SET published_step = 0 RETURNING 1")
    add_exam(
        context,
        2,
        figures={
            "form": Compared(1.0, 0.25, -0.75, -0.9, -0.5, runs=8, worse=True),
            "value": Compared(left_out="the runs have no log-probabilities"),
        },
    )
    id_ = add_experiment(context, 2)
    add_look(context, id_, "2026-01-01T00:00", Standing(1, 6, 2, 0.02, -0.1, 0.14, 9), "go on")
    done = deployment.call("babylon", "models", "show", "v1.0.1", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["step"], found["state"], found["parent_step"]) == (2, "head, experiment", 1)
    assert (found["exam"]["state"], found["exam"]["trajectories"]) == ("passed", 8)
    assert found["exam"]["figures"]["form"]["worse"] is True
    assert found["exam"]["figures"]["value"]["difference"] is None
    (tried,) = found["experiments"]
    assert (tried["state"], tried["percent"]) == ("running", 20)
    assert tried["looks"][0]["standing"]["windows_left"] == 9
    assert found["size_bytes"] > 0
    assert found["serves_since"] is None
    shown = shown_of(deployment, "2")
    for said in (
        "step 2 (v1.0.1) of babylon-agent: head, experiment",
        "beside step 0, over 8 runs of 1 window, in 31 s: no figure is worse",
        "-0.9 to -0.5", "worse", "the runs have no log-probabilities",
        "+0.02 a run (-0.1 to +0.14)", "go on",
    ):  # fmt: skip
        assert said in shown
    assert shown.index("value ") < shown.index("form "), "as the guards come"
    wrong = deployment.call("babylon", "models", "show", "7")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert "has no version or step '7'" in wrong.stderr


@pytest.mark.slow
def test_export_of_a_trained_model(deployment: Deployment, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from tests.unit.tiny import make_tiny_model
    from workers.trainer.torch.trainer import TorchTrainer

    tiny_model = tmp_path / "tiny"
    make_tiny_model(tiny_model)
    changes = {"base_model": str(tiny_model), "learning_rate": 0.01, "warmup_steps": 0}
    settings = deployment.context.settings.model_copy(update={"trainer": "torch", **changes})
    torch_context = Context.of_deployment(settings, "test:2")
    commit_steps(torch_context, TorchTrainer("cpu"), 1)
    adapter, model = tmp_path / "adapter", tmp_path / "model"
    done = deployment.call("babylon", "models", "export", "v1.0.0", str(adapter))
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"step 1 (v1.0.0) of babylon-agent is in {adapter}\n"
    assert {file.name for file in adapter.iterdir()} == {
        "adapter_config.json", "adapter_model.safetensors"
    }  # fmt: skip
    done = deployment.run("babylon", "models", "export", "1", str(model), "--merged")
    assert done.returncode == 0, done.stderr
    told = done.stderr.splitlines()  # on a slow machine how long it has taken, and no warning
    assert all(" s  merging step 1 (v1.0.0) " in line for line in told), told

    def logits(network: Any) -> Any:
        tokens = AutoTokenizer.from_pretrained(model)("Buy or wait?", return_tensors="pt")
        with torch.inference_mode():
            return network.eval()(**tokens).logits

    def load(folder: Path) -> Any:
        return AutoModelForCausalLM.from_pretrained(folder)

    adapted = logits(peft.PeftModel.from_pretrained(load(tiny_model), str(adapter)))
    torch.testing.assert_close(logits(load(model)), adapted, rtol=0, atol=1e-4)
    assert (adapted - logits(load(tiny_model))).abs().max() > 1e-3


def refuse(deployment: Deployment, arguments: list[str], why: str) -> None:
    done = deployment.call("babylon", "models", "export", *arguments)
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert why in done.stderr
    assert done.stderr.count("\n") == 1, done.stderr


def test_an_export_that_cannot_be_leaves_nothing(
    deployment: Deployment,
    trainer: TrainerProcess,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("torch")
    commit_with_retention(deployment, trainer, 1)
    checkpoint = Path(one(deployment.context, "SELECT checkpoint FROM rl.steps")["checkpoint"])
    for file in ADAPTER_FILES:
        (checkpoint / file).write_text("{}")
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "file").write_text("mine")
    before = sorted(tmp_path.iterdir())
    new = str(tmp_path / "new")
    with monkeypatch.context() as without_peft:
        without_peft.setitem(sys.modules, "peft", None)
        without_peft.delitem(sys.modules, "workers.trainer.torch.merge", raising=False)
        refuse(deployment, ["1", new, "--merged"], "--merged needs the package peft")
    refuse(deployment, ["1", str(taken)], "is not an empty folder")
    refuse(deployment, ["v9.9.9", new], "has no version or step 'v9.9.9'")
    query(deployment.context, "UPDATE rl.lineages SET base_model = '/no/such/model' RETURNING 1")
    refuse(deployment, ["1", new, "--merged"], "/no/such/model cannot be loaded")
    assert sorted(tmp_path.iterdir()) == before


def test_export_of_what_has_no_weights(
    deployment: Deployment, trainer: TrainerProcess, tmp_path: Path
) -> None:
    new = str(tmp_path / "new")
    refuse(deployment, ["1", new], "has no version or step '1'")
    commit_with_retention(deployment, trainer, 4)
    refuse(deployment, ["4", new], "step 4 (v1.0.3) of babylon-agent has no weights")
    refuse(deployment, ["v1.0.0", new], "the files of step 1 (v1.0.0) were removed on")
    refuse(deployment, ["9" * 30, new], "has no version or step")
    assert not list(tmp_path.glob("*new*"))


def test_mode_single_for_a_window_whose_step_was_removed(
    deployment: Deployment, trainer: TrainerProcess
) -> None:
    commit_with_retention(deployment, trainer, 4)
    env = {"MODE": "single", "WINDOW_ID": hours_ago(2)}
    done = deployment.call("-m", "babylon_tasks", env=env)
    assert done.returncode == 2
    assert done.stderr.startswith("the files of step 1 (v1.0.0) were removed on ")
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("call", "at", "left"),
    [
        ("babylon_tasks.store.steps.give_up", "after", [2, 3, 4]),
        ("babylon_tasks.checkpoints.files.remove_unfinished", "before", [3, 4]),
        ("fsspec.implementations.local.LocalFileSystem.rm", "after", [3, 4]),
    ],
)
def test_killed_while_it_removes(
    deployment: Deployment, trainer: TrainerProcess, call: str, at: Any, left: list[int]
) -> None:
    """Before the note, between note and removal, and in the middle of a removal."""
    commit_with_retention(deployment, trainer, 4)
    add_window(deployment.context, hours_ago(20))
    kill = Injection(call, "kill", at=at)
    harm = injecting(kill, python_path=os.environ.get("PYTHONPATH", ""))
    done = deployment.run("babylon", "train", env={"KEEP_CHECKPOINTS": "1", **harm})
    assert done.returncode == -signal.SIGKILL, done.stderr
    with_files = [each["step"] for each in listed(deployment) if each["removed_at"] is None]
    assert sorted(with_files) == left
    assert folders(deployment) == [2, 3, 4]
    deployment.wait(lambda: _trained(deployment, hours_ago(20)))
    with_files = [each["step"] for each in listed(deployment) if each["removed_at"] is None]
    assert sorted(with_files) == folders(deployment) == [3, 4, 5]
    assert query(deployment.context, "SELECT * FROM rl.unfinished_checkpoints") == []


def _trained(deployment: Deployment, window_id: str) -> bool:
    """Once the dead one's lease has run out."""
    deployment.call("babylon", "train", env={"KEEP_CHECKPOINTS": "1"})
    row = one(deployment.context, "SELECT state FROM rl.windows WHERE window_id = %s", window_id)
    return bool(row["state"] == "trained")
