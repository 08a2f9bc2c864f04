"""What only a GPU can show: `pytest tests/gpu`. Skipped where torch sees none."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("peft")
os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
os.environ.setdefault("WANDB_MODE", "disabled")
pytest.importorskip("art")

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from babylon_tasks.errors import Final, Retryable
from babylon_tasks.records.steps import Progress, Sample
from babylon_tasks.records.trainer_requests import EvaluateRequest, GenerateRequest
from tests.unit.first_update import first_gradients
from tests.unit.tiny import make_request, make_tiny_model, sample, two_sided
from workers.gpu.client import TrainerOptions, TrainerProcess
from workers.gpu.visible import visible_gpus
from workers.trainer.samples import trajectory_groups
from workers.trainer.torch.batches import StepTensors
from workers.trainer.torch.language_model import LanguageModel
from workers.trainer.torch.tokenized import tokenize_groups
from workers.trainer.torch.trainer import TorchTrainer

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU"),
    pytest.mark.filterwarnings("ignore:cov"),
    pytest.mark.timeout(300),
]

CUDA = torch.device("cuda")


@pytest.fixture(scope="module")
def base_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def trainer() -> Iterator[TrainerProcess]:
    gpus = visible_gpus()
    process = TrainerProcess(TrainerOptions("torch", gpus, gpus[0], 1.0, 200, idle_seconds=3))
    yield process
    process.close()


def ignore(progress: Progress | None) -> None:
    pass


def long_samples(words: int, calls: int = 4) -> list[Sample]:
    """16 agents; three words are about five tokens."""
    prompt = "rise or fall " * (words // 3)
    return [sample("w", n, n % 4, *[("", prompt, "BUY it now")] * calls) for n in range(16)]


def moved(base_model: str, device: torch.device) -> LanguageModel:
    """The same adapter on every device, away from its base."""
    model = LanguageModel(base_model, device, torch.bfloat16)
    model.add_adapter(8, 16, seed=3)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(0.05 * noise)
    return model


def gradient(model: LanguageModel, samples: list[Sample]) -> tuple[torch.Tensor, int]:
    """One flat vector on the CPU, and how many micro-batches it took."""
    tokenized = tokenize_groups(model.chat, trajectory_groups(samples), 4096)
    step = StepTensors.from_packed(tokenized.sequences.packed(0.7))
    found, totals = first_gradients(model, step, micro_batch_tokens=65_536)
    flat = torch.cat([gradient.flatten() for gradient in found])
    return flat.cpu(), totals.micro_batches


def apart(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).norm() / other.norm())


def test_cuda_gives_the_gradients_of_the_cpu(base_model: str) -> None:
    ours, _ = gradient(moved(base_model, CUDA), two_sided(3))
    exact, _ = gradient(moved(base_model, torch.device("cpu")), two_sided(3))
    assert apart(ours, exact) < 0.05


def test_a_step_tells_what_it_took(base_model: str, tmp_path: Path) -> None:
    result = TorchTrainer("GPU").step(make_request(tmp_path, base_model, two_sided()), ignore)
    assert result.device == torch.cuda.get_device_name()
    assert result.gpu_seconds > 0
    assert result.mfu is not None
    assert 0 < result.mfu < 1
    assert result.peak_memory_bytes is not None
    assert 1e6 < result.peak_memory_bytes < torch.cuda.get_device_properties(0).total_memory


@pytest.fixture
def limit_memory() -> Iterator[Callable[[float], None]]:
    """Lets this process have so many bytes of the GPU."""
    total = torch.cuda.get_device_properties(0).total_memory

    def limit(limit_bytes: float) -> None:
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction(limit_bytes / total)

    yield limit
    torch.cuda.set_per_process_memory_fraction(1.0)


def test_out_of_memory_halves_the_micro_batch(
    base_model: str, limit_memory: Callable[[float], None]
) -> None:
    model, samples = moved(base_model, CUDA), long_samples(words=600)
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    whole, batches = gradient(model, samples)
    needed = torch.cuda.max_memory_allocated() - before
    model.adapted.zero_grad()
    limit_memory(before + needed / 8)
    halved, more = gradient(model, samples)
    assert model.network.is_gradient_checkpointing
    assert more > batches
    assert apart(halved, whole) < 0.05


def test_one_sequence_that_does_not_fit_is_final(
    base_model: str, limit_memory: Callable[[float], None]
) -> None:
    model = moved(base_model, CUDA)
    gradient(model, two_sided())  # what CUDA's libraries need is there
    model.adapted.zero_grad()
    gc.collect()
    torch.cuda.empty_cache()  # or what that step has left would be room enough
    limit_memory(torch.cuda.memory_reserved())  # not a byte more
    with pytest.raises(Final):
        gradient(model, long_samples(words=2300, calls=1))
    torch.cuda.set_per_process_memory_fraction(1.0)
    gradient(model, two_sided())


def test_memory_is_given_back_after_the_idle_time(
    trainer: TrainerProcess, base_model: str, tmp_path: Path
) -> None:
    request = make_request(tmp_path, base_model, two_sided())
    trainer.step(request, ignore)
    warm, _ = torch.cuda.mem_get_info()
    while trainer.pid is not None:
        time.sleep(0.1)
    free, _ = torch.cuda.mem_get_info()
    assert free > warm + 100e6  # its context alone takes more


def test_a_cuda_fault_ends_the_trainer_and_not_the_worker(
    trainer: TrainerProcess, base_model: str, tmp_path: Path
) -> None:
    """A tokenizer with more tokens than the model has: a device-side assert in the embedding."""
    broken = make_tiny_model(tmp_path / "broken")
    config = Qwen2Config.from_pretrained(broken)
    config.vocab_size = 64
    Qwen2ForCausalLM(config).save_pretrained(broken)
    pids: list[int | None] = []
    with pytest.raises(Retryable, match="CUDA error"):
        trainer.step(
            make_request(tmp_path, broken, two_sided(), name="a"),
            lambda progress: pids.append(trainer.pid),
        )
    assert trainer.pid is None
    result = trainer.step(make_request(tmp_path, base_model, two_sided(), name="b"), ignore)
    assert result.optimizer_steps == 1
    assert trainer.pid not in pids


def test_lineages_take_turns_in_the_memory_of_one(base_model: str, tmp_path: Path) -> None:
    """Adapters of two ranks, asked and trained in turn; an evaluation is close to the CPU's."""
    trainer, held = TorchTrainer("GPU"), []
    for turn in range(6):
        rank = 8 if turn % 2 else 64
        step = make_request(
            tmp_path, base_model, two_sided(), name=f"s{turn}", lora_rank=rank, learning_rate=0.02
        )
        trainer.step(step, ignore)
        asked = EvaluateRequest("tiny", base_model, step.output_dir, step.samples_path, 1024, 4096)
        found = trainer.evaluate(asked, ignore)
        prompts = [call.prompt() for one in two_sided() for call in one.calls]
        generate = GenerateRequest(
            "tiny", base_model, step.output_dir, prompts, max_tokens=8, temperature=0.0, seed=1
        )
        assert trainer.generate(generate, ignore).tokens > 0
        held.append(torch.cuda.memory_allocated())
    exact = TorchTrainer("cpu-0").evaluate(asked, ignore)
    ours = torch.tensor([one.logprob for one in found.trajectories])
    assert apart(ours, torch.tensor([one.logprob for one in exact.trajectories])) < 0.05
    assert held[2:4] == held[4:]
