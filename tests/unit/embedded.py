"""An embedded backend with a tiny model and adapters, as its tests ask it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from babylon_tasks.checkpoints import files
from workers.serve.backend import Question, Version
from workers.serve.embedded.backend import EmbeddedBackend

T = TypeVar("T")


def make_checkpoint(
    base_model: str, folder: Path, seed: int, *, r: int = 8, noise: float = 0.3
) -> str:
    """Write a checkpoint whose adapter makes the model say something else."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(base_model)
    adapted = get_peft_model(model, LoraConfig(r=r, lora_alpha=2 * r, target_modules="all-linear"))
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter += noise * torch.randn_like(parameter)
    source, target = folder / f"source{seed}", folder / "agent" / f"{seed}-1"
    adapted.save_pretrained(source)
    files.save(source, str(target), "nonce")
    return str(target)


def version(base_model: str, step: int, checkpoint: str | None = None, **more: Any) -> Version:
    return Version(
        "agent", step, f"v1.0.{step}" if step else None, base_model, None, checkpoint, **more
    )


def chat(
    text: str = "YES or NO?", *, stream: bool = False, captured: bool = False, **more: Any
) -> Question:
    body = {"messages": [{"role": "user", "content": text}], "max_tokens": 8, **more}
    return Question("chat", {k: v for k, v in body.items() if v is not None}, stream, captured)


def complete(prompt: Any, *, stream: bool = False, **more: Any) -> Question:
    return Question("text", {"prompt": prompt, "max_tokens": 8, **more}, stream, captured=False)


class Asked:
    """A backend and the event loop in which it is asked."""

    def __init__(self, runner: asyncio.Runner) -> None:
        self._runner = runner
        self.backend = EmbeddedBackend()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self._runner.run(asyncio.wait_for(work, 60))

    def load(self, *versions: Version) -> None:
        for each in versions:
            self.run(self.backend.load(each))

    def answer(self, of: Version, question: Question) -> dict[str, Any]:
        return self.run(self.backend.answer(of, question))

    def text(self, of: Version, question: Question) -> str:
        return said(self.answer(of, question))

    def texts(self, *asked: tuple[Version, Question]) -> list[str]:
        """Ask all at once."""

        async def gather() -> list[dict[str, Any]]:
            return await asyncio.gather(*(self.backend.answer(*each) for each in asked))

        return [said(answer) for answer in self.run(gather())]

    def chunks(self, of: Version, question: Question) -> list[dict[str, Any]]:
        async def collect() -> list[dict[str, Any]]:
            return [chunk async for chunk in self.backend.stream(of, question)]

        return self.run(collect())

    def until(self, true: Callable[[], bool]) -> None:
        async def wait() -> None:
            while not true():
                await asyncio.sleep(0.01)

        self.run(wait())


def said(answer: dict[str, Any]) -> str:
    choice = answer["choices"][0]
    return str(choice["message"]["content"] if "message" in choice else choice["text"])


def streamed(chunks: list[dict[str, Any]], index: int = 0) -> str:
    choices = [c for chunk in chunks for c in chunk["choices"] if c["index"] == index]
    return "".join(c["delta"]["content"] if "delta" in c else c["text"] for c in choices)
