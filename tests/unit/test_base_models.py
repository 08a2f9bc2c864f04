"""Kinds of models: each is computed as transformers computes it, or refused in one line."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("peft")
os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
os.environ.setdefault("WANDB_MODE", "disabled")
pytest.importorskip("art")

import torch
import transformers as hf
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from babylon_tasks.errors import UserError
from babylon_tasks.records.steps import Call, Sample
from tests.unit.tiny import CHAT_TEMPLATE, make_request, make_tiny_model
from workers.trainer.torch import template
from workers.trainer.torch.base_model import base_revision, load_base
from workers.trainer.torch.language_model import LanguageModel
from workers.trainer.torch.model_files import check_base
from workers.trainer.torch.trainer import TorchTrainer

CPU = torch.device("cpu")
SHAPE: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "eos_token_id": 1,
    "bos_token_id": 1,
    "pad_token_id": 0,
}
GPT2 = {"vocab_size": 320, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 128}
GEMMA = {**SHAPE, "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 16}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(make_tiny_model(tmp_path_factory.mktemp("tiny")))


@pytest.fixture
def folder(tiny: Path, tmp_path: Path) -> Path:
    """The tiny model's files, to be spoiled."""
    return Path(shutil.copytree(tiny, tmp_path / "model"))


def save(folder: Path, network: Any) -> str:
    """Put another network beside the tiny model's tokenizer."""
    (folder / "model.safetensors").unlink()
    network.save_pretrained(folder)
    return str(folder)


def rewrite(file: Path, **changes: Any) -> str:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    return str(file.parent)


def refusal(base_model: str) -> str:
    with pytest.raises(UserError) as refused:
        LanguageModel(base_model, CPU)
    message = str(refused.value)
    assert f"BASE_MODEL={base_model}" in message
    assert "\n" not in message
    return message


WORKS: dict[str, tuple[Callable[[], Any], int]] = {
    "gemma-2": (
        lambda: hf.Gemma2ForCausalLM(hf.Gemma2Config(**{**GEMMA, "attn_logit_softcapping": 0.5})),
        512,
    ),
    "gemma-3": (lambda: hf.Gemma3ForCausalLM(hf.Gemma3TextConfig(**GEMMA)), 512),
    "gpt-2": (lambda: hf.GPT2LMHeadModel(hf.GPT2Config(**GPT2)), 128),
    "sliding": (
        lambda: hf.MistralForCausalLM(hf.MistralConfig(**{**SHAPE, "sliding_window": 8})),
        512,
    ),
    "alibi": (
        lambda: hf.FalconForCausalLM(hf.FalconConfig(**{**SHAPE, "alibi": True})),
        512,
    ),
    "tied": (
        lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**{**SHAPE, "tie_word_embeddings": True})),
        512,
    ),
    "yarn": (
        lambda: hf.Qwen2ForCausalLM(
            hf.Qwen2Config(
                **SHAPE,
                rope_parameters={
                    "rope_type": "yarn",
                    "rope_theta": 1e4,
                    "factor": 4.0,
                    "original_max_position_embeddings": 512,
                },
            )
        ),
        2048,
    ),
    "experts": (
        lambda: hf.MixtralForCausalLM(hf.MixtralConfig(**{**SHAPE, "num_local_experts": 2})),
        512,
    ),
}


@pytest.mark.parametrize("name", WORKS)
def test_it_computes_what_transformers_computes(name: str, folder: Path) -> None:
    """Gemma-2's cap is strong here: `sdpa`, which leaves it out, is off by 0.1."""
    make, positions = WORKS[name]
    torch.manual_seed(0)
    network = make()
    for weight in network.parameters():  # larger than at the start, so that attention counts
        weight.data.mul_(8 if weight.dim() > 1 else 1)
    base_model = save(folder, network)
    model = LanguageModel(base_model, CPU)
    tokens = torch.randint(5, 300, (1, 60))
    predicts = torch.zeros(1, 60, dtype=torch.bool)
    predicts[:, 50:] = True
    plain = AutoModelForCausalLM.from_pretrained(
        base_model, attn_implementation="eager", dtype=torch.float32
    )
    with torch.no_grad():
        theirs = torch.log_softmax(plain(tokens).logits, -1)[0, 49:59]
        ours, _ = model.logprobs(tokens, torch.roll(predicts, -1, dims=1))
    expected = theirs.gather(1, tokens[0, 50:, None]).squeeze(1)
    torch.testing.assert_close(ours[: len(expected)], expected, rtol=1e-4, atol=1e-3)
    assert model.chat.facts.positions == positions


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "t5": (
        lambda: hf.T5ForConditionalGeneration(
            hf.T5Config(vocab_size=320, d_model=32, d_ff=64, num_layers=1, num_heads=2, d_kv=16)
        ),
        "has an encoder and a decoder",
    ),
    "bert": (
        lambda: hf.BertForMaskedLM(hf.BertConfig(vocab_size=320, hidden_size=32,
            num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)),
        "is a BertForMaskedLM, which says no next token",
    ),
    "bert-as-decoder": (
        lambda: hf.BertLMHeadModel(hf.BertConfig(vocab_size=320, hidden_size=32,
            num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)),
        "looks at what comes later",
    ),
    "reward": (
        lambda: hf.Qwen2ForSequenceClassification(hf.Qwen2Config(**SHAPE)),
        "is a Qwen2ForSequenceClassification, which says no next token",
    ),
    "without-head": (
        lambda: hf.Qwen2Model(hf.Qwen2Config(**SHAPE)),
        "has no weights for lm_head.weight",
    ),
    "pictures": (
        lambda: hf.LlavaForConditionalGeneration(
            hf.LlavaConfig(
                text_config=hf.LlamaConfig(**SHAPE),
                vision_config=hf.CLIPVisionConfig(
                    hidden_size=32, intermediate_size=32, num_hidden_layers=1,
                    num_attention_heads=2, image_size=32, patch_size=16,
                ),
            )
        ),
        "reads more than text",
    ),
    "mamba": (
        lambda: hf.MambaForCausalLM(
            hf.MambaConfig(vocab_size=320, hidden_size=32, num_hidden_layers=1, state_size=4)
        ),
        "does not support an attention",
    ),
    "granite": (
        lambda: hf.GraniteForCausalLM(hf.GraniteConfig(**{**SHAPE, "logits_scaling": 4.0})),
        "scales its logits",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_other_kinds_are_refused_in_one_line(name: str, folder: Path) -> None:
    make, reason = REFUSED[name]
    torch.manual_seed(0)
    assert reason in refusal(save(folder, make()))


def test_weights_that_are_no_numbers_are_refused(folder: Path) -> None:
    file = folder / "model.safetensors"
    weights = load_file(file)
    weights["model.layers.1.mlp.up_proj.weight"][3, 3] = float("nan")
    save_file(weights, file, {"format": "pt"})
    assert "not finite: its weights are damaged" in refusal(str(folder))


@pytest.mark.parametrize("method", ["gptq", "awq", "bitsandbytes", "fp8"])
def test_a_quantized_model_is_refused(folder: Path, method: str) -> None:
    config = {"quant_method": method, "bits": 4}
    assert f"is quantized ({method})" in refusal(
        rewrite(folder / "config.json", quantization_config=config)
    )


def test_an_unknown_kind_is_refused(folder: Path) -> None:
    assert "cannot be loaded" in refusal(rewrite(folder / "config.json", model_type="llama9"))


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("tokenizer.json", '{"a": 1}'),
        ("tokenizer_config.json", "{"),
        ("config.json", "[]"),
        ("config.json", '{"model_type": "qwen2", "hidden_size": 0, "vocab_size": 320}'),
        ("config.json", '{"model_type": "qwen2", "vocab_size": "many"}'),
        ("model.safetensors", "no weights"),
    ],
)
def test_spoiled_files_are_refused_in_one_line(file: str, text: str, folder: Path) -> None:
    (folder / file).write_text(text)
    assert "cannot be loaded" in refusal(str(folder))


# --- nothing is asked, and no code of a model is run ---

CODE = "raise SystemExit('code of a model was run')\n"


@pytest.mark.parametrize(
    ("file", "reason"),
    [
        ("config.json", "brings code of its own, which is not run here"),
        ("tokenizer_config.json", "cannot be loaded"),
    ],
)
def test_code_of_a_model_is_neither_run_nor_asked_about(
    file: str, reason: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "own.py").write_text(CODE)
    if file == "config.json":
        classes: dict[str, Any] = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}
        rewrite(folder / file, auto_map=classes, model_type="its-own")
    else:
        (folder / "tokenizer.json").unlink()
        classes = {"AutoTokenizer": ["own.Tokenizer", None]}
        rewrite(folder / file, auto_map=classes, tokenizer_class="Own")
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("it asks on a terminal"))
    assert reason in refusal(str(folder))


def test_a_known_model_needs_no_code_of_its_own(folder: Path) -> None:
    """Many configurations still name code that transformers has taken over since."""
    (folder / "own.py").write_text(CODE)
    rewrite(folder / "config.json", auto_map={"AutoModelForCausalLM": "own.Model"})
    LanguageModel(str(folder), CPU)


# --- tokenizers that do not fit ---


def test_a_tokenizer_with_more_tokens_than_embeddings_is_refused(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<extra>"])
    tokenizer.save_pretrained(folder)
    size = len(tokenizer)
    message = refusal(str(folder))
    assert f"has {size} tokens, but the model {size - 1} embeddings (none for '<extra>')" in message


def test_checks_need_no_weights(folder: Path) -> None:
    """So that doctor can make them."""
    (folder / "model.safetensors").unlink()
    chat, config = check_base(str(folder), None)
    assert (config.model_type, chat.facts.positions) == ("qwen2", 4096)
    with pytest.raises(UserError, match="cannot be loaded"):
        load_base(str(folder), None, CPU, torch.float32)


def test_a_tokenizer_without_padding_or_generation_settings_will_do(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = None
    tokenizer.save_pretrained(folder)
    (folder / "generation_config.json").unlink()
    model = LanguageModel(str(folder), CPU)
    assert model.chat.stops == {tokenizer.eos_token_id}
    assert base_revision(str(folder), None).startswith("files:")


# --- the template's clock ---


def test_a_step_is_the_same_on_another_day(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The template writes the date: it is the window's, not that of the step."""

    class Later(datetime):
        @classmethod
        def now(cls, zone: Any = None) -> datetime:
            return datetime(2031, 7, 4, tzinfo=zone)

    dated = "{{ strftime_now('%d %b %Y') }}" + CHAT_TEMPLATE
    (folder / "chat_template.jinja").write_text(dated)
    samples = [
        Sample("2025-01-15T10:00", str(n), float(n), [Call("", "rise", "YES" if n else "NO")])
        for n in range(2)
    ]
    trainer = TorchTrainer("cpu")
    weights = []
    for day in ("today", "later"):
        request = make_request(folder.parent, str(folder), samples, name=day)
        trainer.step(request, lambda progress: None)
        weights.append((Path(request.output_dir) / "adapter_model.safetensors").read_bytes())
        monkeypatch.setattr(template, "datetime", Later)
    assert weights[0] == weights[1]
