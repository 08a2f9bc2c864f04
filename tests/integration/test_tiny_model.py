"""The tiny model: made once, loadable like a hub model; it knows the form, and not what pays."""

import itertools
import math
import statistics
from pathlib import Path
from typing import Any

import pytest

from babylon_tasks.simulation import tiny_model as tiny_model_module
from babylon_tasks.simulation.game.look import Look, fresh_markets, look, questions
from babylon_tasks.simulation.game.market import DOWN, HOLD, SIGNALS, UP, Rules
from babylon_tasks.simulation.game.population import POLICIES, POPULATION, players
from babylon_tasks.simulation.game.prompts import messages, read_answer, write_answer
from babylon_tasks.simulation.tiny_model import make_tiny_model

transformers = pytest.importorskip("transformers")
torch = pytest.importorskip("torch")

pytestmark = pytest.mark.slow  # to teach it takes a core 15 seconds; the slow tests need it anyway

MARKETS = fresh_markets(11, 0, Rules(), 32)


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


def answer(model: Any, tokenizer: Any, asked: list[dict[str, str]]) -> str:
    prompt = tokenizer.apply_chat_template(
        asked, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    output = model.generate(**prompt, max_new_tokens=20, do_sample=False)[0]
    answered = output[prompt["input_ids"].shape[1] :]
    assert answered[-1] == tokenizer.eos_token_id
    return str(tokenizer.decode(answered, skip_special_tokens=True))


def likely(model: Any, tokenizer: Any, asked: list[dict[str, str]], said: str) -> float:
    """The log-probability of an answer with its end."""
    text = tokenizer.apply_chat_template(asked, add_generation_prompt=True, tokenize=False)
    prompt = tokenizer.encode(text, add_special_tokens=False)
    answered = [*tokenizer.encode(said, add_special_tokens=False), tokenizer.eos_token_id]
    with torch.inference_mode():
        logits = model(torch.tensor([prompt + answered])).logits[0, len(prompt) - 1 : -1]
    values = logits.log_softmax(-1).gather(1, torch.tensor(answered)[:, None])
    return float(values.sum())


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


def test_its_answers_are_well_formed_and_about_even(model: Any, tokenizer: Any) -> None:
    calls = [sample.calls[0] for sample in questions(MARKETS)]
    logprobs = [likely(model, tokenizer, chat(c.system, c.user), c.response) for c in calls]
    seen: Look = look(MARKETS, logprobs)
    assert seen.well_formed > 0.95
    for action in (UP, DOWN, HOLD):
        chance = statistics.fmean(map(math.exp, logprobs[action::3]))
        assert 0.2 < chance / seen.well_formed < 0.47
    assert -0.3 < seen.gap_closed < 0.3  # nearly all is there to learn


def test_whoever_plays_its_answers_are_well_formed(model: Any, tokenizer: Any) -> None:
    """The names of players are not those of the lessons."""
    ours = players(POPULATION, POLICIES)[-POLICIES:]
    masses = [
        math.exp(likely(model, tokenizer, messages(player.name, market), write_answer(action)))
        for player in ours
        for market in MARKETS[:4]
        for action in (UP, DOWN, HOLD)
    ]
    assert 3 * statistics.fmean(masses) > 0.8


def test_told_to_follow_a_signal_it_mostly_does(model: Any, tokenizer: Any) -> None:
    """More often than one in three, or in two, as drawing lots would."""
    followed = []
    for market, signal in itertools.product(MARKETS[:24], SIGNALS):
        said = answer(model, tokenizer, messages("Ada", market, f"follow {signal}"))
        meant = {1: UP, 0: HOLD, -1: DOWN}[market.signals[signal]]
        followed.append(read_answer(said) == meant)
    assert statistics.fmean(followed) > 0.55


def test_lora_fits(folder: Path) -> None:
    peft = pytest.importorskip("peft")
    base = transformers.AutoModelForCausalLM.from_pretrained(folder)
    config = peft.LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    adapted = peft.get_peft_model(base, config)
    loss = adapted(input_ids=torch.tensor([[1, 2, 3]]), labels=torch.tensor([[1, 2, 3]])).loss
    loss.backward()
    assert any(p.grad is not None for p in adapted.parameters() if p.requires_grad)
