"""Asks a version, and passes its answer on: as one document, or as a stream of events."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Literal, Protocol, TypeVar, TypeVarTuple

from babylon_tasks.records import form
from babylon_tasks.records.captured import CapturedCall, FailedCall
from babylon_tasks.records.form import FormCheck
from babylon_tasks.text import one_line, place_of
from workers.serve.backend import ApiError, Backend, Question, Version
from workers.serve.health import Health
from workers.serve.http.answers import show
from workers.serve.http.budgets import Budget
from workers.serve.http.exchange import ClientGone, Exchange
from workers.serve.http.gathered import Gathered
from workers.serve.http.limits import Limits
from workers.serve.http.metrics import Metrics
from workers.serve.http.requests import Asked, parse
from workers.serve.router import Answering

log = logging.getLogger(__name__)

AGENT_HEADER = b"x-babylon-agent"
_CLIENT_LEFT = 499  # as nginx counts it; nobody is there to be told
# Bytes of a body that is read, and hashed, in a thread: others' streams go on meanwhile.
_LONG_BODY = 2**15
_T = TypeVar("_T")
_Ts = TypeVarTuple("_Ts")


class Router(Protocol):
    """The router as it is asked here: tests of HTTP have one without backends."""

    def models(self) -> list[str]:
        """Return the names that answer."""
        ...

    def resolve(self, model: str, agent: str | None) -> Version:
        """Return the version that a name stands for."""
        ...

    def ask(self, version: Version, question: Question) -> AbstractAsyncContextManager[Answering]:
        """Begin an answer."""
        ...

    def silent(self) -> dict[str, float]:
        """Return the backends of which nothing comes, and for how many seconds."""
        ...

    def health(self) -> Health:
        """Return what answers now."""
        ...


@dataclass(frozen=True, slots=True)
class Memory:
    """What is told of the answers.

    `on_answer` gets each whole answer, with tokens and log-probabilities if `captures`; `on_failed`
    each request of an agent that its version failed. `well_formed` looks at the answers' texts.
    """

    on_answer: Callable[[CapturedCall], None]
    on_failed: Callable[[FailedCall], None]
    captures: bool
    well_formed: FormCheck = form.well_formed


@dataclass(slots=True)
class _Attempt:
    """A request on its way to an answer; its version and backend once they are known."""

    asked: Asked
    gathered: Gathered
    version: Version
    is_long: bool
    backend: Backend | None = None


class Completions:
    """Answers chat and text completions."""

    def __init__(self, router: Router, metrics: Metrics, limits: Limits, memory: Memory) -> None:
        self._router, self._metrics, self._limits = router, metrics, limits
        self._memory = memory
        self._long_bodies = ThreadPoolExecutor(1, "long-bodies")

    async def answer(
        self,
        exchange: Exchange,
        kind: Literal["chat", "text"],
        budget: Budget | None,
    ) -> None:
        """Answer a request, and count what it costs its key.

        Raises:
            ApiError: What the client is to be told.
            ClientGone: The client has left.
        """
        gathered = Gathered(self._memory.well_formed)
        body = await exchange.json_body()
        if budget is not None:
            budget.take_request()
        header = exchange.header(AGENT_HEADER)
        agent = header.decode("utf-8", "replace") if header else None
        is_long = len(body) > _LONG_BODY
        asked = await self._do(is_long, parse, kind, body, agent, self._memory.captures)
        version = self._router.resolve(asked.model, asked.agent)
        attempt = _Attempt(asked, gathered, version, is_long)
        status = 500
        try:
            await self._while_connected(exchange, self._pass_on(exchange, attempt))
            status = 200
        except ApiError as error:
            status = error.status
            raise
        except (ClientGone, asyncio.CancelledError):
            status = _CLIENT_LEFT
            raise
        finally:
            if status >= 500:
                self._failed(attempt)
            if budget is not None:
                budget.spend(gathered.prompt_tokens + gathered.completion_tokens)
            name = attempt.backend.name if attempt.backend else ""
            streamed = asked.question.stream
            self._metrics.answered(attempt.version, name, status, gathered, streamed)

    def _failed(self, attempt: _Attempt) -> None:
        """Note that an agent's request ended with an error that is not the client's."""
        asked, version = attempt.asked, attempt.version
        if asked.agent and asked.model == version.lineage:
            at = attempt.gathered.began
            self._memory.on_failed(FailedCall(at, version.lineage, version.step, asked.agent))

    async def _do(self, is_long: bool, work: Callable[[*_Ts], _T], *arguments: *_Ts) -> _T:
        if not is_long:
            return work(*arguments)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._long_bodies, work, *arguments)

    async def _while_connected(self, exchange: Exchange, work: Awaitable[None]) -> None:
        """Do this as long as the client is there and there is time."""
        working = asyncio.ensure_future(work)
        leaving = asyncio.ensure_future(exchange.until_gone())
        ends_at = time.monotonic() + self._limits.answer_seconds
        try:
            while not working.done():
                left = ends_at - time.monotonic()
                if leaving.done() or exchange.is_stuck():
                    raise ClientGone
                if left <= 0:
                    seconds = f"{self._limits.answer_seconds:g}"
                    raise ApiError(504, f"the answer took more than {seconds} s", code="timeout")
                await asyncio.wait(
                    (working, leaving),
                    timeout=min(left, self._limits.send_seconds),
                    return_when=asyncio.FIRST_COMPLETED,
                )
            working.result()
        finally:
            for task in (working, leaving):
                task.cancel()
            # The generation has stopped when this returns.
            await asyncio.gather(working, leaving, return_exceptions=True)

    async def _pass_on(self, exchange: Exchange, attempt: _Attempt) -> None:
        asked = attempt.asked
        async with self._router.ask(attempt.version, asked.question) as answering:
            attempt.version, attempt.backend = answering.version, answering.backend
            headers = {"x-babylon-version": answering.version.full_name}
            if asked.question.stream:
                await self._stream(exchange, attempt, answering, headers)
            else:
                whole = await anext(answering.chunks)
                attempt.gathered.add(whole)
                await self._capture(attempt, answering)
                show(whole, answering.version, asked.shown)
                await exchange.json(whole, headers=headers)

    async def _stream(
        self, exchange: Exchange, attempt: _Attempt, answering: Answering, headers: dict[str, str]
    ) -> None:
        version, shown, add = answering.version, attempt.asked.shown, attempt.gathered.add
        async for chunk in answering.chunks:
            if exchange.status is None:  # until now an error could be a status
                await exchange.begin_stream(headers)
            add(chunk)
            if show(chunk, version, shown):
                await exchange.event(chunk)
        await self._capture(attempt, answering)
        await exchange.end_stream()

    async def _capture(self, attempt: _Attempt, answering: Answering) -> None:
        """Hand the answers over, before the client can know that they are whole."""
        asked, kind = attempt.asked, answering.backend.kind
        try:
            captured = attempt.gathered.captured
            calls = await self._do(attempt.is_long, captured, answering.version, kind, asked)
            for one in calls:
                self._memory.on_answer(one)
        except Exception as error:  # noqa: BLE001 - the client has its answer
            log.error("an answer was not captured: %s", one_line(place_of(error)))  # noqa: TRY400
