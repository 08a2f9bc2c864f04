"""What the endpoint counts against a version: its errors, and answers of a wrong form."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import httpx
import pytest

pytest.importorskip("starlette")

from tests.serving_fakes import Edge, FakeRouter, Limits, chunk_of, head, running_edge
from workers.serve.backend import ApiError, BackendAway, Question

HELLO = [{"role": "user", "content": "YES or NO?"}]
AGENT = {"x-babylon-agent": "trader-1"}


@pytest.fixture
def seen() -> list[str]:
    """The texts whose form was looked at."""
    return []


@pytest.fixture
def edge(seen: list[str]) -> Iterator[Edge]:
    """An edge for which only answers that begin with YES are well-formed."""

    def well_formed(text: str) -> bool:
        seen.append(text)
        return text.startswith("YES")

    with running_edge(well_formed=well_formed) as running:
        yield running


def post(edge: Edge, headers: dict[str, str] = AGENT, **body: Any) -> httpx.Response:
    json = {"model": "agent", "messages": HELLO, **body}
    answer = httpx.post(f"{edge.url}/v1/chat/completions", json=json, headers=headers, timeout=10)
    deadline = time.monotonic() + 10
    while edge.endpoint.in_flight and time.monotonic() < deadline:
        time.sleep(0.005)
    return answer


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("words", "malformed"), [(["YES", "."], False), (["N", "O"], True), ([""], True)]
)
def test_the_form_of_an_answer(edge: Edge, words: list[str], malformed: bool, stream: bool) -> None:
    edge.router.words = words
    assert post(edge, stream=stream).status_code == 200
    (call,) = edge.answers
    assert (call.malformed, call.pinned, call.agent) == (malformed, False, "trader-1")
    assert edge.failed == []


def test_only_an_agents_answer_by_the_lineages_name_counts(edge: Edge, seen: list[str]) -> None:
    edge.router.words = ["NO"]
    post(edge, headers={})
    post(edge, model="agent@12")
    assert [(call.malformed, call.pinned) for call in edge.answers] == [
        (False, False),
        (False, True),
    ]
    assert seen == []


def test_of_a_long_answer_the_end_is_looked_at(edge: Edge, seen: list[str]) -> None:
    edge.router.words = ["x" * 200_000 + "YES" + "." * 65_533]
    post(edge)
    assert [len(text) for text in seen] == [65_536]
    assert not edge.answers[0].malformed


def test_a_call_of_a_tool_has_no_form(edge: Edge) -> None:
    called = {"type": "function", "id": "1", "function": {"name": "buy", "arguments": "{}"}}

    async def call_tool(question: Question) -> AsyncIterator[dict[str, Any]]:
        message = {"role": "assistant", "content": None, "tool_calls": [called]}
        choice = {"index": 0, "message": message, "finish_reason": "tool_calls"}
        yield {**head(question, chunk=False), "choices": [choice]}

    edge.router.script = call_tool
    post(edge)
    assert [call.malformed for call in edge.answers] == [False]


def broken(error: Exception, begun: bool = False) -> Callable[[Question], AsyncIterator[Any]]:
    async def script(question: Question) -> AsyncIterator[dict[str, Any]]:
        if begun:
            yield chunk_of(question, 0, "YES", 0, last=False)
        raise error
        yield {}

    return script


@pytest.mark.parametrize(
    ("error", "begun", "failed"),
    [
        (BackendAway("it is away"), False, 1),
        (ApiError(502, "the backend went away"), True, 1),
        (ApiError(400, "this engine has no tools", param="tools"), False, 0),
        (ApiError(429, "too many"), False, 0),
        (ZeroDivisionError(), False, 1),
    ],
)
def test_errors_of_the_version_count(
    edge: Edge, error: Exception, begun: bool, failed: int
) -> None:
    edge.router.script = broken(error, begun)
    post(edge, stream=begun)
    assert [(call.lineage, call.step, call.agent) for call in edge.failed] == [
        ("agent", 12, "trader-1")
    ] * failed
    assert edge.answers == []


def test_errors_without_an_agent_or_by_a_versions_name_do_not(edge: Edge) -> None:
    edge.router.script = broken(BackendAway("it is away"))
    post(edge, headers={})
    post(edge, model="agent@12")
    post(edge, model="nobody")
    assert edge.failed == []


def test_an_answer_that_takes_too_long_is_an_error_and_who_leaves_is_none() -> None:
    async def forever(question: Question) -> AsyncIterator[dict[str, Any]]:
        import asyncio

        await asyncio.sleep(60)
        yield {}

    router = FakeRouter(script=forever)
    with running_edge(router, limits=Limits(answer_seconds=0.2)) as edge:
        assert post(edge).status_code == 504
        assert len(edge.failed) == 1
    with running_edge(router) as edge:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(
                f"{edge.url}/v1/chat/completions",
                json={"model": "agent", "messages": HELLO},
                headers=AGENT,
                timeout=0.3,
            )
        deadline = time.monotonic() + 10
        while edge.endpoint.in_flight and time.monotonic() < deadline:
            time.sleep(0.01)
        assert edge.failed == []
