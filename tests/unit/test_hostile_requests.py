"""Whatever a client sends: no 500, and never a key or another request's text in what it gets."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from babylon_tasks.records.api_keys import ApiKey, hash_of
from tests.serving_fakes import Edge, FakeRouter, KeysInMemory, make_edge
from workers.serve.backend import Question
from workers.serve.http.parameters import ChatParameters, TextParameters

pytest.importorskip("uvicorn")

KEY = b"bk-5f0c6e-a-key-that-nobody-is-shown"
OTHERS_TEXT = "the words of another agent's request"
HELLO: list[Any] = [{"role": "user", "content": "YES or NO?"}]
TOOL = {"type": "function", "function": {"name": "buy", "parameters": {"type": "object"}}}

# Values that are near what is expected, and values that are far from it.
VALID: dict[str, Any] = {
    "messages": HELLO,
    "prompt": "YES or",
    "temperature": 0.5,
    "n": 2,
    "stop": ["a"],
    "stream": True,
    "logprobs": True,
    "tools": [TOOL],
    "tool_choice": "auto",
    "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {}}},
    "logit_bias": {"5": 1},
    "user": "u",
    "stream_options": {"include_usage": True},
    "return_token_ids": True,
    "chat_template_kwargs": {"enable_thinking": False},
    "structured_outputs": {"choice": ["a", "b"]},
}
NAMES = sorted({*ChatParameters.__struct_fields__, *TextParameters.__struct_fields__})
numbers = st.one_of(
    st.integers(-(2**80), 2**80),
    st.floats(),
    st.sampled_from([0, -1, 1, 2**31, 2**63, 2**64, 10**400, 1e308, -0.0]),
)
leaves = st.one_of(st.none(), st.booleans(), numbers, st.text(max_size=20), st.just("\ud800"))
inner_names = st.sampled_from(["type", "content", "role", "url", "x"]) | st.text(max_size=5)
values = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(inner_names, inner, max_size=4),
    max_leaves=8,
)
names = st.sampled_from(NAMES) | st.text(max_size=8)
changes = st.dictionaries(names, values, max_size=4)
kept = st.sets(st.sampled_from(sorted(VALID)), max_size=5)
roles = st.sampled_from(["system", "user", "assistant", "tool", "robot"])
messages = st.lists(
    st.fixed_dictionaries(
        {"role": roles, "content": values},
        optional={"tool_calls": values, "name": values},
    ),
    max_size=3,
)


@st.composite
def bodies(draw: st.DrawFn) -> bytes:
    """Bodies that are JSON of a request, near to it, or anything."""
    kind = draw(st.integers(0, 9))
    if kind == 0:
        return draw(st.binary(max_size=60))
    if kind == 1:
        nested = draw(st.sampled_from([b"[", b'{"a":', b'{"structured_outputs":{"json":']))
        return nested + b'{"a":' * draw(st.integers(1, 3000))
    body: Any = {"model": "agent", "messages": HELLO}
    body |= {name: VALID[name] for name in draw(kept)}
    if kind < 8:
        body |= draw(changes)
    else:
        body["messages"] = draw(messages)
    encoded = json.dumps(body).encode()
    if kind in (2, 3):
        at = draw(st.integers(0, len(encoded)))
        return encoded[:at] + draw(st.binary(max_size=4)) + encoded[at + draw(st.integers(0, 4)) :]
    return encoded


content_types = st.just(b"application/json") | st.sampled_from([b"text/plain", b"", b"\xff"])
agents = st.none() | st.binary(max_size=40)
paths = st.sampled_from(["/v1/chat/completions"] * 3 + ["/v1/completions"]) | st.text(max_size=12)
keys = st.sampled_from([KEY, KEY, KEY, KEY[:-1], KEY + b"x"]) | st.binary(max_size=40)


@dataclass
class World:
    """An edge without sockets, in a loop that goes on from one request to the next."""

    edge: Edge
    loop: asyncio.AbstractEventLoop
    logged: list[str] = field(default_factory=list)

    def send(
        self, body: bytes, headers: list[tuple[bytes, bytes]], path: str = "/v1/chat/completions"
    ) -> tuple[int, bytes]:
        """Return the status, and all that was sent, headers and body."""
        sent: list[Any] = []
        inbox = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> Any:
            if inbox:
                return inbox.pop()
            await asyncio.Event().wait()

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {"type": "http", "method": "POST", "path": path, "headers": headers}
        self.loop.run_until_complete(self.edge.endpoint(scope, receive, send))
        head = b"\n".join(b": ".join(each) for each in sent[0]["headers"])
        text = b"".join(each["body"] for each in sent[1:])
        assert not sent[-1]["more_body"]
        return sent[0]["status"], head + b"\n\n" + text


class Collecting(logging.Handler):
    """Keeps what is logged, tracebacks included."""

    def __init__(self, lines: list[str]) -> None:
        super().__init__()
        self.lines = lines
        self.setFormatter(logging.Formatter())

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    router = FakeRouter()

    async def strict(question: Question) -> AsyncIterator[dict[str, Any]]:
        """A backend has to be able to send the question on."""
        json.dumps(question.body, allow_nan=False).encode()
        async for chunk in router.say(question):
            yield chunk

    router.script = strict
    edge = make_edge(router, KeysInMemory([ApiKey("app", hash_of(KEY))]))
    made = World(edge, asyncio.new_event_loop())
    handler = Collecting(made.logged)
    logging.getLogger().addHandler(handler)
    body = {"model": "agent", "messages": [{"role": "user", "content": OTHERS_TEXT}]}
    status, _ = made.send(json.dumps(body).encode(), _headers(KEY, b"application/json", None))
    assert status == 200
    yield made
    logging.getLogger().removeHandler(handler)
    made.loop.close()


def _headers(key: bytes, kind: bytes, agent: bytes | None) -> list[tuple[bytes, bytes]]:
    headers = [(b"authorization", b"Bearer " + key), (b"content-type", kind)]
    return headers if agent is None else [*headers, (b"x-babylon-agent", agent)]


def check(world: World, body: bytes, path: str, headers: list[tuple[bytes, bytes]]) -> int:
    world.logged.clear()
    world.edge.router.asked.clear()
    world.edge.router.agents.clear()
    world.edge.answers.clear()
    status, sent = world.send(body, headers, path)
    assert status in {200, 400, 401, 404, 405, 415}, sent
    shown = sent + "".join(world.logged).encode("utf-8", "backslashreplace")
    assert KEY not in shown
    assert OTHERS_TEXT.encode() not in shown
    text = sent.partition(b"\n\n")[2]
    if status != 200:
        error = json.loads(text)["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert error["message"]
        assert len(text) < 5000
    assert world.logged == []
    assert world.edge.endpoint.in_flight == world.edge.router.under_way == 0
    return status


quick = settings(
    max_examples=100, deadline=None, suppress_health_check=[*HealthCheck], database=None
)
hostile = given(bodies(), paths, st.builds(_headers, keys, content_types, agents))
in_each_place = given(values, st.sets(st.sampled_from(sorted(VALID)), max_size=3))
OURS = _headers(KEY, b"application/json", None)
PATHS = {"/v1/chat/completions": ChatParameters, "/v1/completions": TextParameters}


def check_each_place(world: World, value: Any, others: set[str]) -> int:
    """Send the value as each parameter of both kinds of requests; return how many they were."""
    count = 0
    for path, parameters in PATHS.items():
        known = parameters.__struct_fields__
        valid = {name: VALID[name] for name in others if name in known}
        need = "messages" if "messages" in known else "prompt"
        for name in (*known, "content"):
            body: Any = {"model": "agent", need: VALID[need], **valid, name: value}
            if name == "content":
                del body[name]
                body[need] = [{"role": "user", "content": value}]
            check(world, json.dumps(body).encode(), path, OURS)
            count += 1
    return count


@in_each_place
@settings(quick, max_examples=5)
def test_an_odd_value_in_any_place_is_refused_in_order(
    world: World, value: Any, others: set[str]
) -> None:
    check_each_place(world, value, others)


@hostile
@quick
def test_a_hostile_request_is_refused_in_order(
    world: World, body: bytes, path: str, headers: list[tuple[bytes, bytes]]
) -> None:
    check(world, body, path, headers)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_100_000_bodies_with_odd_values(world: World) -> None:
    sent = 0

    @in_each_place
    @settings(quick, max_examples=1400)
    def send_all(value: Any, others: set[str]) -> None:
        nonlocal sent
        sent += check_each_place(world, value, others)

    send_all()
    assert sent >= 100_000


@pytest.mark.slow
@pytest.mark.timeout(3600)
@hostile
@settings(quick, max_examples=10_000)
def test_10_000_hostile_requests(
    world: World, body: bytes, path: str, headers: list[tuple[bytes, bytes]]
) -> None:
    check(world, body, path, headers)


def test_the_bodies_are_of_both_kinds(world: World) -> None:
    """Many of them get an answer, so what is behind the first check is tried as well."""
    statuses: list[int] = []

    @given(bodies())
    @settings(quick, derandomize=True)
    def collect(body: bytes) -> None:
        statuses.append(check(world, body, "/v1/chat/completions", OURS))

    collect()
    assert statuses.count(200) >= 10
    assert statuses.count(400) >= 30
