"""A stand-in of vLLM's server: its paths, forms and errors (those of 0.32), and no model.

An answer's text begins with the name of the adapter that was asked, so that a test sees whether
versions were mixed. Log-probabilities of a prompt are those of the loaded checkpoint's proof.

    python -m tests.vllm_server --port 8001 --token-seconds 0.02
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import math
import threading
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

JSON = {"content-type": "application/json"}
DEAD = "EngineCore encountered an issue. See stack trace (above) for the root cause."


@dataclass
class State:
    """What the server has, what a test changes about it, and what it was asked."""

    base: str = "base"
    root: str = "/models/base"  # as `--model` says it
    key: str | None = None
    token_seconds: float = 0.0
    tokens: int = 8  # of an answer without `max_tokens`
    max_lora_rank: int = 8
    max_cpu_loras: int = 8
    load_seconds: float = 0.0

    blind: bool = False  # its machine does not see the checkpoints' folder
    updating: bool = True  # VLLM_ALLOW_RUNTIME_LORA_UPDATING

    # Faults, which a test switches on and off.
    hang: bool = False  # accepts, and does not answer
    held: bool = False  # what runs makes no token
    refuse: int | None = None  # answers everything with this status
    engine_dead: bool = False  # /health is 503, answers are 500
    deadly: str | None = None  # a text that ends the engine
    answers_as_base: bool = False  # whatever adapter is asked
    other_base: bool = False  # other weights than those of the proofs
    die_after: int | None = None  # chunks, after which connections are cut

    loaded: dict[str, str] = field(default_factory=dict)  # name: path
    engine: OrderedDict[str, None] = field(default_factory=OrderedDict)  # last used comes last
    base_values: dict[tuple[int, ...], list[float]] = field(default_factory=dict)
    asked: list[tuple[str, dict[str, Any]]] = field(default_factory=list)  # path, body
    remember: bool = True
    running: int = 0
    most_running: int = 0
    tokens_made: int = 0

    async def make_token(self) -> None:
        """Take the time of a token."""
        while self.held:
            await asyncio.sleep(0.002)
        if self.token_seconds:
            await asyncio.sleep(self.token_seconds)
        self.tokens_made += 1

    def card(self, name: str, root: str, parent: str | None) -> dict[str, Any]:
        return {
            "id": name, "object": "model", "created": 1700000000, "owned_by": "vllm",
            "root": root, "parent": parent, "max_model_len": None if parent else 4096,
        }  # fmt: skip

    def use(self, name: str) -> None:
        """Bring an adapter into the engine, which forgets the one that was not used for longest.

        The real engine ends for good where it must read one again whose folder is gone.
        """
        if name in self.engine:
            self.engine.move_to_end(name)
            return
        if not Path(self.loaded[name], "adapter_config.json").is_file():
            self.engine_dead = True
            return
        self.engine[name] = None
        while len(self.engine) > self.max_cpu_loras:
            self.engine.popitem(last=False)

    def prompt_logprobs(self, path: str | None, token_ids: list[int]) -> list[float]:
        """Return the log-probabilities of all tokens but the first, with the adapter of a path."""
        base = self.base_values.get(tuple(token_ids), [-1.0] * (len(token_ids) - 1))
        values = base
        if path is not None and not self.answers_as_base:
            with contextlib.suppress(OSError):
                proof = json.loads(Path(path, "proof.json").read_text())
                if proof["token_ids"] == token_ids:
                    values = proof["step"]
        return [v - 1.0 if self.other_base else v for v in values]


def error(status: int, message: str, kind: str, param: str | None = None) -> JSONResponse:
    told = {"message": message, "type": kind, "param": param, "code": status}
    return JSONResponse({"error": told}, status)


def application(state: State) -> ASGIApp:
    """Make the ASGI app of a server."""
    routes = [
        Route("/health", lambda request: Response(status_code=503 if state.engine_dead else 200)),
        Route("/metrics", lambda request: PlainTextResponse(_metrics(state))),
        Route("/v1/models", lambda request: JSONResponse(_models(state))),
        Route("/v1/load_lora_adapter", _Load(state), methods=["POST"]),
        Route("/v1/unload_lora_adapter", _Unload(state), methods=["POST"]),
        Route("/v1/chat/completions", _Answers(state, chat=True), methods=["POST"]),
        Route("/v1/completions", _Answers(state, chat=False), methods=["POST"]),
    ]
    app = Starlette(routes=routes)

    async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await app(scope, receive, send)
        while state.hang:
            await asyncio.sleep(0.01)
        wanted = f"Bearer {state.key}".encode()
        if state.refuse is not None:
            answer: ASGIApp = error(state.refuse, "refused", "InternalServerError")
        elif (
            state.key
            and scope["path"].startswith("/v1")
            and dict(scope["headers"]).get(b"authorization") != wanted
        ):
            answer = JSONResponse({"error": "Unauthorized"}, 401)
        else:
            answer = app
        await answer(scope, receive, send)
        return None

    return guarded


def _models(state: State) -> dict[str, Any]:
    adapters = [state.card(name, path, state.base) for name, path in state.loaded.items()]
    return {"object": "list", "data": [state.card(state.base, state.root, None), *adapters]}


def _metrics(state: State) -> str:
    labels = f'{{engine="0",model_name="{state.base}"}}'
    return (
        f"vllm:num_requests_running{labels} {state.running}.0\n"
        f"vllm:iteration_tokens_total_sum{labels} {state.tokens_made}.0\n"
    )


@dataclass
class _Endpoint:
    """A path that is asked with JSON."""

    state: State

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        try:
            body = await request.json()
        except ValueError:
            answer: Response = error(400, "1 validation error: JSON decode error", "Bad Request")
        else:
            if self.state.remember:
                self.state.asked.append((scope["path"], body))
            reply = asyncio.create_task(self.reply(body))
            gone = asyncio.create_task(receive())  # the body was read: the client's end comes next
            await asyncio.wait({reply, gone}, return_when=asyncio.FIRST_COMPLETED)
            gone.cancel()
            if not reply.done():
                reply.cancel()
                return
            answer = await reply
        with contextlib.suppress(_Died):
            await answer(scope, receive, send)

    async def reply(self, body: dict[str, Any]) -> Response:
        raise NotImplementedError


class _Load(_Endpoint):
    async def reply(self, body: dict[str, Any]) -> Response:
        state, name, path = self.state, body["lora_name"], body["lora_path"]
        if not state.updating:
            return JSONResponse({"detail": "Not Found"}, 404)
        if name in state.loaded and not body.get("load_inplace"):
            told = (
                f"The lora adapter '{name}' has already been loaded. If you want to load the "
                "adapter in place, set 'load_inplace' to True."
            )
            return error(400, told, "InvalidUserInput")
        if state.engine_dead:
            return error(500, DEAD, "InternalServerError")
        await asyncio.sleep(state.load_seconds)
        try:
            config = json.loads(
                Path(path, "blind" * state.blind, "adapter_config.json").read_text()
            )
        except OSError:
            told = f"Loading lora {name} failed: No adapter found for {path}"
            return error(404, told, "NotFoundError")
        if (rank := config.get("r", 0)) > state.max_lora_rank:
            told = (
                f"Call to add_lora method failed: Worker failed with error 'LoRA rank {rank} is "
                f"greater than max_lora_rank {state.max_lora_rank}.', please check the stack trace "
                "above for the root cause"
            )
            return error(500, told, "InternalServerError")
        with contextlib.suppress(OSError):
            proof = json.loads(Path(path, "proof.json").read_text())
            state.base_values[tuple(proof["token_ids"])] = proof["base"]
        state.loaded[name] = path
        state.use(name)
        return PlainTextResponse(f"Success: LoRA adapter '{name}' added successfully.")


class _Unload(_Endpoint):
    async def reply(self, body: dict[str, Any]) -> Response:
        name = body["lora_name"]
        if self.state.loaded.pop(name, None) is None:
            return error(404, f"The lora adapter '{name}' cannot be found.", "NotFoundError")
        return PlainTextResponse(f"Success: LoRA adapter '{name}' removed successfully.")


class _Died(Exception):
    """The connection was cut from our side."""


@dataclass
class _Answers(_Endpoint):
    chat: bool

    async def reply(self, body: dict[str, Any]) -> Response:
        state, name = self.state, body.get("model", self.state.base)
        if name != state.base and name not in state.loaded:
            told = f"The model `{name}` does not exist. Valid aliases: {state.base}."
            return error(404, told, "NotFoundError", "model")
        if (body.get("temperature") or 0) < 0:
            told = f"temperature must be non-negative, got {body['temperature']}."
            return error(400, told, "BadRequestError", "temperature")
        if name != state.base:
            state.use(name)
        if state.deadly and state.deadly in json.dumps(body):
            state.engine_dead = True
        if state.engine_dead:
            return error(500, DEAD, "InternalServerError")
        answer = _Answer(state, body, self.chat)
        if body.get("stream"):
            return StreamingResponse(answer.stream(), media_type="text/event-stream")
        async with answer.run():
            for _ in range(answer.count):
                await state.make_token()
        return Response(json.dumps(answer.whole()), headers=JSON)


class _Answer:
    """One answer: its tokens are the adapter's name, and then numbers."""

    def __init__(self, state: State, body: dict[str, Any], chat: bool) -> None:
        self._state, self._body, self._chat = state, body, chat
        self._path = state.loaded.get(str(body.get("model")))  # the name may go meanwhile
        wanted = body.get("max_completion_tokens") or body.get("max_tokens")
        self.count = int(wanted or state.tokens)
        self._choices = int(body.get("n") or 1)
        self._id = f"{'chatcmpl' if chat else 'cmpl'}-{id(self):x}"
        prompt = body.get("prompt", "")
        ids = isinstance(prompt, list) and all(isinstance(token, int) for token in prompt)
        self._prompt_ids: list[int] = prompt if ids else [1, 2, 3]
        wants = body.get("logprobs")
        self._logprobs = wants is not None and wants is not False

    @contextlib.asynccontextmanager
    async def run(self) -> AsyncIterator[None]:
        state = self._state
        state.running += 1
        state.most_running = max(state.most_running, state.running)
        try:
            yield
        finally:
            state.running -= 1

    def whole(self) -> dict[str, Any]:
        choices = []
        for index in range(self._choices):
            choice = self._part(index, range(self.count), "length")
            if self._body.get("prompt_logprobs") is not None:
                values = self._state.prompt_logprobs(self._path, self._prompt_ids)
                pairs = zip(self._prompt_ids[1:], values, strict=True)
                choice["prompt_logprobs"] = [None, *({str(i): _likely(v)} for i, v in pairs)]
            if self._chat:
                choice["message"] = {"role": "assistant", **choice.pop("delta")}
            choices.append(choice)
        kind = "chat.completion" if self._chat else "text_completion"
        return {**self._head(kind), "choices": choices, "usage": self._usage()}

    async def stream(self) -> AsyncIterator[bytes]:
        """Yield a chunk for each token, and the end."""
        kind = "chat.completion.chunk" if self._chat else "text_completion"
        head, sent = self._head(kind), 0
        async with self.run():
            for index in range(self._choices) if self._chat else ():
                delta = {"role": "assistant", "content": ""}
                first = {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}
                told = {"prompt_token_ids": self._prompt_ids} if self._wants_ids else {}
                yield _event({**head, "choices": [first], **told})
            for number in range(self.count):
                await self._state.make_token()
                if self._state.engine_dead:
                    yield _event(json.loads(error(500, DEAD, "InternalServerError").body))
                    break
                for index in range(self._choices):
                    if self._state.die_after is not None and sent >= self._state.die_after:
                        raise _Died
                    end = "length" if number == self.count - 1 else None
                    part = self._part(index, range(number, number + 1), end)
                    yield _event({**head, "choices": [part]})
                    sent += 1
            else:
                if (self._body.get("stream_options") or {}).get("include_usage"):
                    yield _event({**head, "choices": [], "usage": self._usage()})
            yield b"data: [DONE]\n\n"

    @property
    def _wants_ids(self) -> bool:
        return bool(self._body.get("return_token_ids"))

    def _head(self, kind: str) -> dict[str, Any]:
        model = self._body.get("model", self._state.base)
        return {"id": self._id, "object": kind, "created": int(time.time()), "model": model}

    def _part(self, index: int, numbers: range, end: str | None) -> dict[str, Any]:
        name = str(self._body.get("model", self._state.base))
        tokens = [f" {number}" if number else name for number in numbers]
        choice: dict[str, Any] = {"index": index, "logprobs": None, "finish_reason": end}
        text = "".join(tokens)
        choice |= {"delta": {"content": text}} if self._chat else {"text": text}
        if self._logprobs and self._chat:
            content = [{"token": t, **_likely(), "bytes": [*t.encode()]} for t in tokens]
            choice["logprobs"] = {"content": [{**one, "top_logprobs": []} for one in content]}
        elif self._logprobs:
            choice["logprobs"] = {
                "tokens": tokens,
                "token_logprobs": [_likely()["logprob"] for _ in tokens],
                "text_offset": [0 for _ in tokens],
                "top_logprobs": [{t: _likely()["logprob"]} for t in tokens],
            }
        if self._wants_ids:
            choice["token_ids"] = [number + 10 for number in numbers]
            if not self._chat:
                choice["prompt_token_ids"] = None if numbers.start else self._prompt_ids
        if end is not None:
            choice["stop_reason"] = None
        return choice

    def _usage(self) -> dict[str, int]:
        prompt, made = len(self._prompt_ids), self.count * self._choices
        return {
            "prompt_tokens": prompt, "completion_tokens": made, "total_tokens": prompt + made,
        }  # fmt: skip


def _likely(value: float = math.log(0.5)) -> dict[str, float]:
    return {"logprob": value}


def _event(chunk: Any) -> bytes:
    return b"data: " + json.dumps(chunk, separators=(",", ":")).encode() + b"\n\n"


class Running:
    """A server in a thread of this process; `state` may be changed while it runs."""

    def __init__(self, state: State, port: int = 0) -> None:
        self.state = state
        self._port = port
        self._thread: threading.Thread | None = None
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        """Start it, or start it again after `die`: on the same port, with nothing loaded."""
        self.state.loaded.clear()
        self.state.engine.clear()
        self.state.engine_dead = False
        config = uvicorn.Config(
            application(self.state), port=self._port, log_level="critical", lifespan="off"
        )
        self._server = uvicorn.Server(config)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()
        while not self._server.started:
            time.sleep(0.002)
        self._port = self._server.servers[0].sockets[0].getsockname()[1]

    def _serve(self) -> None:
        with contextlib.suppress(asyncio.CancelledError, RuntimeError):
            self._loop.run_until_complete(self._server.serve())
        self._loop.close()

    def die(self) -> None:
        """End at once, as by a kill: connections are cut."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        self._loop.call_soon_threadsafe(self._cut)
        thread.join()
        self.state.running = 0

    def _cut(self) -> None:
        for connection in list(self._server.server_state.connections):
            connection.transport.abort()
        for task in list(self._server.server_state.tasks):
            task.cancel()
        self._server.force_exit = self._server.should_exit = True


@contextlib.contextmanager
def serving(**options: Any) -> Iterator[Running]:
    """Run a server on a free port; `options` are fields of `State`."""
    running = Running(State(**options))
    try:
        yield running
    finally:
        running.state.hang = False
        running.die()


def main() -> None:
    """Run it as a process of its own, as a benchmark does; vLLM's other flags are passed over."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--uds")
    parser.add_argument("--token-seconds", type=float, default=0.0)
    parser.add_argument("--model", default="/models/base")
    given, _ = parser.parse_known_args()
    state = State(root=given.model, token_seconds=given.token_seconds, remember=False)
    uvicorn.run(
        application(state), port=given.port, uds=given.uds, log_level="critical", lifespan="off"
    )


if __name__ == "__main__":
    main()
