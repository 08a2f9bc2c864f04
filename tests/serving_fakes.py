"""The endpoint's edge on a real port, with a router and keys that live in memory."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, cast

import uvicorn
from pydantic import SecretStr

from babylon_tasks.errors import ServerUnavailable
from babylon_tasks.records import form
from babylon_tasks.records.api_keys import ApiKey
from babylon_tasks.records.captured import CapturedCall, FailedCall
from babylon_tasks.store.database import Database
from babylon_tasks.work.signals import stop
from workers.serve.backend import ApiError, Backend, Question, Version
from workers.serve.health import Health
from workers.serve.http.app import Endpoint
from workers.serve.http.budgets import Use
from workers.serve.http.completions import Completions, Memory
from workers.serve.http.keys import Keys
from workers.serve.http.limits import Limits
from workers.serve.http.metrics import Metrics
from workers.serve.http.server import BoundedConnection, DrainingServer, listen
from workers.serve.router import Answering

AGENT = Version("agent", 12, "v1.0.12", "tiny")
PROMPT_TOKENS = [5, 6, 7]
Script = Callable[[Question], AsyncIterator[dict[str, Any]]]


@dataclass
class FakeBackend:
    """What the router says that it asked."""

    kind: str = "vllm"
    name: str = "gpu1:8001"


@dataclass
class FakeRouter:
    """Answers by `script`, or says `words`, a token a word; remembers what it was asked."""

    words: list[str] = field(default_factory=lambda: ["YES", " or", " NO"])
    script: Script | None = None
    asked: list[tuple[Version, Question]] = field(default_factory=list)
    agents: list[str | None] = field(default_factory=list)
    under_way: int = 0
    stopped: int = 0  # generations that did not come to their end
    state: Health = field(default_factory=lambda: Health(ready=True, promoted={"agent": 12}))
    silence: dict[str, float] = field(default_factory=dict)

    def models(self) -> list[str]:
        return ["agent", "agent@12", "agent-v1.0.12", "agent@0"]

    def resolve(self, model: str, agent: str | None) -> Version:
        self.agents.append(agent)
        if model not in self.models():
            raise ApiError(404, "no such model", param="model", code="model_not_found")
        return replace(AGENT, step=0, version=None) if model == "agent@0" else AGENT

    @asynccontextmanager
    async def ask(self, version: Version, question: Question) -> AsyncIterator[Answering]:
        self.asked.append((version, question))
        script = self.script or self.say
        chunks = self._count(script(question))
        try:
            yield Answering(version, cast(Backend, FakeBackend()), chunks)
        finally:
            await chunks.aclose()

    async def _count(self, chunks: AsyncIterator[dict[str, Any]]) -> Any:
        self.under_way += 1
        finished = False
        try:
            async for chunk in chunks:
                yield chunk
            finished = True
        finally:
            self.under_way -= 1
            self.stopped += not finished

    async def say(self, question: Question) -> AsyncIterator[dict[str, Any]]:
        parts = range(question.body.get("n", 1))
        if not question.stream:
            yield whole(question, self.words)
            return
        for index in parts:
            for number, word in enumerate(self.words):
                yield chunk_of(question, index, word, number, number + 1 == len(self.words))
        used = len(self.words) * len(parts)
        yield {**head(question, chunk=True), "choices": [], "usage": usage(used)}

    def silent(self) -> dict[str, float]:
        return self.silence

    def health(self) -> Health:
        return self.state


def usage(completion: int) -> dict[str, int]:
    prompt = len(PROMPT_TOKENS)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }


def head(question: Question, chunk: bool) -> dict[str, Any]:
    chat = question.kind == "chat"
    kind = ("chat.completion.chunk" if chunk else "chat.completion") if chat else "text_completion"
    return {"id": "chatcmpl-1", "object": kind, "created": 1, "model": "rl-agent-12"}


def logprobs_of(question: Question, words: list[str]) -> dict[str, Any] | None:
    if not question.captured and not question.body.get("logprobs"):
        return None
    if question.kind == "text":
        return {"tokens": words, "token_logprobs": [-0.5 for _ in words]}
    return {
        "content": [
            {"token": w, "logprob": -0.5, "bytes": list(w.encode()), "top_logprobs": []}
            for w in words
        ],
        "refusal": None,
    }


def chunk_of(question: Question, index: int, word: str, number: int, last: bool) -> dict[str, Any]:
    said = {"delta": {"role": "assistant", "content": word}} if question.kind == "chat" else {
        "text": word
    }  # fmt: skip
    choice: dict[str, Any] = {
        "index": index,
        **said,
        "finish_reason": "stop" if last else None,
        "logprobs": logprobs_of(question, [word]),
    }
    if question.captured:
        choice["token_ids"] = [100 + number]
    more = {"prompt_token_ids": PROMPT_TOKENS} if number == 0 and question.captured else {}
    return {**head(question, chunk=True), "choices": [choice], **more}


def whole(question: Question, words: list[str]) -> dict[str, Any]:
    text = "".join(words)
    said: dict[str, Any] = (
        {"message": {"role": "assistant", "content": text}}
        if question.kind == "chat"
        else {"text": text}
    )
    prompts = question.body.get("prompt", "")
    count = question.body.get("n", 1) * (len(prompts) if isinstance(prompts, list) else 1)
    choices = [
        {
            "index": index,
            **said,
            "finish_reason": "stop",
            "logprobs": logprobs_of(question, words),
            "token_ids": [100 + n for n in range(len(words))],
        }
        for index in range(count)
    ]
    return {
        **head(question, chunk=False),
        "choices": choices,
        "usage": usage(len(words) * count),
        "prompt_token_ids": PROMPT_TOKENS,
    }


class KeysInMemory(Keys):
    """Keys whose rows are a list; with `away` as if Postgres did not answer."""

    def __init__(
        self, rows: list[ApiKey], settings_key: str | None = None, loopback: bool = True
    ) -> None:
        nothing = Database("postgresql://nobody@nowhere/none")
        super().__init__(nothing, SecretStr(settings_key) if settings_key else None, loopback)
        self.rows, self.away = rows, False
        self.used: dict[str, Use] = {}

    def _exchange(self, used: Mapping[str, Use]) -> list[ApiKey]:
        if self.away:
            raise ServerUnavailable("Postgres does not answer")
        for name, use in used.items():
            self.used[name] = self.used.get(name, Use()) + use
        return [
            replace(row, tokens_today=row.tokens_today + self.used.get(row.name, Use()).tokens)
            for row in self.rows
        ]


@dataclass
class Edge:
    """A running edge, and what it was made of."""

    url: str
    router: FakeRouter
    keys: KeysInMemory
    metrics: Metrics
    endpoint: Endpoint
    answers: list[CapturedCall]
    failed: list[FailedCall] = field(default_factory=list)

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])


def make_edge(
    router: FakeRouter | None = None,
    keys: KeysInMemory | None = None,
    limits: Limits | None = None,
    well_formed: Callable[[str], bool] = form.well_formed,
) -> Edge:
    """Put an edge together; it does not listen yet."""
    router, keys, limits = router or FakeRouter(), keys or KeysInMemory([]), limits or Limits()
    metrics = Metrics()
    answers: list[CapturedCall] = []
    metrics.watch(router.health, lambda: {"captured": len(answers)}, lambda: 0)
    keys.require_one("127.0.0.1")
    failed: list[FailedCall] = []
    memory = Memory(answers.append, failed.append, captures=True, well_formed=well_formed)
    completions = Completions(router, metrics, limits, memory)
    endpoint = Endpoint(router, completions, keys, metrics, limits, (keys.kept_fresh(),))
    return Edge("", router, keys, metrics, endpoint, answers, failed)


@contextmanager
def running_edge(
    router: FakeRouter | None = None,
    keys: KeysInMemory | None = None,
    limits: Limits | None = None,
    well_formed: Callable[[str], bool] = form.well_formed,
) -> Iterator[Edge]:
    """An edge that listens on a free port of loopback, in a thread of its own."""
    edge = make_edge(router, keys, limits, well_formed)
    with socket.create_server(("127.0.0.1", 0)) as listener, serving(edge.endpoint, listener):
        edge.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        yield edge


@contextmanager
def serving(
    endpoint: Endpoint, listener: socket.socket, drain_seconds: float = 5
) -> Iterator[DrainingServer]:
    config = uvicorn.Config(
        endpoint, http=BoundedConnection, ws="none", lifespan="on", log_config=None,
        log_level="warning", timeout_graceful_shutdown=2,
    )  # fmt: skip
    server = DrainingServer(config, endpoint, drain_seconds)
    started = threading.Event()

    async def serve() -> None:
        await server._serve([listener])

    def run() -> None:
        with contextlib.suppress(asyncio.CancelledError):
            asyncio.run(serve())

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    while not server.started and thread.is_alive():
        started.wait(0.01)
    try:
        yield server
    finally:
        server.should_exit = True
        thread.join(20)


def main() -> None:
    """Serve as a program: an answer says a word, and the others when standard input ends."""
    signal.signal(signal.SIGTERM, stop)
    router = FakeRouter()

    async def wait_in_between(question: Question) -> AsyncIterator[dict[str, Any]]:
        async for chunk in router.say(question):
            yield chunk
            await asyncio.to_thread(sys.stdin.read)

    router.script = wait_in_between
    listen(make_edge(router).endpoint, "127.0.0.1", 0, drain_seconds=20)
