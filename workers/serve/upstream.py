"""A server that speaks OpenAI's API, behind the endpoint: how it is asked, and what went wrong."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from typing import Any

import aiohttp
import msgspec
from pydantic import SecretStr

from babylon_tasks.text import first_line, one_line
from workers.serve.backend import ApiError, BackendAway
from workers.serve.events import Events

_CONNECT_SECONDS = 2.0
# vLLM closes a connection after 5 idle seconds: a request that is sent just then would be lost.
_KEEP_SECONDS = 3.0
_MOST_ERROR_BYTES = 65_536

# What the client did; everything else is about the server, or about our key.
_OF_THE_CLIENT = (400, 404, 409, 413, 415, 422, 429)


log = logging.getLogger(__name__)


class Failed(BackendAway):
    """The server answers, but with an error that is not the client's; `said` is its own text."""

    def __init__(self, message: str, said_status: int, said: str) -> None:
        super().__init__(message)
        self.said_status, self.said = said_status, said


class Lost(BackendAway):
    """The server took the request, and ended or was silent before it began to answer."""


class Upstream:
    """One server, with its pool of connections.

    Args:
        url: Without `/v1`; with `socket` its host counts for nothing.
        key: Sent as `Authorization: Bearer`.
        name: Of the server in messages.
        answer_seconds: After which an answer is given up, and a stream that has no next chunk.
        socket: Path of a Unix socket to connect to.
        headers: Sent with every request.
    """

    def __init__(
        self,
        url: str,
        key: SecretStr | None,
        name: str,
        answer_seconds: float,
        *,
        socket: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.name, self._url, self._socket = name, url.rstrip("/"), socket
        self._headers = {**(headers or {}), "content-type": "application/json"}
        if key is not None:
            self._headers["authorization"] = f"Bearer {key.get_secret_value().strip()}"
        self._answer_seconds = answer_seconds
        self._session: aiohttp.ClientSession | None = None

    async def get(self, path: str, seconds: float) -> bytes:
        """Return what a path answers.

        Raises:
            ApiError: As `stream`.
        """
        async with self._asked("GET", path, None, seconds) as response:
            return await response.read()

    async def post(self, path: str, body: Mapping[str, Any], seconds: float | None = None) -> Any:
        """Return a whole answer, decoded; a text where it is no JSON.

        Raises:
            ApiError: As `stream`.
        """
        async with self._asked("POST", path, body, seconds or self._answer_seconds) as response:
            content = await response.read()
        with contextlib.suppress(msgspec.DecodeError, UnicodeError, RecursionError):
            return msgspec.json.decode(content)
        return content.decode(errors="replace")

    async def stream(
        self, path: str, body: Mapping[str, Any]
    ) -> AsyncGenerator[dict[str, Any], None]:
        """Yield an answer's chunks, decoded; closing the generator closes the connection.

        Raises:
            BackendAway: The server does not answer, or fails before its first chunk.
            ApiError: It refuses the request; or, with status 502, it ended in the middle.
        """
        begun = False
        try:
            async with self._asked("POST", path, body, None) as response:
                events = Events()
                async for piece in response.content.iter_any():
                    for data in events.feed(piece):
                        chunk = msgspec.json.decode(data, type=dict[str, Any])
                        if "error" in chunk:
                            raise self._failed(_code_of(chunk["error"]), data)
                        begun = True
                        yield chunk
                    if events.done:
                        return
        except BackendAway as error:
            if begun:
                raise ApiError(502, str(error), code="backend_failed") from error
            raise
        except ValueError as error:  # of `Events`, or msgspec's
            raise self._cut(begun, "streams in another form than OpenAI's") from error
        raise self._cut(begun, "ended in the middle of an answer")

    def _cut(self, begun: bool, what: str) -> ApiError:
        """Make the error for an answer without its end: another server may give a whole one."""
        told = f"{self.name} {what}"
        return ApiError(502, told, code="backend_failed") if begun else Lost(told)

    async def close(self) -> None:
        """Close all connections."""
        if self._session is not None:
            await self._session.close()

    @contextlib.asynccontextmanager
    async def _asked(
        self, method: str, path: str, body: Mapping[str, Any] | None, seconds: float | None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Ask, and yield an answer that is no error; a body that is not read to its end is cut."""
        data = None if body is None else _encoded(body)
        limit = aiohttp.ClientTimeout(
            total=seconds, sock_connect=_CONNECT_SECONDS, sock_read=self._answer_seconds
        )
        try:
            async with self._open().request(
                method, self._url + path, data=data, timeout=limit, allow_redirects=False
            ) as response:
                if response.status != 200:
                    content = await response.content.read(_MOST_ERROR_BYTES)
                    level = logging.DEBUG if method == "GET" else logging.WARNING  # each second
                    raise self._failed(response.status, content, response.headers, level)
                yield response
        except TimeoutError as error:
            fault = BackendAway if isinstance(error, aiohttp.ConnectionTimeoutError) else Lost
            raise fault(f"{self.name} does not answer in time") from None
        except (aiohttp.ClientError, OSError) as error:
            fault = BackendAway if isinstance(error, aiohttp.ClientConnectorError) else Lost
            # The error's text may quote the URL, and with it a password.
            raise fault(f"{self.name} cannot be asked ({type(error).__name__})") from None

    def _open(self) -> aiohttp.ClientSession:
        """Return the session; it is made where the event loop runs."""
        if self._session is None:
            keep: dict[str, Any] = {"limit": 0, "keepalive_timeout": _KEEP_SECONDS}
            connector = (
                aiohttp.UnixConnector(self._socket, **keep)
                if self._socket
                else aiohttp.TCPConnector(**keep)
            )
            self._session = aiohttp.ClientSession(
                connector=connector,
                headers=self._headers,
                read_bufsize=1 << 20,
                trust_env=self._url.startswith("https:"),  # a proxy is for what is outside
            )
        return self._session

    def _failed(
        self,
        status: int,
        content: bytes,
        headers: Mapping[str, str] | None = None,
        level: int = logging.WARNING,
    ) -> ApiError:
        """Make the error for an answer that is one."""
        error = _error_of(content)
        message = one_line(str(error.get("message") or "it says nothing more"), 2000)
        if status not in _OF_THE_CLIENT:
            # Clients are not told what it says: it may speak of other requests.
            log.log(level, "%s says %d: %s", self.name, status, one_line(message, 300))
            told = f"{self.name} fails ({status})"
            if status in (401, 403):
                told = f"{self.name} refuses our key ({status})"
            return Failed(told, status, message)
        retry = {k.lower(): v for k, v in (headers or {}).items() if k.lower() == "retry-after"}
        param, code = error.get("param"), error.get("code")
        return ApiError(
            status,
            message,
            param=param if isinstance(param, str) else None,
            code=code if isinstance(code, str) else None,
            headers=retry,
        )


def _encoded(body: Mapping[str, Any]) -> bytes:
    """Return a body as JSON.

    Raises:
        ApiError: It holds half a character, or lists in lists without end.
    """
    try:
        return msgspec.json.encode(body)
    except (UnicodeError, RecursionError) as error:
        raise ApiError(400, f"the request cannot be passed on: {first_line(error)}") from None


def _code_of(error: Any) -> int:
    """Return HTTP's status of an error that a stream ends with: there vLLM writes it as `code`."""
    code = error.get("code") if isinstance(error, dict) else None
    return code if isinstance(code, int) else 500


def _error_of(content: bytes) -> dict[str, Any]:
    """Return the error in an answer's body, as OpenAI's API, vLLM and FastAPI write it."""
    try:
        answer = msgspec.json.decode(content, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return {"message": content[:500].decode(errors="replace")}
    error = answer.get("error", answer.get("detail", answer))
    return error if isinstance(error, dict) else {"message": str(error)}
