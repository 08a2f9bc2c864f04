"""Recorded calls of a known length, for the benchmarks of the trainer."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from babylon_tasks.records.steps import Call, Hyperparameters, Sample, StepRequest

if TYPE_CHECKING:
    from workers.trainer.torch.chat_format import ChatFormat

MEDIAN, SIGMA, LONGEST = 500, 1.0, 4000  # tokens of a call: log-normal, cut
RESPONSE = (20, 80)
SYSTEM = "You are a trading agent. Answer with one action and the reason for it."
WORDS = ["momentum", "price", "rising", "falling", "market", "shares", "position", "risk", "news"]


def recorded_calls(
    chat: ChatFormat,
    windows: int,
    agents: int,
    calls: int,
    seed: int = 1,
    *,
    median: int = MEDIAN,
    sigma: float = SIGMA,
    longest: int = LONGEST,
    response: tuple[int, int] = RESPONSE,
) -> list[Sample]:
    """Make `windows` x `agents` trajectories of `calls` calls each, with random rewards."""
    rng = random.Random(seed)
    words = [f" {word}" for word in WORDS]
    cost = dict(zip(words, map(len, chat.encode(words)), strict=True))
    system = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": ""}]
    around = len(chat.encode([chat.prompt(system)])[0]) + len(chat.end_ids)

    def text(tokens: int) -> str:
        """Draw words of `tokens` tokens, or one less; the tokenizer merges none of them."""
        picked = []
        while fitting := [word for word in words if cost[word] <= tokens]:
            picked.append(rng.choice(fitting))
            tokens -= cost[picked[-1]]
        return "".join(picked)

    def call() -> Call:
        length = min(longest, round(math.exp(rng.gauss(math.log(median), sigma))))
        answer = rng.randint(*response)
        return Call(SYSTEM, text(length - answer - around), text(answer))

    return [
        Sample(f"w{w}", f"w{w}-{agent}", rng.random(), [call() for _ in range(calls)])
        for w in range(windows)
        for agent in range(agents)
    ]


def write_samples(path: Path, samples: list[Sample]) -> None:
    """Write one JSON line for each sample, as the worker does for its trainer."""
    path.write_bytes(b"".join(msgspec.json.encode(sample) + b"\n" for sample in samples))


def step_request(folder: Path, base_model: str) -> StepRequest:
    """Return a request for the first step over `samples.jsonl` of the folder."""
    return StepRequest(
        model_name="benchmark", base_model=base_model, parent=None,
        samples_path=str(folder / "samples.jsonl"), scratch_dir=str(folder / "step"),
        output_dir=str(folder / "step" / "out"), seed=1,
        hyperparameters=Hyperparameters(
            learning_rate=1e-4, warmup_steps=0, lora_rank=8, lora_alpha=16, kl_penalty=0.1,
            negative_scale=0.3, max_sequence_tokens=4096, micro_batch_tokens=16_384,
        ),
    )  # fmt: skip
