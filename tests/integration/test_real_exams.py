"""Exams by the real trainer: honest steps pass; damaged, foreign and distorted weights do not."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("peft")
os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
os.environ.setdefault("WANDB_MODE", "disabled")
pytest.importorskip("art")

import msgspec
import torch
from safetensors.torch import load_file, save_file

from babylon_tasks import pipeline
from babylon_tasks.checkpoints.manifest import MANIFEST
from babylon_tasks.records.exams import Exam, ExamState
from babylon_tasks.records.lineages import Lineage
from babylon_tasks.records.windows import parse_window_id
from babylon_tasks.simulation.game.hour import play_hour
from babylon_tasks.simulation.game.market import Rules
from babylon_tasks.simulation.game.population import POPULATION, players
from babylon_tasks.simulation.game.record import record
from babylon_tasks.simulation.write import write
from babylon_tasks.store import exams
from babylon_tasks.work.context import Context
from tests.rows import hours_ago, one
from workers.gpu.client import TrainerOptions, TrainerProcess

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

SEED = 5
Weights = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def torch_trainer() -> Iterator[TrainerProcess]:
    process = TrainerProcess(TrainerOptions("torch", None, "cpu-0", 1.0, 120.0, 600.0))
    yield process
    process.close()


@pytest.fixture
def gated(make_context: Callable[..., Context], tiny_model: Path) -> Context:
    context = make_context(
        publish="gate", experiment_percent=0, trainer="torch", base_model=str(tiny_model)
    )
    return replace(context, lineage=Lineage.of_deployment(context.settings))


def another_step(context: Context, trainer: TrainerProcess) -> Exam | None:
    """Let the personas play an hour, and train what may be trained; the exam of the step before."""
    number = one(context, "SELECT count(*) AS n FROM rl.windows")["n"]
    window = hours_ago(10 - number)
    everyone = players(POPULATION, 0)
    hour = play_hour(SEED, number, Rules(), everyone, lambda asked: [])
    with context.database.transaction() as tx:
        write(tx, [record(hour, parse_window_id(window).replace(tzinfo=None), SEED)])
    pipeline.enqueue(context, window)
    pipeline.score(context)
    pipeline.train(context, trainer)
    with context.database.transaction() as tx:
        found = exams.read(tx, context.lineage.name)
    return found[0] if found else None


def change_weights(context: Context, change: Callable[[str, torch.Tensor], torch.Tensor]) -> None:
    """Change the newest step's weights, as if its trainer had saved them so."""
    row = one(context, "SELECT checkpoint FROM rl.steps ORDER BY step DESC LIMIT 1")
    path = Path(row["checkpoint"]) / "adapter_model.safetensors"
    changed = {name: change(name, tensor) for name, tensor in load_file(path).items()}
    save_file(changed, path)
    path = path.with_name(MANIFEST)
    manifest = msgspec.json.decode(path.read_bytes())
    size = (path.parent / "adapter_model.safetensors").stat().st_size
    manifest["files"]["adapter_model.safetensors"] = size
    del manifest["sha256"]["adapter_model.safetensors"]
    path.write_bytes(msgspec.json.encode(manifest))


def test_honest_steps_pass_and_spoiled_ones_have_no_children(
    gated: Context, torch_trainer: TrainerProcess
) -> None:
    assert another_step(gated, torch_trainer) is None
    exam = another_step(gated, torch_trainer)
    assert exam
    assert (exam.step, exam.state) == (1, ExamState.PASSED), exam.reason
    figures = exam.figures
    assert figures.keys() >= {"value", "ranking", "form", "unusable", "kl", "length", "entropy"}
    assert figures["value"].left_out, "the personas' answers have no log-probabilities"
    assert figures["form"].candidate
    assert figures["form"].candidate > 0.9
    assert figures["kl"].candidate is not None

    change_weights(gated, lambda name, tensor: torch.full_like(tensor, torch.nan))
    exam = another_step(gated, torch_trainer)
    assert exam
    assert (exam.step, exam.state) == (2, ExamState.FAILED)
    assert exam.reason
    assert "are not finite" in exam.reason

    change_weights(gated, lambda name, tensor: torch.randn_like(tensor))
    exam = another_step(gated, torch_trainer)
    assert exam
    assert (exam.step, exam.state) == (3, ExamState.FAILED)
    assert exam.reason
    assert "form fell from" in exam.reason

    def another_architecture(name: str, tensor: torch.Tensor) -> torch.Tensor:
        return tensor[:, :1].contiguous() if "lora_A" in name else tensor

    change_weights(gated, another_architecture)
    parent = one(gated, "SELECT parent_step FROM rl.steps WHERE step = 4")["parent_step"]
    assert parent == 1, "steps 2 and 3 are parents of none"
    exam = another_step(gated, torch_trainer)
    assert exam
    assert (exam.step, exam.state) == (4, ExamState.FAILED)
    assert exam.reason
    assert "do not fit" in exam.reason
    assert one(gated, "SELECT max(step) AS step FROM rl.steps")["step"] == 4, "three in a row"
