"""A tiny Qwen2 with a tokenizer and a chat template, made on the spot; and requests for it."""

from __future__ import annotations

from pathlib import Path

import msgspec
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from babylon_tasks.records.steps import Call, Hyperparameters, Sample, StepRequest

torch.set_num_threads(1)  # a tiny model gains nothing from more

CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_TEXT = [
    "Will the market rise or fall? Say YES or NO. The momentum is strong: buy; it is weak: sell.",
    "You are a trading agent. Answer with one action: BUY, SELL or HOLD, and the reason for it.",
]


def make_tiny_model(folder: Path, seed: int = 0) -> str:
    """Write a model of about 0.9M weights into the folder."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        _TEXT,
        trainers.BpeTrainer(
            vocab_size=320,
            special_tokens=["<|im_start|>", "<|im_end|>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|im_end|>"
    )
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(folder)
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=len(fast),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        eos_token_id=fast.eos_token_id,
        pad_token_id=fast.eos_token_id,
    )
    Qwen2ForCausalLM(config).save_pretrained(folder)
    return str(folder)


def hyperparameters(**changes: float | str) -> Hyperparameters:
    values = {
        "learning_rate": 1e-3,
        "warmup_steps": 0,
        "lora_rank": 8,
        "lora_alpha": 16,
        "kl_penalty": 0.1,
        "negative_scale": 0.3,
        "max_sequence_tokens": 1024,
        "micro_batch_tokens": 4096,
    }
    return msgspec.convert({**values, **changes}, Hyperparameters)


def make_request(
    folder: Path,
    base_model: str,
    samples: list[Sample],
    parent: str | None = None,
    name: str = "attempt",
    seed: int = 7,
    **changes: float | str | None,
) -> StepRequest:
    """Write the samples and ask for a step on them."""
    scratch = folder / name
    scratch.mkdir(parents=True, exist_ok=True)
    path = scratch / "samples.jsonl"
    path.write_bytes(b"".join(msgspec.json.encode(sample) + b"\n" for sample in samples))
    return StepRequest(
        model_name="tiny",
        base_model=base_model,
        parent=parent,
        samples_path=str(path),
        scratch_dir=str(scratch),
        output_dir=str(scratch / "out"),
        seed=seed,
        hyperparameters=hyperparameters(**changes),
    )


def sample(window: str, number: int, reward: float, *calls: tuple[str, str, str]) -> Sample:
    return Sample(window, f"{window}-{number}", reward, [Call(*call) for call in calls])


def two_sided(windows: int = 2, per_window: int = 4) -> list[Sample]:
    """Windows in which YES pays and NO does not; lengths differ."""
    return [
        sample(
            f"w{w}",
            n,
            float(n % 2),
            ("You are a trading agent.", "rise " * (3 + 5 * n + w), "YES" if n % 2 else "NO"),
            ("", f"momentum {n}", "BUY it now" if n % 2 else "HOLD"),
        )
        for w in range(windows)
        for n in range(per_window)
    ]
