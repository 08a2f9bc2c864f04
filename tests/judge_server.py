"""A judge over HTTP: OpenAI's chat completions for RULER's prompts, right or wrong as told.

litellm and ART's `ruler()` talk to it as to any OpenAI-compatible server. What it answers is
decided by behaviours, one a request: `server.script` first, then `server.default`.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import math
import os
import re
import select
import socket
import ssl
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Self

Scores = list[dict[str, Any]]  # what goes under "scores" in the answer, in its order

# json.dumps leaves no line break inside a trajectory, so its tags stand on lines of their own.
TRAJECTORY = re.compile(r'^<trajectory id="([^"\n]*)">\n(.*)\n</trajectory>$', re.MULTILINE)
WRITTEN_SCORE = re.compile(r"JUDGE-SCORE=([01](?:\.\d+)?)")


def fraction(*parts: object) -> float:
    """A number in [0, 1) that depends on the parts only."""
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def written_score(trajectory: str) -> float:
    """The score that the trajectory's text asks for (`JUDGE-SCORE=0.37`), else one by its text."""
    found = WRITTEN_SCORE.search(trajectory)
    return float(found[1]) if found else round(fraction(trajectory), 4)


def trajectories_of(messages: list[dict[str, Any]]) -> dict[str, str]:
    """Texts of a RULER prompt by trajectory id, in the prompt's order."""
    return {id_: text for m in messages for id_, text in TRAJECTORY.findall(text_of(m))}


def text_of(message: dict[str, Any]) -> str:
    """A message's text, written as a string or in parts."""
    content = message.get("content") or ""
    if isinstance(content, str):
        return content
    return "".join(part.get("text", "") for part in content)


@dataclass(frozen=True)
class Behaviour:
    """What happens to one request. `a + b` does both: scores and text changed by a, then b."""

    name: str
    scores: tuple[Callable[[Scores], Scores], ...] = ()
    text: tuple[Callable[[str], str], ...] = ()
    finish_reason: str = "stop"
    status: int = 200
    error: dict[str, Any] | None = None  # OpenAI's error object
    headers: tuple[tuple[str, str], ...] = ()
    fault: str = ""  # hang, drip, cut_short, not_json or reset
    seconds: float = math.inf  # how long `hang` or `drip` lasts
    document: Callable[[dict[str, Any]], Any] | None = None  # the body, from OpenAI's
    content_type: str = "application/json"

    def __add__(self, other: Behaviour) -> Behaviour:
        """Both; where only one can be (a status, a fault), the later one that has it."""
        refusal = other if other.status != 200 else self
        return Behaviour(
            name=f"{self.name}+{other.name}",
            scores=self.scores + other.scores,
            text=self.text + other.text,
            finish_reason=other.finish_reason
            if other.finish_reason != "stop"
            else self.finish_reason,
            status=refusal.status,
            error=refusal.error,
            headers=self.headers + other.headers,
            fault=other.fault or self.fault,
            seconds=min(self.seconds, other.seconds),
            document=other.document or self.document,
            content_type=other.content_type
            if other.content_type != "application/json"
            else self.content_type,
        )


def _scores(name: str, change: Callable[[Scores], Scores]) -> Behaviour:
    return Behaviour(name, scores=(change,))


def _text(name: str, change: Callable[[str], str], finish_reason: str = "stop") -> Behaviour:
    return Behaviour(name, text=(change,), finish_reason=finish_reason)


def _refusal(name: str, status: int, message: str, type_: str, code: str | None) -> Behaviour:
    error = {"message": message, "type": type_, "param": None, "code": code}
    return Behaviour(name, status=status, error=error)


def _each_score(values: Iterable[Any]) -> Callable[[Scores], Scores]:
    """These values in turn instead of the right ones."""
    kept = list(values)
    return lambda scores: [s | {"score": kept[i % len(kept)]} for i, s in enumerate(scores)]


def _renamed(scores: Scores) -> Scores:
    return [s | {"trajectory_id": str(100 + i)} for i, s in enumerate(scores)]


def _repeated_id(scores: Scores) -> Scores:
    return [*scores[:-1], scores[-1] | {"trajectory_id": scores[0]["trajectory_id"]}]


# Right, or right enough to be read.
good = Behaviour("good")
shuffled = _scores("shuffled", lambda scores: scores[1:] + scores[:1])
prose = _text("prose", lambda text: f"Let me compare them.\n\n{text}\n\nThese are my scores.")
fenced = _text("fenced", lambda text: f"```json\n{text}\n```")
as_text = _scores("as_text", lambda scores: [s | {"score": str(s["score"])} for s in scores])

# Wrong scores.
too_few = _scores("too_few", lambda scores: scores[:-1])
too_many = _scores("too_many", lambda s: [*s, {**s[-1], "trajectory_id": str(len(s) + 1)}])
duplicate_ids = _scores("duplicate_ids", _repeated_id)
unknown_ids = _scores("unknown_ids", _renamed)
out_of_range = _scores("out_of_range", _each_score([9.0, -4.0]))
not_numbers = _scores("not_numbers", _each_score([None, "high", math.nan]))
nan = _scores("nan", _each_score([math.nan]))
infinite = _scores("infinite", _each_score([math.inf, -math.inf]))

# Wrong text.
empty = _text("empty", lambda text: "")
refusal = _text("refusal", lambda text: "I cannot score these trajectories.")
length = _text("length", lambda text: text[: len(text) // 2], finish_reason="length")

# Refused requests.
server_error = _refusal(
    "server_error", 500, "The server had an error processing your request.", "server_error", None
)
overloaded = _refusal("overloaded", 503, "The engine is overloaded.", "server_error", None)
unauthorized = _refusal(
    "unauthorized", 401, "Incorrect API key provided.", "invalid_request_error", "invalid_api_key"
)
insufficient_quota = _refusal(
    "insufficient_quota",
    429,
    "You exceeded your current quota, please check your plan and billing details.",
    "insufficient_quota",
    "insufficient_quota",
)
content_filter = _refusal(
    "content_filter",
    400,
    "The response was filtered due to the prompt triggering our content management policy.",
    "invalid_request_error",
    "content_filter",
)
no_such_model = _refusal(
    "no_such_model",
    404,
    "The model `judge` does not exist or you do not have access to it.",
    "invalid_request_error",
    "model_not_found",
)
context_too_long = _refusal(
    "context_too_long",
    400,
    "This model's maximum context length is 8192 tokens. Please reduce the length of the messages.",
    "invalid_request_error",
    "context_length_exceeded",
)

# Broken connections.
cut_short = Behaviour("cut_short", fault="cut_short")
not_json = Behaviour("not_json", fault="not_json")
reset = Behaviour("reset", fault="reset")


def rate_limited(retry_after: float | str | None = 1) -> Behaviour:
    """429; `retry_after` in seconds or as the header's text, None for no header."""
    message = "Rate limit reached for judge in organization org-1 on requests per min."
    refused = _refusal("rate_limited", 429, message, "requests", "rate_limit_exceeded")
    if retry_after is None:
        return refused
    return replace(refused, headers=(("Retry-After", f"{retry_after}"),))


def hang(seconds: float = math.inf) -> Behaviour:
    """No answer for so long (then the right one), or until the client or the server closes."""
    return Behaviour("hang", fault="hang", seconds=seconds)


def drip(seconds: float) -> Behaviour:
    """The right answer, its body spread over so many seconds: never silent, yet late."""
    return Behaviour("drip", fault="drip", seconds=seconds)


@dataclass
class Received:
    """A request as it came, and what was done with it."""

    at_seconds: float  # time.monotonic()
    headers: dict[str, str]  # names in lower case
    body: dict[str, Any]
    trajectories: dict[str, str]  # by id, in the prompt's order
    behaviour: str = ""
    hung_up: bool = False  # the client closed before the answer

    @property
    def messages(self) -> list[dict[str, Any]]:
        return self.body.get("messages", [])

    @property
    def ids(self) -> list[str]:
        return list(self.trajectories)


@dataclass
class JudgeServer:
    """The server, in threads of this process, from `with` to its end.

    Requests that the options refuse (key, rate, context) take nothing from the script.
    """

    script: list[Behaviour] = field(default_factory=list)
    default: Behaviour = good
    score_of: Callable[[str], float] = written_score
    delay_seconds: float = 0.0  # before every answer
    max_context_tokens: int | None = None  # of prompt and max_tokens together, cl100k_base
    requests_per_second: float | None = None
    api_key: str | None = None
    noise: float = 0.0  # at most so much is added or taken, by text and position
    position_bias: float = 0.0  # added to the first trajectory, taken from the last
    refuses: Callable[[dict[str, Any]], Behaviour | None] | None = None  # by a request's body
    path: str = "/v1/chat/completions"
    requests: list[Received] = field(default_factory=list)
    most_at_once: int = 0

    def __post_init__(self) -> None:
        self.closing = threading.Event()
        self._lock = threading.Lock()
        self._at_once = 0
        self._numbers = itertools.count(1)
        self._let_in: deque[float] = deque()
        self._connections: set[socket.socket] = set()
        if self.max_context_tokens is not None:
            encoding()  # loading takes a second, which belongs to no request

    def __enter__(self) -> Self:
        self._http = _Server(("127.0.0.1", 0), _Handler)
        self._http.judge = self
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self._http.shutdown()
        self._http.server_close()
        with self._lock:
            for connection in self._connections:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
        self._thread.join(5)

    @property
    def url(self) -> str:
        """What clients call `api_base`."""
        return f"http://127.0.0.1:{self._http.server_address[1]}/v1"

    def encrypt(self, certificate: Path) -> None:
        """Speak TLS from now on, with a certificate and its key in one file."""
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(certificate)
        self._http.socket = tls.wrap_socket(
            self._http.socket, server_side=True, do_handshake_on_connect=False
        )

    def then(self, *behaviours: Behaviour) -> None:
        """Add to the script."""
        with self._lock:
            self.script.extend(behaviours)

    def answer_for(self, request: Received) -> Behaviour:
        """What to do with a request; takes it from the script unless an option refuses."""
        if self.api_key and request.headers.get("authorization") != f"Bearer {self.api_key}":
            return unauthorized
        if wait_seconds := self._too_soon():
            return rate_limited(round(wait_seconds, 3))
        if self.max_context_tokens is not None:
            asked = self.prompt_tokens(request) + max_tokens(request)
            if asked > self.max_context_tokens:
                return _too_long(self.max_context_tokens, asked)
        if self.refuses and (refused := self.refuses(request.body)):
            return refused
        with self._lock:
            return self.script.pop(0) if self.script else self.default

    def prompt_tokens(self, request: Received) -> int:
        """Exact where the context is limited, else a quarter of the characters."""
        texts = [text_of(message) for message in request.messages]
        if self.max_context_tokens is None:
            return sum(map(len, texts)) // 4
        return sum(len(encoding().encode_ordinary(text)) for text in texts)

    def right_scores(self, trajectories: dict[str, str]) -> Scores:
        """As this judge sees them, noise and bias included, cut to [0, 1]."""
        last = max(len(trajectories) - 1, 1)
        scores = []
        for position, (id_, text) in enumerate(trajectories.items()):
            score = self.score_of(text)
            score += self.noise * (2 * fraction(text, position) - 1)
            score += self.position_bias * (1 - 2 * position / last)
            scores.append(
                {
                    "trajectory_id": id_,
                    "explanation": f"The trajectory at position {position + 1}.",
                    "score": min(max(score, 0.0), 1.0),
                }
            )
        return scores

    def completion(self, request: Received, behaviour: Behaviour) -> dict[str, Any]:
        """OpenAI's answer to the request."""
        scores = self.right_scores(request.trajectories)
        for change in behaviour.scores:
            scores = change(scores) if scores else scores
        content = json.dumps({"scores": scores})
        for dress in behaviour.text:
            content = dress(content)
        prompt_tokens, completion_tokens = self.prompt_tokens(request), len(content) // 4
        return {
            "id": f"chatcmpl-{next(self._numbers)}",
            "object": "chat.completion",
            "created": int(time.time()),
            "model": request.body.get("model"),
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": content},
                    "finish_reason": behaviour.finish_reason,
                }
            ],
            "usage": {
                "prompt_tokens": prompt_tokens,
                "completion_tokens": completion_tokens,
                "total_tokens": prompt_tokens + completion_tokens,
            },
        }

    @contextlib.contextmanager
    def in_progress(self, request: Received) -> Iterator[None]:
        """Records the request, and that it is being worked on."""
        with self._lock:
            self.requests.append(request)
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            yield
        finally:
            with self._lock:
                self._at_once -= 1

    @contextlib.contextmanager
    def connected(self, connection: socket.socket) -> Iterator[None]:
        """Keeps the connection, so that the end of the server ends it too."""
        with self._lock:
            self._connections.add(connection)
        try:
            yield
        finally:
            with self._lock:
                self._connections.discard(connection)

    def _too_soon(self) -> float:
        """Seconds until the next request is let in, 0 if now; counts those let in."""
        if self.requests_per_second is None:
            return 0.0
        most = max(int(self.requests_per_second), 1)
        span_seconds = most / self.requests_per_second
        with self._lock:
            now = time.monotonic()
            while self._let_in and self._let_in[0] <= now - span_seconds:
                self._let_in.popleft()
            if len(self._let_in) < most:
                self._let_in.append(now)
                return 0.0
            return max(self._let_in[0] + span_seconds - now, 0.001)


class Together(JudgeServer):
    """Answers no request before `wanted` of them are there."""

    def __init__(self, wanted: int) -> None:
        super().__init__()
        self.meeting = threading.Barrier(wanted)

    def answer_for(self, request: Received) -> Behaviour:
        with contextlib.suppress(threading.BrokenBarrierError):
            self.meeting.wait(10)
        return super().answer_for(request)


class _Server(ThreadingHTTPServer):
    judge: JudgeServer
    daemon_threads = True
    block_on_close = False
    request_queue_size = 512

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that hang up are part of the tests."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def handle(self) -> None:
        with self.server.judge.connected(self.connection):
            super().handle()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass

    def do_GET(self) -> None:
        if self.path != "/v1/models":
            return self._send_json(404, {"error": {"message": f"no {self.path}"}})
        model = {"id": "judge", "object": "model", "created": 0, "owned_by": "tests"}
        return self._send_json(200, {"object": "list", "data": [model]})

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.path != self.server.judge.path:
            return self._send_json(404, {"error": {"message": f"no {self.path}"}})
        body = json.loads(raw)
        request = Received(
            at_seconds=time.monotonic(),
            headers={name.lower(): value for name, value in self.headers.items()},
            body=body,
            trajectories=trajectories_of(body.get("messages", [])),
        )
        judge = self.server.judge
        with judge.in_progress(request):
            behaviour = judge.answer_for(request)
            request.behaviour = behaviour.name
            waiting = behaviour.seconds if behaviour.fault == "hang" else 0.0
            if self._client_left_within(judge.delay_seconds + waiting):
                request.hung_up = not judge.closing.is_set()
                return self._drop()
        # Not counted any more: whoever has its answer may send the next request.
        return self._answer(request, behaviour)

    def _answer(self, request: Received, behaviour: Behaviour) -> None:
        if behaviour.fault == "reset":
            return self._drop()
        if behaviour.fault == "not_json":
            page = b"<!doctype html><html><body><h1>Sign in</h1></body></html>"
            return self._send(200, "text/html; charset=utf-8", page)
        document: Any = {"error": behaviour.error}
        if behaviour.status == 200:
            document = self.server.judge.completion(request, behaviour)
        if behaviour.document:
            document = behaviour.document(document)
        raw = document if isinstance(document, bytes) else json.dumps(document).encode()
        if behaviour.status != 200 or behaviour.document:
            return self._send(behaviour.status, behaviour.content_type, raw, behaviour.headers)
        if behaviour.fault == "cut_short":
            self.close_connection = True
            return self._send(200, "application/json", raw, sent=raw[: len(raw) // 2])
        if behaviour.fault == "drip":
            return self._drip(raw, behaviour.seconds)
        return self._send(200, "application/json", raw)

    def _drip(self, raw: bytes, seconds: float) -> None:
        self._send(200, "application/json", raw, sent=b"")
        pieces = max(int(seconds / 0.1), 1)
        for i in range(pieces):
            if self._client_left_within(seconds / pieces):
                return self._drop()
            self.wfile.write(raw[len(raw) * i // pieces : len(raw) * (i + 1) // pieces])
        return None

    def _client_left_within(self, seconds: float) -> bool:
        """Waits so long; True at once when the client or the server closes."""
        closing, end = self.server.judge.closing, time.monotonic() + seconds
        poll = select.poll()  # select() knows no socket above 1024
        poll.register(self.connection, select.POLLIN)
        while (left := end - time.monotonic()) > 0:
            if closing.wait(min(left, 0.01)):
                return True
            if poll.poll(0) and not self.connection.recv(1, socket.MSG_PEEK):
                return True
        return False

    def _drop(self) -> None:
        """Ends the connection with a reset instead of an answer."""
        with contextlib.suppress(OSError):
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.rfile.close()  # it holds the socket open
        self.connection.close()

    def _send_json(
        self, status: int, body: dict[str, Any], headers: Iterable[tuple[str, str]] = ()
    ) -> None:
        self._send(status, "application/json", json.dumps(body).encode(), headers)

    def _send(
        self,
        status: int,
        content_type: str,
        body: bytes,
        headers: Iterable[tuple[str, str]] = (),
        sent: bytes | None = None,  # of the body, where it is not all of it
    ) -> None:
        self.send_response(status)
        for name, value in [("Content-Type", content_type), ("Content-Length", str(len(body)))]:
            self.send_header(name, value)
        for name, value in headers:
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body if sent is None else sent)


def max_tokens(request: Received) -> int:
    """How long the answer may get, as the request asks, 0 if it does not."""
    body = request.body
    return body.get("max_completion_tokens") or body.get("max_tokens") or 0


def _too_long(limit: int, asked: int) -> Behaviour:
    message = (
        f"This model's maximum context length is {limit} tokens. However, you requested {asked} "
        "tokens. Please reduce the length of the messages or completion."
    )
    return replace(context_too_long, error={**(context_too_long.error or {}), "message": message})


@cache
def encoding() -> Any:
    """cl100k_base from the file that litellm brings along: no network, and no litellm import."""
    litellm = find_spec("litellm")
    assert litellm is not None
    assert litellm.origin is not None
    folder = Path(litellm.origin).parent / "litellm_core_utils" / "tokenizers"
    os.environ.setdefault("TIKTOKEN_CACHE_DIR", str(folder))
    import tiktoken

    return tiktoken.get_encoding("cl100k_base")
