"""How much faster the embedded engine answers 8 requests at once than peft answers them in turn.

    python benchmarks/serve_engine.py MODEL [--tokens 96] [--rounds 5] [--json]

The other engine is that of release 0.1.0: transformers' `generate` over peft's model, one request
at a time. Both have the same model and adapter in this process and answer the same 8 questions, in
turns, so that what else the machine does hits both. `embedded_speedup` is the median ratio of the
tokens a second. OMP_NUM_THREADS says on how many threads.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM
from transformers.utils import logging

from babylon_tasks.checkpoints import files
from workers.serve.backend import Question, Version
from workers.serve.embedded.backend import EmbeddedBackend
from workers.trainer.torch.base_model import load_base
from workers.trainer.torch.generator import Generator

REQUESTS = 8
SYSTEM = "You are a trading agent on a prediction market. Answer with one action and the reason."


def checkpoint(model: str, folder: Path) -> Path:
    """Write an adapter of the default shape, with which the model rarely ends by itself."""
    torch.manual_seed(1)
    network = AutoModelForCausalLM.from_pretrained(model)
    adapted = get_peft_model(network, LoraConfig(r=8, lora_alpha=16, target_modules="all-linear"))
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter += 0.3 * torch.randn_like(parameter)
    adapted.save_pretrained(folder / "adapter")
    files.save(folder / "adapter", str(folder / "agent" / "1-1"), "nonce")
    return folder / "agent" / "1-1"


def questions(tokens: int, words: int) -> list[dict[str, Any]]:
    """Return bodies with prompts of different lengths."""
    return [
        {
            "messages": [
                {"role": "system", "content": SYSTEM},
                {"role": "user", "content": f"Market {n}: " + "the price rose, " * (words + n)},
            ],
            "max_tokens": tokens,
            "temperature": 1.0,
            "seed": n,
        }
        for n in range(REQUESTS)
    ]


class InTurn:
    """The engine before: one request at a time."""

    def __init__(self, model: str, adapter: Path) -> None:
        self.chat, network = load_base(model, None, torch.device("cpu"), torch.float32)
        self.generator = Generator(network, self.chat)
        self.network = PeftModel.from_pretrained(network, str(adapter)).eval()

    @torch.inference_mode()
    def answer(self, bodies: list[dict[str, Any]]) -> int:
        """Return the tokens of all answers."""
        tokens = 0
        for body in bodies:
            prompts = self.chat.encode([self.chat.prompt(body["messages"])])
            (answer,) = self.generator.generate(
                self.network, prompts, body["max_tokens"], body["temperature"], body["seed"]
            )
            tokens += len(answer.token_ids)
        return tokens


async def at_once(
    backend: EmbeddedBackend, versions: list[Version], bodies: list[dict[str, Any]]
) -> int:
    """Ask the embedded engine all at once; return the tokens of all answers."""
    answers = await asyncio.gather(
        *(
            backend.answer(
                versions[n % len(versions)], Question("chat", body, False, captured=True)
            )
            for n, body in enumerate(bodies)
        )
    )
    return sum(answer["usage"]["completion_tokens"] for answer in answers)


async def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    adapter = checkpoint(arguments.model, folder)
    versions = [
        Version("agent", 1, "v1.0.0", arguments.model, None, str(adapter)),
        Version("other", 1, "v1.0.0", arguments.model, None, str(adapter)),
    ]
    backend, engine = EmbeddedBackend(), InTurn(arguments.model, adapter)
    for version in versions:
        await backend.load(version)
    bodies = questions(arguments.tokens, arguments.words)
    engine.answer(bodies[:1])
    await at_once(backend, versions[:1], bodies[:2])
    speeds: dict[str, list[float]] = {"in_turn": [], "alone": [], "one": [], "two": []}
    for _ in range(arguments.rounds):
        begun = time.perf_counter()
        tokens = engine.answer(bodies)
        speeds["in_turn"].append(tokens / (time.perf_counter() - begun))
        begun = time.perf_counter()
        tokens = sum([await at_once(backend, versions[:1], [body]) for body in bodies])
        speeds["alone"].append(tokens / (time.perf_counter() - begun))
        for name, some in (("one", versions[:1]), ("two", versions)):
            begun = time.perf_counter()
            tokens = await at_once(backend, some, bodies)
            speeds[name].append(tokens / (time.perf_counter() - begun))
    await backend.close()

    def ratio(name: str) -> float:
        pairs = zip(speeds[name], speeds["in_turn"], strict=True)
        return round(statistics.median(new / old for new, old in pairs), 2)

    middle = {name: round(statistics.median(values)) for name, values in speeds.items()}
    return {
        "model": Path(arguments.model).name,
        "threads": torch.get_num_threads(),
        "answer_tokens": arguments.tokens,
        "embedded_speedup": ratio("one"),
        "two_versions_speedup": ratio("two"),
        "one_at_a_time_speedup": ratio("alone"),
        "tokens_a_second_in_turn": middle["in_turn"],
        "tokens_a_second": middle["one"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="folder: of benchmarks/real_model.py, or the demo's")
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--words", type=int, default=10, help="length of the prompts")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        result = asyncio.run(measure(arguments, Path(folder)))
    if arguments.json:
        print(json.dumps(result))
    else:
        for name, value in result.items():
            print(f"{name:26}{value}")


if __name__ == "__main__":
    main()
