"""One request and its response, over ASGI."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from contextlib import suppress
from typing import Any

import msgspec

from workers.serve.backend import ApiError
from workers.serve.http.errors import error_object
from workers.serve.http.limits import Limits

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

_encode = msgspec.json.Encoder().encode
_JSON = b"application/json"
_SKIP_SECONDS = 1.0
_DONE = b"data: [DONE]\n\n"


class ClientGone(Exception):
    """The client closed the connection, or does not read what it is sent."""


def _plain(value: str) -> bytes:
    return "".join(c for c in value if " " <= c <= "~").strip().encode()


class Exchange:
    """Reads a request's body and writes the response, within the limits."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, limits: Limits) -> None:
        self._scope, self._receive, self._send, self._limits = scope, receive, send, limits
        self._headers: dict[bytes, bytes] = dict(scope["headers"])
        self._body_read = False
        self._is_stream = False
        self._writing_since: float | None = None
        self.id = uuid.uuid4().hex
        self.status: int | None = None  # of the response, once it has begun

    @property
    def method(self) -> str:
        """The request's method."""
        return str(self._scope["method"])

    @property
    def path(self) -> str:
        """The request's path, decoded."""
        return str(self._scope["path"])

    def header(self, name: bytes) -> bytes | None:
        """Return a header of the request by its name in small letters; the last, if it is twice."""
        return self._headers.get(name)

    async def json_body(self) -> bytes:
        """Return the whole body, which says that it is JSON.

        Raises:
            ApiError: It is another type (415), is compressed (415), too large (413) or slow (408).
            ClientGone: The client closed the connection.
        """
        kind = (self.header(b"content-type") or b"").partition(b";")[0].strip().lower()
        if kind != _JSON:
            raise ApiError(415, "send JSON, with `Content-Type: application/json`")
        if (self.header(b"content-encoding") or b"identity").lower() != b"identity":
            raise ApiError(415, "send the body without `Content-Encoding`")
        declared = self.header(b"content-length")
        if declared is not None and declared.isdigit() and int(declared) > self._limits.body_bytes:
            raise self._too_large()
        try:
            async with asyncio.timeout(self._limits.body_seconds):
                return await self._read()
        except TimeoutError:
            seconds = f"{self._limits.body_seconds:g}"
            raise ApiError(408, f"the body did not come within {seconds} s") from None

    async def _read(self) -> bytes:
        chunks, size, more = [], 0, True
        while more:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientGone
            chunk = message.get("body", b"")
            more = message.get("more_body", False)
            self._body_read = not more
            size += len(chunk)
            if size > self._limits.body_bytes:
                raise self._too_large()
            chunks.append(chunk)
        return b"".join(chunks)

    async def _skip_body(self) -> None:
        """Read what comes of the body: a client that is still sending would not see the answer."""
        if self._body_read or self._without_body() or self.header(b"expect"):
            return  # a client that asks first need not send it
        with suppress(TimeoutError):
            async with asyncio.timeout(_SKIP_SECONDS):
                while True:
                    message = await self._receive()
                    if message["type"] == "http.disconnect":
                        raise ClientGone
                    if not message.get("more_body", False):
                        self._body_read = True
                        return

    def _too_large(self) -> ApiError:
        return ApiError(413, f"the body has more than {self._limits.body_bytes} bytes")

    async def until_gone(self) -> None:
        """Return when the client has closed the connection; to be awaited once the body is read."""
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def error(self, error: ApiError) -> None:
        """Answer with an error, or end a stream that has begun with it; cut a document off."""
        body = error_object(error)
        if self.status is None:
            if error.status != 408:  # it does not come
                await self._skip_body()
            await self.json(body, error.status, error.headers)
        elif self._is_stream:
            await self._write_last(b"data: " + _encode(body) + b"\n\n")
        else:
            self.abort()

    async def json(
        self, body: Any, status: int = 200, headers: Mapping[str, str] | None = None
    ) -> None:
        """Answer with a JSON document."""
        await self.whole(_encode(body), _JSON, status, headers)

    async def whole(
        self, body: bytes, kind: bytes, status: int = 200, headers: Mapping[str, str] | None = None
    ) -> None:
        """Answer with these bytes."""
        length = (b"content-length", str(len(body)).encode())
        await self._start(status, kind, headers or {}, [length])
        await self._write_last(body)

    async def begin_stream(self, headers: Mapping[str, str]) -> None:
        """Begin to answer with a stream of events."""
        self._is_stream = True
        # A proxy such as nginx would keep events back until it has a page of them.
        more = [(b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no")]
        await self._start(200, b"text/event-stream; charset=utf-8", headers, more)

    async def event(self, chunk: Any) -> None:
        """Send an event of the stream; a reader who does not take it is for `is_stuck` to see."""
        # No timer for each: with 50 streams that is half of what a chunk costs here.
        self._writing_since = time.monotonic()
        await self._write(b"data: " + _encode(chunk) + b"\n\n")
        self._writing_since = None

    async def end_stream(self) -> None:
        """Say that the stream is whole."""
        await self._write_last(_DONE)

    async def _start(
        self,
        status: int,
        kind: bytes,
        headers: Mapping[str, str],
        more: list[tuple[bytes, bytes]],
    ) -> None:
        self.status = status
        listed = [(b"content-type", kind), (b"x-request-id", self.id.encode()), *more]
        # A backend's server may have said anything; h11 refuses what is no header.
        listed += [(name.encode(), _plain(value)) for name, value in headers.items()]
        if not self._body_read and not self._without_body():
            listed.append((b"connection", b"close"))  # what is left of the body is not waited for
        await self._send({"type": "http.response.start", "status": status, "headers": listed})

    def _without_body(self) -> bool:
        return (self.header(b"content-length") or b"0") == b"0" and self.header(
            b"transfer-encoding"
        ) is None

    def is_stuck(self) -> bool:
        """Tell whether the client has not read for longer than it may."""
        since = self._writing_since
        return since is not None and time.monotonic() - since > self._limits.send_seconds

    async def _write(self, body: bytes, more: bool = True) -> None:
        await self._send({"type": "http.response.body", "body": body, "more_body": more})

    async def _write_last(self, body: bytes) -> None:
        try:
            async with asyncio.timeout(self._limits.send_seconds):
                await self._write(body, more=False)
        except TimeoutError:
            self.abort()
            raise ClientGone from None

    def abort(self) -> None:
        """Close the connection without another word."""
        abort = self._scope.get("babylon.abort")
        if abort is not None:
            abort()
