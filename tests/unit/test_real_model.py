"""What an experiment needs of a real model: a tokenizer put right, the form of an answer taught."""

from __future__ import annotations

import itertools
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("peft")
os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
os.environ.setdefault("WANDB_MODE", "disabled")
pytest.importorskip("art")

import torch
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from benchmarks.real_model import Example, as_batch, as_published, teach_form
from tests.unit.tiny import CHAT_TEMPLATE, make_tiny_model
from workers.trainer.torch.language_model import LanguageModel


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(make_tiny_model(tmp_path_factory.mktemp("tiny")))


def example(rng: random.Random, answer: str) -> Example:
    asked = f"Price {rng.randint(100, 999)}. Will it rise? Say YES or NO."
    return [{"role": "user", "content": asked}], answer


def drawn(seed: int) -> Iterator[Example]:
    rng = random.Random(seed)
    while True:
        yield example(rng, rng.choice(["YES", "NO"]))


@torch.no_grad()
def mean_chance(folder: Path, answer: str) -> float:
    model = LanguageModel(str(folder), torch.device("cpu"))
    rng = random.Random(-1)
    batch = as_batch(model.chat, [example(rng, answer) for _ in range(16)])
    logprobs, _ = model.logprobs(batch.inputs["tokens"], batch.predicts)
    return float(batch.spread(logprobs).sum(1).exp().mean())


def test_a_model_that_was_taught_the_form_keeps_to_it_and_prefers_no_answer(
    base: Path, tmp_path: Path
) -> None:
    assert mean_chance(base, "YES") + mean_chance(base, "NO") < 0.01
    taught = teach_form(base, tmp_path / "taught", drawn(0), steps=60, rate=3e-3)
    yes, no = mean_chance(taught, "YES"), mean_chance(taught, "NO")
    assert yes + no > 0.95
    assert 0.3 < yes / (yes + no) < 0.7


def test_a_model_that_was_taught_is_used_again(base: Path, tmp_path: Path) -> None:
    taught = teach_form(base, tmp_path / "taught", drawn(0), steps=1, rate=1e-4)
    assert teach_form(base, taught, iter(()), steps=1, rate=1e-4) == taught


def test_too_few_examples_leave_no_folder(base: Path, tmp_path: Path) -> None:
    few = itertools.islice(drawn(0), 12)
    with pytest.raises(ValueError, match="2 steps need 16 examples"):
        teach_form(base, tmp_path / "taught", few, steps=2, rate=1e-4)
    assert not [*tmp_path.iterdir()]


def read_of_a_gguf_file() -> Any:
    """A tokenizer as transformers reads it of such a file: with CodeLlama's habits."""
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokens = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet()), "Ġa", "12"]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    bpe = Tokenizer(models.BPE(vocabulary, [("Ġ", "a"), ("1", "2")], unk_token=special[0]))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.add_special_tokens([AddedToken(token, special=True) for token in [*special, "▁<PRE>"]])
    bpe.post_processor = processors.TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", 1)]
    )
    read = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|im_start|>")
    read.chat_template = CHAT_TEMPLATE
    return read


def test_the_tokenizer_of_a_gguf_file_is_that_of_the_model_again() -> None:
    read = read_of_a_gguf_file()
    assert (read.decode(read.encode("a a")), len(read)) == ("<|im_start|> a Ġa", 3 + 256 + 3)
    tokenizer = as_published(read)
    assert len(tokenizer) == 3 + 256 + 2  # as many as the model has
    assert tokenizer.decode(tokenizer.encode("é a a\n模")) == "é a a\n模"
    assert tokenizer.eos_token_id == 2
    assert tokenizer.encode("<|im_end|>") == [2]
    assert tokenizer.convert_ids_to_tokens(tokenizer.encode("12")) == ["1", "2"]
    assert tokenizer.chat_template == CHAT_TEMPLATE
