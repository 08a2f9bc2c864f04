"""A language model of about a million weights, made here, so that nothing is downloaded.

It has the shape of real ones (Qwen2, byte-level BPE, ChatML), so all code that loads a hub model
loads it too. Some seconds of supervised training teach it what `game.lessons` has: to answer in
form and to do as it is told, and not what pays.
"""

from __future__ import annotations

import contextlib
import itertools
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from babylon_tasks.simulation.game import lessons
from babylon_tasks.simulation.game.lessons import Example
from babylon_tasks.simulation.simulate import calls

if TYPE_CHECKING:
    import torch

END_OF_TEXT, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

_SEED = 7
_VOCABULARY = 2000
_TOKENIZER_TEXTS = 700  # of each kind
_WARM_STEPS = 100
_FORM, _OBEDIENCE = 8, 24  # examples in a step
_LEARNING_RATE = 2.5e-3
# Five times the usual: with 0.02 the few steps end before attention has found the momentum.
_WEIGHT_DEVIATION = 0.1
_IGNORE = -100
_T = TypeVar("_T")


def make_tiny_model(
    folder: Path, on_progress: Callable[[int, int], None] = lambda done, total: None
) -> Path:
    """Make the model and its tokenizer in `folder`; takes about 15 seconds of one core.

    `on_progress` gets (training steps done, steps in all).

    If the folder is complete, it is used again. The files are written to another folder, which is
    then renamed. So a process that dies leaves nothing that looks complete, and two processes may
    do this at once.
    """
    if (folder / "config.json").is_file():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        _make(unfinished, on_progress)
        unfinished.chmod(0o755)
        try:
            unfinished.rename(folder)
        except OSError:
            if not (folder / "config.json").is_file():
                raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def _make(folder: Path, on_progress: Callable[[int, int], None]) -> None:
    import torch
    from transformers.utils import logging

    tokenizer = _tokenizer()
    with torch.random.fork_rng(devices=[]), _one_thread():
        torch.manual_seed(_SEED)
        model = _new_model(tokenizer)
        _warm_start(model, tokenizer, on_progress)
    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    finally:
        if bars:
            logging.enable_progress_bar()


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Run torch on one thread: the work is so small that two would mostly wait for each other."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _tokenizer() -> Any:
    """Train a byte-level BPE tokenizer of about 2,000 tokens on what is taught and recorded."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.normalizer = normalizers.NFC()
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=_VOCABULARY,
        special_tokens=[END_OF_TEXT, TURN_START, TURN_END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    taught = (ask(asked) + answer for lesson in _lessons() for asked, answer in _some(lesson))
    # The prompts of the recorded hours, which tests and benchmarks train on, are known to it too.
    seen = (f"{c.system_prompt}\n{c.user_prompt}\n{c.response}" for c in _some(calls(_SEED, 0.5)))
    texts = itertools.chain(taught, seen)
    bpe.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token=TURN_END,
        pad_token=END_OF_TEXT,
        additional_special_tokens=[TURN_START, TURN_END],
        model_max_length=4096,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def _new_model(tokenizer: Any) -> Any:
    from transformers import GenerationConfig, Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        initializer_range=_WEIGHT_DEVIATION,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = Qwen2ForCausalLM(config)
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    return model


def _warm_start(model: Any, tokenizer: Any, on_progress: Callable[[int, int], None]) -> None:
    """Train with supervision on simulated actions; the prompts themselves are not learned."""
    import torch

    optimizer = torch.optim.AdamW(
        model.parameters(), lr=_LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.0, fused=True
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=_LEARNING_RATE, total_steps=_WARM_STEPS, pct_start=0.1
    )
    model.train()
    batches = itertools.islice(_batches(tokenizer), _WARM_STEPS)
    for done, (tokens, labels) in enumerate(batches, start=1):
        optimizer.zero_grad(set_to_none=True)
        _loss(model, tokens, labels).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        on_progress(done, _WARM_STEPS)
    model.eval()


def _loss(model: Any, tokens: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Compute the mean cross-entropy over the answers; only their positions get logits."""
    import torch

    # Padding is on the right, so causal attention needs no mask.
    hidden = model.model(input_ids=tokens, use_cache=False).last_hidden_state
    targets = labels[:, 1:]
    learned = targets != _IGNORE
    logits = model.lm_head(hidden[:, :-1][learned])
    return torch.nn.functional.cross_entropy(logits, targets[learned])


def _lessons() -> tuple[Iterator[Example], Iterator[Example]]:
    return lessons.form(_SEED), lessons.obedience(_SEED)


def _some(texts: Iterator[_T]) -> Iterator[_T]:
    return itertools.islice(texts, _TOKENIZER_TEXTS)


def _batches(tokenizer: Any) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield batches (tokens, labels) of both lessons without end, padded right."""
    form, obedience = _lessons()
    while True:
        some = [*itertools.islice(form, _FORM), *itertools.islice(obedience, _OBEDIENCE)]
        yield _pad(tokenizer, [_encode(tokenizer, example) for example in some])


def _encode(tokenizer: Any, example: Example) -> tuple[list[int], list[int]]:
    """Return tokens and labels of an example; the answer and its end token are learned."""
    asked, text = example
    prompt: list[int] = tokenizer.encode(ask(asked), add_special_tokens=False)
    answer: list[int] = tokenizer.encode(text + TURN_END, add_special_tokens=False)
    return prompt + answer, [_IGNORE] * len(prompt) + answer


def ask(messages: Sequence[Mapping[str, str]]) -> str:
    """Write a prompt as the chat template does."""
    turns = (f"{TURN_START}{m['role']}\n{m['content']}{TURN_END}\n" for m in messages)
    return "".join([*turns, f"{TURN_START}assistant\n"])


def _pad(
    tokenizer: Any, pairs: list[tuple[list[int], list[int]]]
) -> tuple[torch.Tensor, torch.Tensor]:
    import torch

    longest = max(len(tokens) for tokens, _ in pairs)
    tokens = [t + [tokenizer.pad_token_id] * (longest - len(t)) for t, _ in pairs]
    labels = [t + [_IGNORE] * (longest - len(t)) for _, t in pairs]
    return torch.tensor(tokens), torch.tensor(labels)
