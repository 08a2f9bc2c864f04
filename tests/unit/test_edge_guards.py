"""What the edge does about clients that leave, wait, send too much, or have used up their key."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

pytest.importorskip("uvicorn")

from babylon_tasks.errors import UserError
from babylon_tasks.records.api_keys import ApiKey, hash_of, new_key
from tests.serving_fakes import (
    AGENT,
    Edge,
    FakeRouter,
    KeysInMemory,
    chunk_of,
    make_edge,
    running_edge,
    serving,
)
from workers.serve.backend import ApiError, Question
from workers.serve.health import Health, Problem
from workers.serve.http import keys as keys_module
from workers.serve.http import server
from workers.serve.http.gathered import Gathered
from workers.serve.http.limits import Limits
from workers.serve.http.metrics import VERSIONS_KEPT, Metrics

BODY = {"model": "agent", "messages": [{"role": "user", "content": "YES or NO?"}]}
STREAM = {**BODY, "stream": True}
ROOT = Path(__file__).parents[2]


def wait_for(what: Callable[[], Any], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.01)


async def forever(question: Question) -> AsyncIterator[dict[str, Any]]:
    """Say many words again and again; of a whole answer, nothing."""
    for number in range(10**9):
        if question.stream:
            yield chunk_of(question, 0, "word " * 20_000, number, last=False)
        await asyncio.sleep(0.01)


def send(edge: Edge, *parts: bytes) -> socket.socket:
    line = socket.create_connection(("127.0.0.1", edge.port), timeout=20)
    for part in parts:
        line.sendall(part)
    return line


def request(body: dict[str, Any], *headers: str) -> bytes:
    sent = json.dumps(body).encode()
    lines = [
        "POST /v1/chat/completions HTTP/1.1",
        "host: 127.0.0.1",
        "content-type: application/json",
        f"content-length: {len(sent)}",
        *headers,
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + sent


def read_all(line: socket.socket) -> bytes:
    """Read until the server closes the connection, in order or not."""
    parts = []
    with contextlib.suppress(ConnectionResetError):
        while part := line.recv(1_000_000):
            parts.append(part)
    return b"".join(parts)


def ask(edge: Edge, key: str | None = None, **more: Any) -> httpx.Response:
    headers = {"authorization": f"Bearer {key}"} if key else {}
    url = f"{edge.url}/v1/chat/completions"
    return httpx.post(url, json={**BODY, **more}, headers=headers, timeout=20)


@pytest.mark.parametrize("body", [BODY, STREAM], ids=["whole", "streamed"])
def test_who_leaves_stops_the_generation(body: dict[str, Any]) -> None:
    router = FakeRouter(script=forever)
    with running_edge(router) as edge:
        line = send(edge, request(body))
        wait_for(lambda: router.under_way)
        line.close()
        wait_for(lambda: router.stopped == 1)
        wait_for(lambda: edge.endpoint.in_flight == 0)
        text = edge.metrics.text().decode()
        assert 'status="499",version="12"} 1.0' in text
        assert 'babylon_serve_errors_total{reason="cancelled"} 1.0' in text
        assert edge.answers == []


def test_who_does_not_read_is_cut_off() -> None:
    router = FakeRouter(script=forever)
    with running_edge(router, limits=Limits(send_seconds=0.3)) as edge:
        line = send(edge, request(STREAM))
        wait_for(lambda: router.stopped == 1)
        wait_for(lambda: edge.endpoint.in_flight == 0)
        assert b"[DONE]" not in read_all(line)


def test_an_answer_that_takes_too_long_is_given_up() -> None:
    router = FakeRouter(script=forever)
    with running_edge(router, limits=Limits(answer_seconds=0.3)) as edge:
        late = ask(edge)
        assert (late.status_code, late.json()["error"]["code"]) == (504, "timeout")
        streamed = ask(edge, stream=True)
        assert streamed.status_code == 200
        last = streamed.text.strip().split("\n\n")[-1]
        assert json.loads(last.removeprefix("data: "))["error"]["code"] == "timeout"
        assert router.stopped == 2


def test_a_document_that_is_not_read_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "READ_SECONDS", 0.3)
    cut: list[int] = []
    cut_off = server.BoundedConnection._cut_off

    def noted(connection: server.BoundedConnection) -> None:
        cut.append(connection.transport.get_write_buffer_size())
        cut_off(connection)

    monkeypatch.setattr(server.BoundedConnection, "_cut_off", noted)
    with running_edge(FakeRouter(words=["word " * 4_000_000])) as edge:
        line = send(edge, request(BODY))
        wait_for(lambda: cut)
        assert cut[0] > 0
        assert not read_all(line).endswith(b"}")


def test_a_body_has_to_come_and_to_be_small() -> None:
    with running_edge(limits=Limits(body_bytes=1000, body_seconds=0.3)) as edge:
        promised = send(edge, request(BODY)[:-10])
        assert read_all(promised).startswith(b"HTTP/1.1 408 ")
    with running_edge(limits=Limits(body_bytes=1000)) as edge:
        declared = httpx.post(
            f"{edge.url}/v1/chat/completions", json={**BODY, "user": "x" * 5_000_000}
        )
        assert declared.status_code == 413
        chunked = httpx.post(
            f"{edge.url}/v1/chat/completions",
            content=iter([b"x" * 600] * 3),
            headers={"content-type": "application/json"},
        )
        assert chunked.status_code == 413
        asks_first = send(
            edge,
            b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\nexpect: 100-continue\r\n"
            b"content-type: application/json\r\ncontent-length: 5000\r\n\r\n",
        )
        assert read_all(asks_first).startswith(b"HTTP/1.1 413 ")
        assert ask(edge).status_code == 200


def test_more_requests_than_it_takes_are_told_to_come_again() -> None:
    router = FakeRouter(script=forever)
    with running_edge(router, limits=Limits(requests=1)) as edge:
        line = send(edge, request(STREAM))
        wait_for(lambda: router.under_way)
        busy = ask(edge)
        assert (busy.status_code, busy.headers["retry-after"]) == (503, "1")
        assert httpx.get(f"{edge.url}/health/live").status_code == 200
        line.close()
        wait_for(lambda: edge.endpoint.in_flight == 0)


def test_connections_that_ask_nothing_are_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "HEADER_SECONDS", 0.3)
    with running_edge() as edge:
        for sent in (b"", b"POST /v1/chat/comp", request(BODY)[:40]):
            assert read_all(send(edge, sent)) == b""
        line = send(edge, b"GET /healthz HTTP/1.1\r\nhost: localhost:8000\r\n\r\n")
        received = b""
        while not received.endswith(b"}"):
            received += line.recv(10_000)
        assert received.startswith(b"HTTP/1.1 200")
        line.sendall(b"GET /heal")  # headers that trickle in on a connection that was used
        assert read_all(line) == b""


def test_there_is_a_most_of_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    with running_edge() as edge:
        monkeypatch.setattr(server, "most_connections", lambda: 2)
        lines = [send(edge) for _ in range(2)]
        assert read_all(send(edge)) == b""
        lines[0].close()
        wait_for(lambda: _answers(edge))


def _answers(edge: Edge) -> bool:
    try:
        return httpx.get(f"{edge.url}/healthz").status_code == 200
    except httpx.HTTPError:
        return False


def test_headers_have_a_most() -> None:
    with running_edge() as edge:
        line = send(edge, b"GET /healthz HTTP/1.1\r\n" + b"x: " + b"y" * 200_000)
        assert read_all(line)[:13] in (b"HTTP/1.1 400 ", b"")  # the answer may be lost by the reset


NO_HTTP = [
    b"\x16\x03\x01\x02\x00\x01\x00",  # TLS
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"GET / HTTP/9.9\r\nconnection: close\r\n\r\n",
    b"GET /\x00 HTTP/1.1\r\nhost: h\r\n\r\n",
    b"GET http://127.0.0.1/healthz HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n",
    b"GET /%ff%00%2e%2e/healthz HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n",
    b"GET /v1/models/%ff%0d%0a HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n",
    b"\xff\xfe / HTTP/1.1\r\n\r\n",
    b"POST /v1/completions HTTP/1.1\r\nhost: h\r\ncontent-length: -1\r\n\r\n",
    b"POST /v1/completions HTTP/1.1\r\nhost: h\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n",
    b"POST /v1/completions HTTP/1.1\r\nhost: h\r\ncontent-length: 9" + b"9" * 30 + b"\r\n\r\n",
    b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    b"transfer-encoding: chunked\r\n\r\nzz\r\n",
    b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    b"connection: close\r\ntransfer-encoding: chunked\r\ncontent-length: 5\r\n\r\n"
    b"5\r\nhello\r\n0\r\n\r\n",
    b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\nauthorization: \xff\xfe\r\n"
    b"content-length: 2\r\nconnection: close\r\n\r\n{}",
    b"GET /healthz HTTP/1.1\r\n" + b"a: b\r\n" * 20_000 + b"\r\n",
    b"GET /healthz HTTP/1.1\r\nhost: h\r\nupgrade: websocket\r\nconnection: upgrade, close\r\n\r\n",
]


@pytest.fixture(scope="module")
def resting() -> Iterator[Edge]:
    with running_edge() as edge:
        yield edge


@pytest.mark.parametrize("sent", NO_HTTP, ids=lambda each: repr(each[:60]))
def test_what_is_no_request_ends_that_connection_alone(
    resting: Edge, sent: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    received = read_all(send(resting, sent))
    assert received == b"" or received[:10] in (b"HTTP/1.1 4", b"HTTP/1.1 2"), received
    assert _answers(resting)
    assert "Traceback" not in caplog.text
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


def test_a_backends_words_become_no_header() -> None:
    async def refuse(question: Question) -> AsyncIterator[dict[str, Any]]:
        raise ApiError(429, "wait", headers={"retry-after": " 7\r\nset-cookie: a=b\udcff "})
        yield {}

    with running_edge(FakeRouter(script=refuse)) as edge:
        refused = ask(edge)
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "7set-cookie: a=b")
        assert "set-cookie" not in refused.headers


def row(name: str, key: str, **more: Any) -> ApiKey:
    return ApiKey(name, hash_of(key.encode()), **more)


def test_a_key_has_requests_a_minute() -> None:
    key, other = new_key(), new_key()
    keys = KeysInMemory([row("app", key, requests_per_minute=2), row("other", other)])
    with running_edge(keys=keys) as edge:
        assert [ask(edge, key).status_code for _ in range(2)] == [200, 200]
        refused = ask(edge, key)
        assert refused.status_code == 429
        assert refused.json()["error"]["code"] == "rate_limit_exceeded"
        assert 1 <= int(refused.headers["retry-after"]) <= 30
        assert ask(edge, other).status_code == 200
        assert key not in refused.text


def test_a_key_has_tokens_a_day_also_after_a_restart() -> None:
    key = new_key()
    keys = KeysInMemory([row("app", key, tokens_per_day=12, tokens_today=1)])
    with running_edge(keys=keys) as edge:
        assert [ask(edge, key).status_code for _ in range(2)] == [200, 200]  # six tokens each
        wait_for(lambda: edge.endpoint.in_flight == 0)
        spent = ask(edge, key)
        assert (spent.status_code, spent.json()["error"]["code"]) == (429, "insufficient_quota")
        assert spent.headers["x-should-retry"] == "false"
    assert (keys.used["app"].requests, keys.used["app"].tokens) == (2, 12)
    with running_edge(keys=KeysInMemory([replace(keys.rows[0], tokens_today=13)])) as edge:
        assert ask(edge, key).status_code == 429


def test_a_stream_that_was_cut_costs_its_tokens() -> None:
    key = new_key()
    keys = KeysInMemory([row("app", key)])
    router = FakeRouter(script=forever)
    with running_edge(router, keys) as edge:
        line = send(edge, request(STREAM, f"authorization: Bearer {key}"))
        wait_for(lambda: router.under_way)
        line.recv(10_000)
        line.close()
        wait_for(lambda: router.stopped)
    assert keys.used["app"].tokens > 3  # the prompt's three, and those of the answer


@pytest.mark.parametrize("path", ["chat/completions", "completions"])
def test_a_cut_stream_costs_its_pieces_where_tokens_are_not_told(path: str) -> None:
    """W&B tells no token ids, and the usage comes at the end alone."""
    key = new_key()
    keys = KeysInMemory([row("app", key)])

    async def bare(question: Question) -> AsyncIterator[dict[str, Any]]:
        for number in range(7):
            chunk = chunk_of(question, 0, "word ", number, last=False)
            chunk.pop("prompt_token_ids", None)
            chunk["choices"][0].pop("token_ids", None)
            yield chunk
        raise ApiError(503, "it is gone")

    with running_edge(FakeRouter(script=bare), keys) as edge:
        body = {"model": "agent", "stream": True}
        body |= {"messages": BODY["messages"]} if "chat" in path else {"prompt": "x"}
        headers = {"authorization": f"Bearer {key}"}
        answer = httpx.post(f"{edge.url}/v1/{path}", json=body, headers=headers, timeout=20)
        assert "it is gone" in answer.text
    assert keys.used["app"].tokens == 7


def test_keys_change_while_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys_module, "REFRESH_SECONDS", 0.02)
    first, second = new_key(), new_key()
    keys = KeysInMemory([row("first", first)])
    with running_edge(keys=keys) as edge:
        keys.away = True
        keys.rows = [row("first", first), row("second", second)]
        assert ask(edge, first).status_code == 200  # as it was known before
        assert ask(edge, second).status_code == 401
        keys.away = False
        wait_for(lambda: ask(edge, second).status_code == 200)
        keys.rows = [replace(each, revoked_at=datetime.now(UTC)) for each in keys.rows]
        wait_for(lambda: ask(edge, second).status_code == 401)
        assert ask(edge, first).status_code == 401
        assert ask(edge).status_code == 401  # to revoke the last key opens no door
    assert keys.used["first"].requests >= 1


def test_nobody_is_let_in_before_the_keys_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys_module, "REFRESH_SECONDS", 0.02)
    keys = KeysInMemory([], settings_key="s" * 16)
    keys.away = True
    with running_edge(keys=keys) as edge:
        assert ask(edge, "s" * 16).status_code == 200
        assert ask(edge).status_code == 401
    keys = KeysInMemory([])
    keys.away = True
    with running_edge(keys=keys) as edge:
        unknown = ask(edge)
        assert (unknown.status_code, unknown.headers["retry-after"]) == (503, "3")
        keys.away = False
        wait_for(lambda: ask(edge).status_code == 200)


def test_health_says_why_to_those_who_may_ask() -> None:
    """A reason may have a path of the store, the database's host, or a backend's own words."""
    key = new_key()
    why = "cannot read /srv/store/agent/12"
    state = Health(ready=True, problems=[Problem("agent@12 on gpu1:8001", 5.0, why)])
    with running_edge(FakeRouter(state=state), KeysInMemory([row("app", key)])) as edge:
        for given, reason in ((None, ""), ("wrong", ""), (key, why)):
            headers = {"authorization": f"Bearer {given}"} if given else {}
            answer = httpx.get(f"{edge.url}/health/ready", headers=headers)
            (problem,) = answer.json()["health"]["problems"]
            assert answer.status_code == 200
            assert problem == {"what": "agent@12 on gpu1:8001", "since_seconds": 5.0, "why": reason}
    with running_edge(FakeRouter(state=state)) as edge:  # no key is needed
        assert why in httpx.get(f"{edge.url}/health/ready").text


def test_other_machines_need_a_key() -> None:
    with pytest.raises(UserError, match="needs a key: `babylon keys create"):
        KeysInMemory([], loopback=False).require_one("0.0.0.0")
    KeysInMemory([row("app", new_key())], loopback=False).require_one("0.0.0.0")
    KeysInMemory([], settings_key="s" * 16, loopback=False).require_one("0.0.0.0")
    away = KeysInMemory([], loopback=False)
    away.away = True
    away.require_one("0.0.0.0")  # keys may exist: it lets nobody in before it knows


def test_a_role_that_may_not_read_the_keys_is_told_at_the_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Else it would be ready, and answer every request with 503."""
    keys = KeysInMemory([])

    def refuse(used: object) -> list[ApiKey]:
        raise UserError("permission denied for table api_keys: run `babylon migrate`")

    monkeypatch.setattr(keys, "_exchange", refuse)
    with pytest.raises(UserError, match="permission denied"):
        keys.require_one("127.0.0.1")


@pytest.mark.parametrize(
    ("host", "status"),
    [("localhost:8000", 200), ("127.0.0.1", 200), ("[::1]:8000", 200), ("page.example:8000", 403),
     ("127.0.0.1.page.example", 403), ("", 403)],
)  # fmt: skip
def test_without_keys_only_this_machines_names_are_answered(host: str, status: int) -> None:
    """So no page of the web can ask, whose name was made to point to this machine."""
    with running_edge() as edge:
        answer = httpx.get(f"{edge.url}/v1/models", headers={"host": host})
        assert answer.status_code == status


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("127.0.0.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("", False)],
)
def test_loopback(host: str, loopback: bool) -> None:
    assert keys_module.is_loopback(host) is loopback


def test_series_of_old_versions_go() -> None:
    metrics = Metrics()
    for step in range(3 * VERSIONS_KEPT):
        metrics.answered(replace(AGENT, step=step), "gpu1:8001", 200, Gathered(), streamed=True)
        metrics.answered(replace(AGENT, step=step), "gpu1:8001", 400, Gathered(), streamed=True)
        metrics.answered(replace(AGENT, step=step), "gpu2:8001", 400, Gathered(), streamed=True)
    text = metrics.text().decode()
    assert text.count("babylon_serve_requests_total{") == 3 * VERSIONS_KEPT
    assert text.count("babylon_serve_answer_seconds_sum{") == VERSIONS_KEPT
    assert f'version="{3 * VERSIONS_KEPT - 1}"' in text


def test_sigterm_lets_answers_finish() -> None:
    """Health says at once that it ends, new questions are sent away, and the stream is whole."""
    program = [sys.executable, "-c", "from tests.serving_fakes import main; main()"]
    pipe = subprocess.PIPE
    with subprocess.Popen(program, cwd=ROOT, stdin=pipe, stdout=pipe, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdin is not None
            url = process.stdout.readline().split()[-1]
            with httpx.stream("POST", f"{url}/v1/chat/completions", json=STREAM) as answer:
                lines = answer.iter_lines()
                assert "YES" in next(lines)
                process.send_signal(signal.SIGTERM)
                wait_for(lambda: httpx.get(f"{url}/health/ready").status_code == 503)
                assert httpx.get(f"{url}/health/live").status_code == 200
                new = httpx.post(f"{url}/v1/chat/completions", json=BODY)
                assert (new.status_code, new.headers["retry-after"]) == (503, "1")
                assert new.headers["connection"] == "close"
                process.stdin.close()
                rest = list(lines)
            assert rest[-2:] == ["data: [DONE]", ""]
            assert process.wait(20) == 0
        finally:
            process.kill()


def test_an_answer_that_does_not_end_is_told_so_and_holds_no_end_up(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Supervisors kill after 30 s, and then nothing is written any more."""
    router = FakeRouter()

    async def endless(question: Question) -> AsyncIterator[dict[str, Any]]:
        yield chunk_of(question, 0, "word", 0, last=False)
        await asyncio.sleep(600)

    router.script = endless
    edge = make_edge(router)
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        serving(edge.endpoint, listener, drain_seconds=0.2) as ending,
    ):
        edge.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        body = {"model": "agent", "messages": [{"role": "user", "content": "x"}], "stream": True}
        with httpx.stream("POST", f"{edge.url}/v1/chat/completions", json=body) as answer:
            lines = answer.iter_lines()
            assert next(lines).startswith("data: ")
            ending.handle_exit(signal.SIGTERM, None)
            rest = "".join(lines)
    assert "this server ends" in rest
    assert "[DONE]" not in rest
    assert not [record for record in caplog.records if record.exc_info]
