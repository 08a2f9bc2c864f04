"""The torch trainer in a process of its own, which imports for seconds before its first step."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("peft")
os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
os.environ.setdefault("WANDB_MODE", "disabled")
pytest.importorskip("art")

import torch
from safetensors.torch import load_file

from babylon_tasks.errors import TrainerDied, UserError
from babylon_tasks.records.steps import Progress
from tests.unit.tiny import make_request, make_tiny_model, two_sided
from workers.gpu.client import TrainerOptions, TrainerProcess
from workers.trainer.torch.trainer import TorchTrainer


@pytest.mark.slow
def test_a_step_killed_in_the_middle_and_repeated_gives_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real trainer process, SIGKILL while it trains, another process, the same request."""
    base_model = make_tiny_model(tmp_path / "model")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    monkeypatch.chdir(tmp_path)
    # `import art` reads .env: with the key, ART would open a run at W&B and need the network.
    (tmp_path / ".env").write_text("WANDB_API_KEY=" + "0" * 40 + "\n")
    first = make_request(tmp_path, base_model, two_sided(), name="first")
    TorchTrainer("cpu-0").step(first, lambda progress: None)
    parent = first.output_dir
    second = make_request(
        tmp_path, base_model, two_sided(), parent, "second", micro_batch_tokens=16
    )
    process = TrainerProcess(TrainerOptions("torch", None, "cpu-0", 0.2, 100.0, 60.0))
    beats: list[Any] = []

    def kill(progress: Progress | None) -> None:
        if progress is not None and progress.phase == "train":
            assert process.pid is not None
            os.kill(process.pid, signal.SIGKILL)

    try:
        with pytest.raises(TrainerDied, match="SIGKILL"):
            process.step(second, kill)
        assert not Path(second.output_dir).exists()
        result = process.step(second, beats.append)
        with pytest.raises(UserError, match=r"BASE_MODEL=.* cannot be loaded"):
            process.step(
                make_request(tmp_path, str(tmp_path), two_sided(), name="none"), beats.append
            )
    finally:
        process.close()
    assert (result.sequences, result.optimizer_steps) == (16, 1)
    assert {beat.phase for beat in beats if beat is not None} == {
        "load", "tokenize", "train", "save"
    }  # fmt: skip
    unhurt = make_request(
        tmp_path, base_model, two_sided(), parent, "unhurt", micro_batch_tokens=16
    )
    TorchTrainer("cpu-0").step(unhurt, lambda progress: None)
    repeated, expected, before = map(weights, (second.output_dir, unhurt.output_dir, parent))
    assert repeated.keys() == expected.keys()
    for key, tensor in expected.items():
        torch.testing.assert_close(repeated[key], tensor, rtol=1e-5, atol=1e-8)
    assert any(not torch.equal(before[key], expected[key]) for key in before)


def weights(folder: str) -> dict[str, torch.Tensor]:
    return load_file(Path(folder) / "adapter_model.safetensors")
