"""Listens: uvicorn, with bounds on connections, and an end that lets answers finish."""

from __future__ import annotations

import asyncio
import resource
import socket
import time
from types import FrameType
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from babylon_tasks.errors import UserError
from workers.serve.http.app import Endpoint
from workers.serve.http.exchange import Receive, Scope, Send

HEADER_SECONDS = 10.0  # for a connection to send a whole request's headers
READ_SECONDS = 30.0  # for a client to read the last of a response
# Longer than clients keep theirs, or one would be closed as a client sends its next request.
KEEP_ALIVE_SECONDS = 75
_CLOSE_SECONDS = 1  # for what is left after `drain_seconds` to be told, and to be read


class BoundedConnection(H11Protocol):
    """A connection that has to send requests; too many are refused."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.app: Any = self._with_abort
        self._deadline: asyncio.TimerHandle | None = None

    async def _with_abort(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["babylon.abort"] = self.transport.abort
        await self.config.loaded_app(scope, receive, send)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin, unless there are too many."""
        super().connection_made(transport)
        if len(self.connections) > most_connections():
            transport.abort()
        else:
            self._wait_for_headers()

    def data_received(self, data: bytes) -> None:
        """Take data; headers that trickle in have a time limit."""
        super().data_received(data)
        if not self._is_idle():
            self._stop_waiting()
        elif self._deadline is None:
            self._wait_for_headers()

    def on_response_complete(self) -> None:
        """Wait for the next request; a whole response that nobody reads is not kept for ever."""
        super().on_response_complete()
        if self.transport.get_write_buffer_size():
            self.loop.call_later(READ_SECONDS, self._cut_off)

    def _cut_off(self) -> None:
        if self.transport.get_write_buffer_size():
            self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """End."""
        self._stop_waiting()
        super().connection_lost(exc)

    def _is_idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _wait_for_headers(self) -> None:
        self._deadline = self.loop.call_later(HEADER_SECONDS, self._give_up)

    def _stop_waiting(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _give_up(self) -> None:
        self._deadline = None
        if self._is_idle():
            self.transport.abort()


def most_connections() -> int:
    """Return how many clients may be connected: half of the files that this process may open.

    A request needs another one, to the backend.
    """
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(soft // 2 - 50, 16) if soft != resource.RLIM_INFINITY else 100_000


class DrainingServer(uvicorn.Server):
    """Ends in order: at the first signal no new question is answered, those under way are."""

    def __init__(self, config: uvicorn.Config, endpoint: Endpoint, drain_seconds: float) -> None:
        super().__init__(config)
        self._endpoint, self._drain_seconds = endpoint, drain_seconds
        self._ends_at: float | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to end; the second signal ends at once."""
        super().handle_exit(sig, frame)
        if self._ends_at is None:
            self._endpoint.draining = True
            self._ends_at = time.monotonic() + self._drain_seconds
            self.should_exit = False

    async def on_tick(self, counter: int) -> bool:
        """Tell, ten times a second, whether it is time to end."""
        if self._ends_at is not None:
            late = time.monotonic() - self._ends_at
            if late > 0:
                self._endpoint.end_answers()
            if self._endpoint.in_flight == 0 or late > _CLOSE_SECONDS:
                return True
        return await super().on_tick(counter)


def bind(host: str, port: int) -> socket.socket:
    """Listen on an address.

    Raises:
        UserError: The port is taken, or is none; or this machine has no such address.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio turns Nagle's algorithm off only where the protocol is said: chunks came 40 ms late.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(1024)
    except (OSError, OverflowError, UnicodeError) as error:  # taken; no port; no name of a host
        raise UserError(f"cannot listen on {host}:{port} ({error}): choose another port") from error
    return listener


def listen(endpoint: Endpoint, host: str, port: int, drain_seconds: float) -> None:
    """Print the address, then serve until SIGINT or SIGTERM; port 0 takes a free port.

    Then answers under way have `drain_seconds` to finish. At the end the signal comes once more,
    for the handler that was set before.

    Raises:
        UserError: The port is taken, or is none; or this machine has no such address.
    """
    listener = bind(host, port)
    print(f"listening on http://{host}:{listener.getsockname()[1]}", flush=True)
    config = uvicorn.Config(
        endpoint,
        http=BoundedConnection,
        ws="none",
        lifespan="on",
        proxy_headers=False,  # who asks is told by the key
        log_config=None,  # its loggers are as ours
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=_CLOSE_SECONDS,
    )
    DrainingServer(config, endpoint, drain_seconds).run(sockets=[listener])
