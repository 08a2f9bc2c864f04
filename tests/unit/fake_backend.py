"""A backend for tests of the router: it answers with the version it was asked for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Collection
from typing import Any, Literal

from workers.serve.backend import ApiError, BackendAway, CannotServe, Question, Version


class FakeBackend:
    """Loads at once unless told otherwise; remembers the most adapters that it had at once."""

    kind: Literal["vllm", "embedded", "wandb"] = "vllm"
    why_away = "it is dead"

    def __init__(self, name: str = "one", slots: int = 64) -> None:
        self.name, self.slots = name, slots
        self.alive = True
        self.has: set[Version] = set()
        self.cannot: dict[Version, str] = {}
        self.load_seconds = self.unload_seconds = 0.0
        self.may_load = asyncio.Event()  # loads wait for it
        self.may_load.set()
        self.refuses = self.loses_loads = False
        self.lost: set[Version] = set()  # taken away by others, which nobody knows yet
        self.going: set[Version] = set()
        self.chunks = 3
        self.gate: asyncio.Event | None = None  # answers wait for it before their last chunk
        self.at_gate = 0  # answers that have come to it
        self.loads: list[str] = []
        self.most = 0
        self.running: list[Version] = []
        self.cancelled = 0

    def serves(self, version: Version) -> bool:
        return version.inference_name is None

    def check(self, question: Question) -> None:
        if "tools" in question.body:
            raise ApiError(400, "no tools here", param="tools")

    async def look(self) -> bool:
        return self.alive

    def loaded(self) -> Collection[Version]:
        return self.has

    async def load(self, version: Version) -> None:
        await self.may_load.wait()
        await asyncio.sleep(self.load_seconds)
        if not self.alive or self.loses_loads:
            raise BackendAway(f"{self.name} is away")
        if version in self.cannot:
            raise CannotServe(self.cannot[version])
        self.loads.append(version.name)
        self.has.add(version)
        self.most = max(self.most, sum(1 for each in self.has if each.step))

    async def unload(self, version: Version) -> None:
        self.going.add(version)
        await asyncio.sleep(self.unload_seconds)
        assert version not in self.running, "unloaded under a request"
        self.has.discard(version)
        self.going.discard(version)

    def die(self) -> None:
        """As a process that is killed: what it had is gone."""
        self.alive = False
        self.has.clear()

    async def answer(self, version: Version, question: Question) -> dict[str, Any]:
        chunks = [chunk async for chunk in self.stream(version, question)]
        return {"text": "".join(chunk["text"] for chunk in chunks), "by": self.name}

    async def stream(
        self, version: Version, question: Question
    ) -> AsyncGenerator[dict[str, Any], None]:
        assert version not in self.going, "asked while it is unloaded"
        if version in self.lost:
            self.lost.discard(version)
            self.has.discard(version)
        if self.refuses or not self.alive or version not in self.has:
            raise BackendAway(f"{self.name} is away")
        self.running.append(version)
        try:
            for number in range(self.chunks):
                if self.gate and number == self.chunks - 1:
                    self.at_gate += 1
                    await self.gate.wait()
                await asyncio.sleep(0)
                yield {"text": version.name, "by": self.name}
        except (asyncio.CancelledError, GeneratorExit):
            self.cancelled += 1
            raise
        finally:
            self.running.remove(version)

    async def close(self) -> None:
        self.has.clear()


def version(step: int, lineage: str = "agent") -> Version:
    """A version with files, or the base model."""
    if not step:
        return Version(lineage, 0, None, "base")
    return Version(lineage, step, f"v1.0.{step}", "base", None, f"/store/{lineage}/{step}-1")
