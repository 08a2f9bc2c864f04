"""Server-sent events in any pieces, and what becomes of a server that streams something else."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.serve import events as events_module
from workers.serve.backend import ApiError, BackendAway
from workers.serve.events import Events
from workers.serve.upstream import Lost, Upstream

STREAM = b'data: {"a":1}\n\n: ping\n\nevent: x\ndata: {"b":"\xc3\xa9"}\n\ndata: [DONE]\n\nrest'


@given(
    st.lists(st.integers(0, 2 * len(STREAM)), max_size=20), st.sampled_from([b"\n", b"\r\n", b"\r"])
)
def test_events_are_the_same_in_any_pieces_and_with_any_end_of_line(
    cuts: list[int], end_of_line: bytes
) -> None:
    stream = STREAM.replace(b"\n", end_of_line)
    at = [0, *sorted(cuts), len(stream)]
    events, got = Events(), []
    for start, end in itertools.pairwise(at):
        got += list(events.feed(stream[start:end]))
    assert got == [b'{"a":1}', b'{"b":"\xc3\xa9"}']
    assert events.done


@pytest.mark.parametrize("stream", [b"<html>\n\n", b'{"error":1}\n\n', b"data: 1\nhello\n\n"])
def test_another_form_is_refused(stream: bytes) -> None:
    with pytest.raises(ValueError, match="server-sent events"):
        list(Events().feed(stream))


def test_an_event_without_end_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events_module, "MOST_BYTES", 100)
    with pytest.raises(ValueError, match="too long"):
        list(Events().feed(b"data: " + b"x" * 100))


@contextlib.contextmanager
def answering(content: bytes, status: int = 200) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


def stream(url: str) -> tuple[list[Any], ApiError | None]:
    """The chunks that came, and the error that ended them."""

    async def main() -> tuple[list[Any], ApiError | None]:
        upstream, chunks = Upstream(url, None, "gpu1", 5), []
        try:
            async for chunk in upstream.stream("/v1/completions", {}):
                chunks.append(chunk)
        except ApiError as error:
            return chunks, error
        finally:
            await upstream.close()
        return chunks, None

    return asyncio.run(main())


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "ended in the middle"),
        (b"data: {\n\n", "another form"),
        (b"data: 7\n\n", "another form"),
        (b"<html>\n\n", "another form"),
        (b'data: {"error":{"message":"secret","code":500}}\n\n', r"fails \(500\)"),
        (b'data: {"error":"secret"}\n\n', r"fails \(500\)"),
    ],
)
def test_another_may_be_asked_before_the_first_chunk_and_not_after_it(
    content: bytes, told: str
) -> None:
    with answering(content) as url:
        chunks, error = stream(url)
    assert isinstance(error, BackendAway)
    assert error.status == 503
    assert chunks == []
    with answering(b'data: {"a":1}\n\n' + content) as url:
        chunks, later = stream(url)
    assert chunks == [{"a": 1}]
    assert later is not None
    assert not isinstance(later, BackendAway)
    assert later.status == 502
    for each in (error, later):
        assert "secret" not in str(each)
        with pytest.raises(ApiError, match=told):
            raise each


def test_who_is_gone_before_the_question_is_told_from_who_ends_with_it() -> None:
    """What ends a server may end the next: after that, only one other is asked."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"

        def read_and_end() -> None:
            connection, _ = listener.accept()
            connection.recv(1)
            connection.close()

        ending = threading.Thread(target=read_and_end)
        ending.start()
        assert type(stream(url)[1]) is Lost
        ending.join()
    assert type(stream(url)[1]) is BackendAway
    with answering(b"") as url:
        assert type(stream(url)[1]) is Lost


def test_an_error_of_the_client_within_the_stream_is_the_clients() -> None:
    with answering(b'data: {"error":{"message":"too long","param":"n","code":400}}\n\n') as url:
        chunks, error = stream(url)
    assert error is not None
    assert (chunks, error.status, error.param, str(error)) == ([], 400, "n", "too long")


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"[" * 100_000, b'{"error":null}', b"[1]"])
@pytest.mark.parametrize("status", [400, 500])
def test_any_error_has_a_text(content: bytes, status: int) -> None:
    with answering(content, status) as url:
        _, error = stream(url)
    assert error is not None
    assert error.status == (400 if status == 400 else 503)
    assert str(error)
