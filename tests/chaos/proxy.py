"""A network that can fail: a TCP proxy between a role and a server."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Coroutine
from typing import Any

from tests.chaos.ports import quiet_port

_CHUNK_BYTES = 65_536


class Proxy:
    """A proxy that passes bytes between its own port of loopback and a server.

    A client meets an accepted and then closed connection, not a refused one, where only the server
    behind is down.
    """

    def __init__(self, target_host: str, target_port: int) -> None:
        self._target = target_host, target_port
        self.port = quiet_port()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._thread.start()
        self._passing = asyncio.Event()
        self._listener: asyncio.Server | None = None
        self._connections: set[asyncio.Task[Any]] = set()
        self.restore()

    def cut(self) -> None:
        """Become a black hole, as for a node cut off: connections stay open, nothing passes.

        Bytes and ends of connections that arrive meanwhile pass after `restore`, as TCP would send
        them again.
        """
        self._run(self._cut())

    def drop(self) -> None:
        """Close every connection and refuse new ones, as a machine whose server has ended."""
        self._run(self._drop())

    def restore(self) -> None:
        """Pass bytes and take connections again."""
        self._run(self._restore())

    def close(self) -> None:
        """Drop everything and end the thread; a second call does nothing."""
        if self._thread.is_alive():
            self.drop()
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    def _run(self, change: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(change, self._loop).result()

    async def _cut(self) -> None:
        self._passing.clear()

    async def _restore(self) -> None:
        self._passing.set()
        if self._listener is None:
            self._listener = await asyncio.start_server(self._serve, "127.0.0.1", self.port)

    async def _drop(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        ended = list(self._connections)
        for connection in ended:
            connection.cancel()
        await asyncio.gather(*ended, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            with contextlib.suppress(asyncio.CancelledError, OSError):
                await self._passing.wait()
                there_reader, there_writer = await asyncio.open_connection(*self._target)
                try:
                    await self._relay_both(reader, writer, there_reader, there_writer)
                finally:
                    there_writer.close()
        finally:
            writer.close()
            self._connections.discard(task)

    async def _relay_both(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        there_reader: asyncio.StreamReader,
        there_writer: asyncio.StreamWriter,
    ) -> None:
        """Relay both ways until one side has ended."""
        ways = [
            asyncio.create_task(self._relay(reader, there_writer)),
            asyncio.create_task(self._relay(there_reader, writer)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(_CHUNK_BYTES):
                await self._passing.wait()
                writer.write(data)
                await writer.drain()
        await self._passing.wait()
