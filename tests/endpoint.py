"""The endpoint as a process, on a lineage of a test, and a client that never pauses."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import openai

from babylon_tasks.local.ask import serving
from babylon_tasks.work.context import Context

FOLLOW_SECONDS = 5.0  # within these a promotion is answered
MESSAGES = [
    {"role": "system", "content": "You are a trading agent."},
    {"role": "user", "content": "Balance: $100. Say YES or NO."},
]


@contextmanager
def endpoint(context: Context, **env: str) -> Iterator[str]:
    """Run the endpoint on a lineage until the block ends; yield its base URL once it is ready."""
    settings = context.settings
    mine = {
        "DATABASE_URL": settings.postgres(),
        "BASE_MODEL": settings.base_model,
        "CHECKPOINT_STORE": settings.checkpoint_store,
        "TRAIN_RL_LOCAL": "true",
    }
    with serving(mine | env) as url:
        within(30, lambda: httpx.get(f"{url}/health/ready").status_code == 200)
        yield url


def within(seconds: float, holds: Callable[[], Any]) -> None:
    """Wait until something holds; it must within so many seconds."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def client_of(url: str) -> Any:
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)


def ask(url: str, model: str = "babylon-agent", **more: Any) -> Any:
    of = {"messages": MESSAGES, "max_tokens": 12, "temperature": 0, **more}
    return client_of(url).chat.completions.create(model=model, **of)


class Pestering(threading.Thread):
    """A client that never pauses: which versions answered, and what went wrong."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self._url, self.over = url, threading.Event()
        self.models: list[str] = []
        self.errors: list[str] = []

    def run(self) -> None:
        streamed = False
        while not self.over.is_set():
            streamed = not streamed
            try:
                answer = ask(self._url, stream=streamed, max_tokens=4)
                models = {chunk.model for chunk in answer} if streamed else {answer.model}
                (model,) = models
                self.models.append(model)
            except Exception as error:  # noqa: BLE001 - whatever goes wrong, the test shows it
                self.errors.append(repr(error))

    @property
    def seen(self) -> list[str]:
        """The versions in the order in which they answered."""
        return [model for model, _ in itertools.groupby(self.models)]


@contextmanager
def pestered(url: str) -> Iterator[Pestering]:
    """A client that never pauses while the block runs; it must not see an error."""
    client = Pestering(url)
    client.start()
    try:
        yield client
    finally:
        client.over.set()
        client.join()
    assert client.errors == []


def problems(url: str) -> list[str]:
    """What the endpoint says is stale or away."""
    told = httpx.get(f"{url}/health/ready").json()["health"]["problems"]
    return sorted(each["what"] for each in told)
