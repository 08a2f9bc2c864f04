"""A small OpenAI-compatible server on transformers, for the demo and for machines without vLLM.

`python -m workers.serve --host 127.0.0.1 --port 8000`: GET /healthz, GET /v1/models and
POST /v1/chat/completions (not streamed). One request is answered at a time. With SERVE_API_KEY,
every path but /healthz asks for that key; without it the server listens on loopback only.
"""

from __future__ import annotations

import argparse
import signal
import socket
import sys
import time
import uuid
from collections.abc import Callable
from typing import Any, Protocol

import msgspec
import uvicorn
from pydantic import SecretStr
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from babylon_tasks.errors import BabylonError, CheckpointRemoved, UserError
from babylon_tasks.settings import load_settings
from babylon_tasks.work.signals import stop
from workers.serve.api_key import KeyRequired, require_key
from workers.serve.engine import BadRequest, ChatRequest, Completion, Engine, ServedModel
from workers.serve.versions import ServedModels

_requests = msgspec.json.Decoder(ChatRequest)


class Resolve(Protocol):
    """Finds the model of a name: `{model_name}` (the published step) or `{model_name}@{step}`.

    It returns None where there is no such model. It is called for each request, so the next answer
    shows a promotion or a rollback.
    """

    def __call__(self, name: str) -> ServedModel | None:
        """Return the model, or None."""
        ...


def make_app(
    resolve: Resolve,
    list_models: Callable[[], list[str]],
    engine: Engine | None = None,
    api_key: SecretStr | None = None,
) -> Starlette:
    """Make the server; `list_models` gives the names that `resolve` knows."""
    engine = engine or Engine()

    async def healthz(request: Request) -> JSONResponse:
        return JSONResponse({"status": "ok"})

    async def models(request: Request) -> JSONResponse:
        names = await run_in_threadpool(list_models)
        data = [{"id": n, "object": "model", "created": 0, "owned_by": "babylon"} for n in names]
        return JSONResponse({"object": "list", "data": data})

    async def chat_completions(request: Request) -> JSONResponse:
        try:
            chat = _requests.decode(await request.body())
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            return _error(400, str(error), "invalid_request_error")
        if chat.stream:
            return _error(400, "this server does not stream: set stream to false")
        served = await run_in_threadpool(resolve, chat.model)
        if served is None:
            return _error(
                404,
                f"the model {chat.model!r} does not exist; see GET /v1/models",
                code="model_not_found",
            )
        completion = await run_in_threadpool(engine.complete, served, chat)
        return JSONResponse(_body(chat.model, served, completion))

    return Starlette(
        routes=[
            Route("/healthz", healthz),
            Route("/v1/models", models),
            Route("/v1/chat/completions", chat_completions, methods=["POST"]),
        ],
        middleware=[Middleware(KeyRequired, key=api_key)] if api_key else [],
        exception_handlers={
            HTTPException: lambda _, error: _error(error.status_code, error.detail),
            BadRequest: lambda _, error: _error(400, str(error)),
            CheckpointRemoved: lambda _, error: _error(404, str(error), code="model_not_found"),
            BabylonError: lambda _, error: _error(503, str(error), "server_error"),
            Exception: lambda _, error: _error(500, "internal error; see the server's log",
                                               "server_error"),
        },
    )  # fmt: skip


def _error(
    status: int, message: str, kind: str = "invalid_request_error", code: str | None = None
) -> JSONResponse:
    error = {"message": message, "type": kind, "param": None, "code": code}
    return JSONResponse({"error": error}, status_code=status)


def _body(name: str, served: ServedModel, completion: Completion) -> dict[str, Any]:
    return {
        "id": f"chatcmpl-{uuid.uuid4().hex}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": name,
        "system_fingerprint": f"step-{served.step}",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": completion.text},
                "finish_reason": completion.finish_reason,
                "logprobs": completion.logprobs,
            }
        ],
        "usage": {
            "prompt_tokens": completion.prompt_tokens,
            "completion_tokens": completion.completion_tokens,
            "total_tokens": completion.prompt_tokens + completion.completion_tokens,
        },
    }


def listen(app: Starlette, host: str, port: int) -> None:
    """Print the address, then serve until SIGINT or SIGTERM; port 0 takes a free port.

    Raises:
        UserError: The port is taken, or is none; or this machine has no such address.
    """
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(128)
    except (OSError, OverflowError, UnicodeError) as error:  # taken; no port; no name of a host
        raise UserError(f"cannot listen on {host}:{port} ({error}): choose another port") from error
    print(f"listening on http://{host}:{listener.getsockname()[1]}", flush=True)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off"))
    server.run(sockets=[listener])


def main() -> None:
    """Serve the models that the database names.

    Raises:
        SystemExit: The server cannot start; stderr says what to do.
    """
    signal.signal(
        signal.SIGTERM, stop
    )  # uvicorn answers what it has begun, then raises the signal again
    parser = argparse.ArgumentParser(prog="python -m workers.serve", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000, help="0 takes a free one")
    arguments = parser.parse_args()
    try:
        settings = load_settings()
        require_key(arguments.host, settings.serve_api_key)
        served = ServedModels(settings)
        app = make_app(served.resolve, served.names, api_key=settings.serve_api_key)
        listen(app, arguments.host, arguments.port)
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        raise SystemExit(2) from None
