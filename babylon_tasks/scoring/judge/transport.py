"""The way to the judge: what its address says beside the host, and its answers in plain form.

litellm has no place for a user, a password or a query in an address, and no hook between a
server's answer and its own reading of it. So the transport that it sends with is wrapped.
"""

from __future__ import annotations

from base64 import b64encode
from contextvars import ContextVar
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit, urlunsplit

import httpx

from babylon_tasks.scoring.judge.plain import as_openai, moved
from babylon_tasks.settings import Settings

_BODY_HEADERS = ("content-length", "content-encoding", "transfer-encoding", "content-type")

# Headers and query of the question that this task asks.
_extra: ContextVar[tuple[dict[str, str], dict[str, str]] | None] = ContextVar("extra", default=None)


def bare(url: str) -> str:
    """Return an address without user, password and query."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def asking(settings: Settings) -> None:
    """Let the next question of this task carry what JUDGE_BASE_URL says beside the host."""
    parts = urlsplit(settings.judge_base_url or "")
    query = dict(parse_qsl(parts.query, keep_blank_values=True))
    headers = {}
    user, at, _ = parts.netloc.rpartition("@")
    if at:
        name, _, password = user.partition(":")
        pair = f"{unquote(name)}:{unquote(password)}"
        headers["authorization"] = f"Basic {b64encode(pair.encode()).decode()}"
    if settings.judge_api_key and (at or "api-version" in query):
        headers["api-key"] = settings.judge_api_key.get_secret_value()  # as Azure takes it
    _extra.set((headers, query))


def translate(transport: type[Any]) -> None:
    """Let this class of httpx transports send chat completions so, and read any dialect."""
    send = transport.handle_async_request

    async def handle_async_request(self: Any, request: httpx.Request) -> httpx.Response:
        if not request.url.path.endswith("/chat/completions"):
            response: httpx.Response = await send(self, request)
            return response
        headers, query = _extra.get() or ({}, {})
        request.headers.update(headers)
        if query:
            request.url = request.url.copy_merge_params(query)
        return await _plain(await send(self, request), request)

    transport.handle_async_request = handle_async_request


async def _plain(response: httpx.Response, request: httpx.Request) -> httpx.Response:
    if response.status_code in (301, 302, 303):
        await response.aclose()
        return httpx.Response(404, content=moved(response.headers.get("location", "")))
    if response.has_redirect_location:
        return response
    raw = await response.aread()
    kind = response.headers.get("content-type", "")
    status, body = as_openai(response.status_code, kind, raw)
    headers = {n: value for n, value in response.headers.items() if n not in _BODY_HEADERS}
    headers["content-type"] = "application/json"
    return httpx.Response(status, headers=headers, content=body, request=request)
