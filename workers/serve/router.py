"""Answers requests: a name stands for one version, which one of several backends answers.

Nothing here asks Postgres for a request. A request keeps its version from its begin to its end.
"""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from workers.serve.backend import Backend, BackendAway, Question, Version
from workers.serve.follower import Follower
from workers.serve.health import Health, read_health
from workers.serve.loader import Loader

log = logging.getLogger(__name__)

_SILENT_SECONDS = 60.0  # without a token of a streamed answer
_RELOADS = 3  # for one request, of a version that other endpoints take away from vLLM


@dataclass(frozen=True, slots=True)
class Answering:
    """An answer that has begun: `chunks` are OpenAI's, or the one whole object."""

    version: Version
    backend: Backend
    chunks: AsyncGenerator[dict[str, Any], None]


@dataclass(slots=True)
class _Traffic:
    """A backend's requests under way (monotonic times).

    `moved_at`: the last chunk came, or the first request after a rest began. `streams` has, by a
    key of each stream, when it began or its last chunk came.
    """

    moved_at: float
    under_way: int = 0
    streams: dict[object, float] = field(default_factory=dict)

    def silent_seconds(self, whole_seconds: float) -> float | None:
        """Return for how long nothing came though requests wait; None if that is no sign.

        Of an answer that is not streamed, nothing comes before it is whole.
        """
        now = time.monotonic()
        silent = now - self.moved_at
        waits = max((now - moved_at for moved_at in self.streams.values()), default=0.0)
        if min(silent, waits) > _SILENT_SECONDS or (self.under_way and silent > whole_seconds):
            return silent
        return None


class Router:
    """Takes requests to the backends that can answer them; it lives in one event loop."""

    def __init__(self, follower: Follower, loader: Loader, serve_seconds: float) -> None:
        self._follower, self._loader = follower, loader
        self._serve_seconds = serve_seconds
        self._traffic: dict[Backend, _Traffic] = {}

    def models(self) -> list[str]:
        """Return the names that can be asked for."""
        return self._follower.directory.names()

    def resolve(self, model: str, agent: str | None) -> Version:
        """Return the version that a name stands for now, for this agent.

        Raises:
            ApiError: There is none, or nothing was read of Postgres yet.
        """
        return self._follower.resolve(model, agent)

    @asynccontextmanager
    async def ask(self, version: Version, question: Question) -> AsyncIterator[Answering]:
        """Begin an answer; leaving the block ends it, whether or not it was read to its end.

        Where a backend goes away before its first token, another one is asked.

        Raises:
            ApiError: What the client is told.
        """
        async with AsyncExitStack() as ends:
            yield await self._begin(ends, version, question)

    async def _begin(self, ends: AsyncExitStack, version: Version, question: Question) -> Answering:
        tried: list[Backend] = []
        reloads_left = _RELOADS
        while True:
            backend = await self._loader.backend_for(version, question, tried)
            async with AsyncExitStack() as attempt:
                attempt.callback(self._loader.hold(backend, version))
                answers = _answers(backend, version, question)
                chunks = self._watched(backend, question, answers)
                await attempt.enter_async_context(aclosing(chunks))
                try:
                    first = await anext(chunks)
                except BackendAway as error:
                    log.warning("%s does not answer: %s", backend.name, error)
                    if reloads_left and not self._loader.has(backend, version):
                        reloads_left -= 1  # it has lost the version, and may get it again
                        continue
                    tried.append(backend)
                    if not self._loader.others(version, tried):
                        raise
                    continue
                except StopAsyncIteration:
                    raise BackendAway(f"{backend.name} gave an empty answer") from None
                ends.push_async_exit(attempt.pop_all())
                answer = _with_first(first, chunks)
                await ends.enter_async_context(aclosing(answer))
                return Answering(version, backend, answer)

    def health(self) -> Health:
        """Return what answers now."""
        return read_health(self._follower, self._loader, self._silent())

    def silent(self) -> dict[str, float]:
        """Return the seconds without a sign of life by backend, if no busy backend gives any."""
        busy = [each for each in self._traffic.values() if each.under_way]
        silent = self._silent()
        if len(silent) < len(busy):
            return {}
        return {backend.name: seconds for backend, seconds in silent.items()}

    def _silent(self) -> dict[Backend, float]:
        found = {
            backend: traffic.silent_seconds(self._serve_seconds)
            for backend, traffic in self._traffic.items()
        }
        return {backend: seconds for backend, seconds in found.items() if seconds is not None}

    async def _watched(
        self, backend: Backend, question: Question, chunks: AsyncGenerator[dict[str, Any], None]
    ) -> AsyncGenerator[dict[str, Any], None]:
        now = time.monotonic()
        traffic = self._traffic.setdefault(backend, _Traffic(now))
        if not traffic.under_way:
            traffic.moved_at = now
        traffic.under_way += 1
        stream = object()
        if question.stream:
            traffic.streams[stream] = now
        try:
            async with aclosing(chunks):
                async for chunk in chunks:
                    traffic.moved_at = time.monotonic()
                    if question.stream:
                        traffic.streams[stream] = traffic.moved_at
                    yield chunk
        finally:
            traffic.under_way -= 1
            traffic.streams.pop(stream, None)


async def _answers(
    backend: Backend, version: Version, question: Question
) -> AsyncGenerator[dict[str, Any], None]:
    """Yield the chunks of an answer, or the one whole object."""
    if not question.stream:
        yield await backend.answer(version, question)
        return
    async with aclosing(backend.stream(version, question)) as chunks:
        async for chunk in chunks:
            yield chunk


async def _with_first(
    first: dict[str, Any], chunks: AsyncGenerator[dict[str, Any], None]
) -> AsyncGenerator[dict[str, Any], None]:
    yield first
    async for chunk in chunks:
        yield chunk
