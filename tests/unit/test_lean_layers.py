"""The path that CUDA takes, in bfloat16 on the CPU: the same gradients, with less memory."""

from __future__ import annotations

import os

import pytest

pytest.importorskip("torch")
pytest.importorskip("peft")
os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
os.environ.setdefault("WANDB_MODE", "disabled")
pytest.importorskip("art")

import torch
from peft import LoraConfig, get_peft_model
from transformers import Qwen2Config, Qwen2ForCausalLM
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm

from babylon_tasks.errors import UserError
from tests.unit.first_update import first_gradients
from tests.unit.tiny import make_tiny_model, two_sided
from workers.trainer.samples import trajectory_groups
from workers.trainer.torch import gradients
from workers.trainer.torch.batches import StepTensors
from workers.trainer.torch.language_model import LanguageModel
from workers.trainer.torch.lean_layers import use_lean_lora, use_lean_norms
from workers.trainer.torch.tokenized import tokenize_groups

# ART correlates the recorded logprobs, of which there are none.
pytestmark = pytest.mark.filterwarnings("ignore:cov")

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def base_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_tiny_model(tmp_path_factory.mktemp("tiny"))


def moved(base_model: str, dtype: torch.dtype) -> LanguageModel:
    model = LanguageModel(base_model, CPU, dtype)
    model.add_adapter(8, 16, seed=3)
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    return model


def step_of(model: LanguageModel) -> StepTensors:
    tokenized = tokenize_groups(model.chat, trajectory_groups(two_sided(3)), 1024)
    return StepTensors.from_packed(tokenized.sequences.packed(0.7))


def gradient(model: LanguageModel, micro_batch_tokens: int = 4096) -> torch.Tensor:
    """One flat vector."""
    found, _ = first_gradients(model, step_of(model), micro_batch_tokens=micro_batch_tokens)
    return torch.cat([gradient.flatten() for gradient in found])


def apart(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).norm() / other.norm())


def test_lora_is_pefts(base_model: str) -> None:
    torch.manual_seed(1)
    config = Qwen2Config(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, vocab_size=32,
    )  # fmt: skip
    lora = LoraConfig(r=4, lora_alpha=12, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(Qwen2ForCausalLM(config), lora)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)  # B too: the adapter does something
    tokens = torch.randint(0, 32, (3, 7))

    def run() -> list[torch.Tensor]:
        model.zero_grad()
        logits = model(input_ids=tokens).logits
        logits.pow(2).sum().backward()
        with torch.no_grad(), model.disable_adapter():
            base = model(input_ids=tokens).logits
        return [logits, base, *[p.grad for p in model.parameters() if p.requires_grad]]

    theirs = run()
    use_lean_lora(model)
    ours = run()
    assert not torch.allclose(theirs[0], theirs[1])
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_norms_are_torchs_where_that_is_the_same() -> None:
    torch.manual_seed(1)
    network = torch.nn.ModuleList([Qwen2RMSNorm(12), GemmaRMSNorm(12)])
    with torch.no_grad():
        for norm in network:
            norm.weight += torch.randn(12)
    values = torch.randn(2, 5, 12)
    before = [norm(values) for norm in network]
    use_lean_norms(network)
    assert ["forward" in vars(norm) for norm in network] == [True, False]
    for norm, expected in zip(network, before, strict=True):
        torch.testing.assert_close(norm(values), expected)


def test_bfloat16_gives_the_gradients_of_float32(base_model: str) -> None:
    exact, half = moved(base_model, torch.float32), moved(base_model, torch.bfloat16)
    assert half.network.dtype == torch.bfloat16
    assert {p.dtype for p in half.parameters()} == {torch.float32}
    assert apart(gradient(half), gradient(exact)) < 0.05


def test_without_activations_the_gradients_are_the_same(base_model: str) -> None:
    model = moved(base_model, torch.bfloat16)
    kept = gradient(model)
    assert model.save_memory()
    assert not model.save_memory()
    assert apart(gradient(model), kept) < 1e-6


# What CUDA itself and its libraries raise where torch's allocator had no part in it.
OF_CUDA = torch.AcceleratorError("CUDA error: out of memory")
OF_CUBLAS = RuntimeError(
    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"
)


@pytest.mark.parametrize("error", [OF_CUDA, OF_CUBLAS], ids=["cuda", "cublas"])
def test_out_of_memory_gives_up_activations_first_and_then_rows(
    base_model: str, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    model = moved(base_model, torch.bfloat16)
    whole = gradient(model)
    tried: list[tuple[bool, int]] = []
    backward = gradients._Attempt._backward

    def limited(self: object, batch: object) -> object:
        rows = batch.predicts.shape[0]
        tried.append((model.network.is_gradient_checkpointing, rows))
        if rows > 4 or not model.network.is_gradient_checkpointing:
            raise error
        return backward(self, batch)

    monkeypatch.setattr(gradients._Attempt, "_backward", limited)
    assert apart(gradient(model), whole) < 0.02
    assert [kept for kept, _ in tried[:2]] == [False, True]
    assert tried[0][1] == tried[1][1] > 4


@pytest.mark.parametrize("error", [OF_CUDA, OF_CUBLAS], ids=["cuda", "cublas"])
def test_a_gpu_that_others_fill_is_nobodys_fault(
    base_model: str, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def full(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", full)
    with pytest.raises(UserError, match=r"^CUDA out of memory while loading BASE_MODEL"):
        LanguageModel(base_model, CPU)


def test_another_fault_of_cuda_is_not_taken_for_a_lack_of_memory(
    base_model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fault(self: object, batch: object) -> object:
        raise torch.AcceleratorError("CUDA error: device-side assert triggered")

    monkeypatch.setattr(gradients._Attempt, "_backward", fault)
    with pytest.raises(torch.AcceleratorError, match="device-side assert"):
        gradient(moved(base_model, torch.bfloat16))
