"""Hostile requests through the edge to real backends: no 500, and nothing of another request."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, aclosing
from typing import Any

import pytest
from hypothesis import settings

pytest.importorskip("uvicorn")
pytest.importorskip("torch")
pytest.importorskip("peft")

from babylon_tasks.records.api_keys import ApiKey, hash_of
from tests import vllm_server
from tests.serving_fakes import FakeRouter, KeysInMemory, make_edge
from tests.unit.embedded import version
from tests.unit.test_hostile_requests import (
    KEY,
    OTHERS_TEXT,
    OURS,
    Collecting,
    World,
    check,
    check_each_place,
    hostile,
    in_each_place,
    quick,
)
from tests.unit.tiny import make_tiny_model
from workers.serve.backend import Backend, Question, Version
from workers.serve.embedded import options
from workers.serve.embedded.backend import EmbeddedBackend
from workers.serve.upstream import Upstream
from workers.serve.vllm.replica import Replica


@pytest.fixture(scope="module", params=["embedded", "vllm"])
def world(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[World]:
    loop = asyncio.new_event_loop()
    with ExitStack() as ends:
        backend, of = (_embedded if request.param == "embedded" else _vllm)(
            ends, loop, tmp_path_factory
        )

        async def through(question: Question) -> AsyncIterator[dict[str, Any]]:
            backend.check(question)
            if not question.stream:
                yield await backend.answer(of, question)
                return
            async with aclosing(backend.stream(of, question)) as chunks:
                async for chunk in chunks:
                    yield chunk

        edge = make_edge(FakeRouter(script=through), KeysInMemory([ApiKey("app", hash_of(KEY))]))
        made = World(edge, loop)
        handler = Collecting(made.logged)
        logging.getLogger().addHandler(handler)
        body = {"model": "agent", "messages": [{"role": "user", "content": OTHERS_TEXT}]}
        assert made.send(json.dumps(body).encode(), OURS)[0] == 200
        yield made
        logging.getLogger().removeHandler(handler)
        loop.run_until_complete(backend.close())
    loop.close()


def _embedded(
    ends: ExitStack, loop: asyncio.AbstractEventLoop, folders: pytest.TempPathFactory
) -> tuple[Backend, Version]:
    patch = ends.enter_context(pytest.MonkeyPatch.context())
    patch.setattr(options, "MAX_TOKENS", 4)
    base = version(make_tiny_model(folders.mktemp("served")), 0)
    backend = EmbeddedBackend()
    loop.run_until_complete(backend.load(base))
    facts = backend._versions[base].base.chat.facts
    object.__setattr__(facts, "positions", 64)  # whatever `max_tokens` is, an answer ends soon
    return backend, base


def _vllm(
    ends: ExitStack, loop: asyncio.AbstractEventLoop, folders: pytest.TempPathFactory
) -> tuple[Backend, Version]:
    server = ends.enter_context(vllm_server.serving(tokens=2, remember=False))
    base = version(server.state.root, 0)
    replica = Replica(Upstream(server.url, None, "gpu1:8001", 20.0), 4)

    async def load() -> None:
        assert await replica.look()
        await replica.load(base)

    loop.run_until_complete(load())
    return replica, base


@in_each_place
@settings(quick, max_examples=2)
def test_an_odd_value_in_any_place(world: World, value: Any, others: set[str]) -> None:
    check_each_place(world, value, others)


@hostile
@quick
def test_hostile_requests(
    world: World, body: bytes, path: str, headers: list[tuple[bytes, bytes]]
) -> None:
    check(world, body, path, headers)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_10_000_bodies_with_odd_values(world: World) -> None:
    sent = 0

    @in_each_place
    @settings(quick, max_examples=150)
    def send_all(value: Any, others: set[str]) -> None:
        nonlocal sent
        sent += check_each_place(world, value, others)

    send_all()
    assert sent >= 10_000
