"""The endpoint as an ASGI application: paths, keys, limits, errors, health."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, suppress
from dataclasses import replace
from typing import Any

from babylon_tasks.errors import BabylonError
from babylon_tasks.text import one_line, place_of
from workers.serve.backend import ApiError
from workers.serve.http.budgets import Budget
from workers.serve.http.completions import Completions, Router
from workers.serve.http.exchange import ClientGone, Exchange, Receive, Scope, Send
from workers.serve.http.keys import Keys
from workers.serve.http.limits import Limits
from workers.serve.http.metrics import CONTENT_TYPE, Metrics

log = logging.getLogger(__name__)

_MODELS = "/v1/models"
_COMPLETIONS = {"/v1/chat/completions": "chat", "/v1/completions": "text"}
_OPEN = ("/healthz", "/health/live", "/health/ready")  # a probe has no key
_GETS = (*_OPEN, "/metrics", _MODELS)


class Endpoint:
    """Answers every request; what is no path of ours is 404, so no path of a backend is reached.

    `services` live from the start of the server to its end, in this order.
    """

    def __init__(
        self,
        router: Router,
        completions: Completions,
        keys: Keys,
        metrics: Metrics,
        limits: Limits,
        services: tuple[AbstractAsyncContextManager[Any], ...] = (),
    ) -> None:
        self._router, self._completions, self._keys = router, completions, keys
        self._metrics, self._limits, self._services = metrics, limits, services
        self.in_flight = 0
        self.draining = False  # no new question is answered: this process is about to end
        self._answering: set[asyncio.Task[Any] | None] = set()
        self._ended = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or live through the server's life."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
            return
        if scope["type"] != "http":
            return
        exchange = Exchange(scope, receive, send, self._limits)
        try:
            await self._answer(exchange)
        except ApiError as error:
            await self._refuse(exchange, error)
        except BabylonError as error:
            await self._refuse(exchange, ApiError(503, one_line(str(error))))
        except ClientGone:
            self._metrics.failed("cancelled")
            exchange.abort()
        except Exception as error:  # noqa: BLE001 - the client gets an answer, the log the place
            place = one_line(place_of(error))  # the error's own words may be the client's
            log.error("request %s failed: %s", exchange.id, place)  # noqa: TRY400
            await self._refuse(exchange, ApiError(500, "internal error; see the server's log"))

    async def _refuse(self, exchange: Exchange, error: ApiError) -> None:
        self._metrics.failed(error.code or str(error.status))
        with suppress(ClientGone):
            await exchange.error(error)

    async def _answer(self, exchange: Exchange) -> None:
        path, method = exchange.path, exchange.method
        kind = _COMPLETIONS.get(path)
        is_get = path in _GETS or path.startswith(f"{_MODELS}/")
        if kind is None and not is_get:
            raise ApiError(404, "there is no such path here; see docs/serving.md")
        wanted = "GET" if is_get else "POST"
        if method != wanted:
            raise ApiError(405, f"this path takes {wanted} alone", headers={"allow": wanted})
        if path in _OPEN:
            await self._say_health(exchange)
            return
        authorization, host = exchange.header(b"authorization"), exchange.header(b"host")
        _, budget = self._keys.identify(authorization, host)
        if path == "/metrics":
            await exchange.whole(self._metrics.text(), CONTENT_TYPE)
        elif kind is None:
            await self._list_models(exchange)
        else:
            await self._complete(exchange, kind, budget)

    async def _complete(self, exchange: Exchange, kind: Any, budget: Budget | None) -> None:
        if self.draining or self.in_flight >= self._limits.requests:
            why = "is about to end" if self.draining else f"has {self.in_flight} requests under way"
            headers = {"retry-after": "1"}
            if self.draining:
                headers["connection"] = "close"  # the next try may reach another server
            raise ApiError(503, f"this server {why}", code="busy", headers=headers)
        task = asyncio.current_task()
        self.in_flight += 1
        self._answering.add(task)
        self._metrics.began()
        try:
            await self._completions.answer(exchange, kind, budget)
        except asyncio.CancelledError:
            if not self._ended or task is None:
                raise
            task.uncancel()
            raise ApiError(
                503, "this server ends", code="busy", headers={"retry-after": "1"}
            ) from None
        finally:
            self.in_flight -= 1
            self._answering.discard(task)
            self._metrics.ended()

    def end_answers(self) -> None:
        """Break off what is under way; its clients are told."""
        if not self._ended:
            self._ended = True
            for task in self._answering:
                if task is not None:
                    task.cancel()

    async def _list_models(self, exchange: Exchange) -> None:
        name = exchange.path.removeprefix(_MODELS).removeprefix("/")
        names = self._router.models()
        if not name:
            await exchange.json({"object": "list", "data": [_model(each) for each in names]})
        elif name in names:
            await exchange.json(_model(name))
        else:
            raise ApiError(
                404,
                f"the model {one_line(name, 100)!r} does not exist; see GET /v1/models",
                param="model",
                code="model_not_found",
            )

    async def _say_health(self, exchange: Exchange) -> None:
        if exchange.path == "/health/ready":
            health = self._router.health()
            ready = health.ready and not self.draining
            body = {"status": "ok" if ready else "draining" if self.draining else "not ready"}
            if not self._is_known(exchange):
                health = replace(health, problems=[replace(p, why="") for p in health.problems])
            await exchange.json({**body, "health": health}, 200 if ready else 503)
            return
        silent = self._router.silent()
        status = "no tokens come" if silent else "ok"
        await exchange.json({"status": status, "silent": silent}, 503 if silent else 200)

    def _is_known(self, exchange: Exchange) -> bool:
        """Tell whether this caller may ask: reasons have paths, hosts and a backend's words."""
        try:
            self._keys.identify(exchange.header(b"authorization"), exchange.header(b"host"))
        except ApiError:
            return False
        return True

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        async with AsyncExitStack() as services:
            try:
                for service in self._services:
                    await services.enter_async_context(service)
            except BabylonError as error:
                await send({"type": "lifespan.startup.failed", "message": one_line(str(error))})
                return
            await send({"type": "lifespan.startup.complete"})
            await receive()
        await send({"type": "lifespan.shutdown.complete"})


def _model(name: str) -> Mapping[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "babylon"}
