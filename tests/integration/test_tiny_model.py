"""The tiny model: made once, loadable like a hub model, and answering with actions."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from babylon_tasks.simulation import simulate
from babylon_tasks.simulation import tiny_model as tiny_model_module
from babylon_tasks.simulation.tiny_model import make_tiny_model

transformers = pytest.importorskip("transformers")
torch = pytest.importorskip("torch")


@pytest.fixture(scope="module")
def folder(tiny_model: Path) -> Path:
    return tiny_model


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Any:
    return transformers.AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def model(folder: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(folder)


def chat(system: str, user: str) -> list[dict[str, str]]:
    return [{"role": "system", "content": system}, {"role": "user", "content": user}]


def answer(model: Any, tokenizer: Any, system: str, user: str) -> str:
    prompt = tokenizer.apply_chat_template(
        chat(system, user), add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    output = model.generate(**prompt, max_new_tokens=60, do_sample=False)[0]
    answered = output[prompt["input_ids"].shape[1] :]
    assert answered[-1] == tokenizer.eos_token_id
    return tokenizer.decode(answered, skip_special_tokens=True)


def test_a_finished_folder_is_used_again(folder: Path) -> None:
    before = {p.name: p.stat().st_mtime_ns for p in folder.iterdir()}
    assert make_tiny_model(folder) == folder
    assert {p.name: p.stat().st_mtime_ns for p in folder.iterdir()} == before
    assert [p.name for p in folder.parent.iterdir()] == [folder.name]


def test_it_tells_how_far_it_is_and_leaves_torchs_threads_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiny_model_module, "_WARM_STEPS", 2)
    threads, seen = torch.get_num_threads(), []
    try:
        torch.set_num_threads(2)
        make_tiny_model(tmp_path / "model", lambda *progress: seen.append(progress))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert seen == [(1, 2), (2, 2)]


def test_shape(model: Any, tokenizer: Any) -> None:
    assert type(model).__name__ == "Qwen2ForCausalLM"
    assert 600_000 < sum(p.numel() for p in model.parameters()) < 1_500_000
    assert 1_000 < len(tokenizer) <= 2_000
    assert model.config.vocab_size == len(tokenizer)
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    assert tokenizer.eos_token == "<|im_end|>"


def test_chat_template(tokenizer: Any) -> None:
    text = tokenizer.apply_chat_template(chat("S", "U"), add_generation_prompt=True, tokenize=False)
    assert text == (
        "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nU<|im_end|>\n<|im_start|>assistant\n"
    )
    for special in ("<|im_start|>", "<|im_end|>", "<|endoftext|>"):
        assert len(tokenizer.encode(special, add_special_tokens=False)) == 1


@pytest.mark.parametrize("text", ["Zürich \N{ROCKET} 東京", "before\x00after", "  two\n\n\tlines "])
def test_any_text_survives_the_tokenizer(tokenizer: Any, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


def test_answers_are_actions(model: Any, tokenizer: Any) -> None:
    for seed in range(12):
        asked = simulate.question(seed)
        action = json.loads(answer(model, tokenizer, asked.system_prompt, asked.user_prompt))
        assert action["action"] in ("BUY_SHARES", "SELL_SHARES", "HOLD")


def test_long_prompts_are_answered_too(model: Any, tokenizer: Any) -> None:
    long = (c for c in simulate.calls(9, 0.5) if c.purpose == "action" and len(c.user_prompt) > 300)
    for call in itertools.islice(long, 4):
        assert json.loads(answer(model, tokenizer, call.system_prompt, call.user_prompt))["action"]


def test_lora_fits(folder: Path) -> None:
    peft = pytest.importorskip("peft")
    base = transformers.AutoModelForCausalLM.from_pretrained(folder)
    config = peft.LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    adapted = peft.get_peft_model(base, config)
    loss = adapted(input_ids=torch.tensor([[1, 2, 3]]), labels=torch.tensor([[1, 2, 3]])).loss
    loss.backward()
    assert any(p.grad is not None for p in adapted.parameters() if p.requires_grad)
