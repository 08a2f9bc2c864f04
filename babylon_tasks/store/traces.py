"""Reads traces with asyncpg, a few at a time, so that memory stays bounded."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg

from babylon_tasks.errors import DamagedRow, ServerUnavailable, SlowRead
from babylon_tasks.records.recorded_steps import RawTrace
from babylon_tasks.settings import Settings
from babylon_tasks.store.database import unreachable
from babylon_tasks.store.queries import load

_SQL = load("traces")
_PREFETCH_ROWS = 4  # each may have MAX_TRACE_BYTES
_ANSWER_SECONDS = 30.0  # for the next rows; a cut network never answers
_AT_ONCE_SECONDS = 2.0  # for a new connection, from a server that is well
_SERVER_GONE = (
    OSError,
    TimeoutError,
    asyncpg.InterfaceError,
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,
    asyncpg.InsufficientResourcesError,
)
_ROW_FAULTS = (asyncpg.InternalServerError, asyncpg.PostgresIOError)  # a damaged page or TOAST
_LIBPQ_ONLY = frozenset(
    (
        "channel_binding",
        "connect_timeout",
        "fallback_application_name",
        "gssencmode",
        "hostaddr",
        "keepalives",
        "keepalives_count",
        "keepalives_idle",
        "keepalives_interval",
        "load_balance_hosts",
        "require_auth",
        "requirepeer",
        "sslcompression",
        "sslsni",
        "tcp_user_timeout",
    )
)


class TraceReader:
    """A connection for reading traces; for one event loop, and one task at a time."""

    def __init__(self, connection: asyncpg.Connection, settings: Settings) -> None:
        self._connection = connection
        self._settings = settings

    async def read(self, window_id: str) -> AsyncGenerator[RawTrace, None]:
        """Yield the window's rows that count, in the order in which they were written.

        It holds a transaction, so a caller that may stop early must close it
        (`contextlib.aclosing`).

        Raises:
            ServerUnavailable: Postgres went away.
            SlowRead: An answer took too long; other windows may still be readable.
            DamagedRow: Postgres itself cannot read a row.
        """
        slow = False
        try:
            async with self._connection.transaction(readonly=True):
                cursor: Any = self._connection.cursor(
                    _SQL["select_traces"],
                    window_id,
                    self._settings.max_trace_bytes,
                    self._settings.excluded_scenario_patterns(),
                    self._settings.agent_patterns() or None,
                    prefetch=_PREFETCH_ROWS,
                )
                try:
                    async for row in cursor:
                        yield RawTrace(
                            row["trajectory_id"], row["agent_id"], row["bytes"], row["steps"]
                        )
                except (TimeoutError, asyncpg.QueryCanceledError):
                    slow = True
                    raise
        except _SERVER_GONE as error:
            if slow and await self._server_answers():
                raise SlowRead(
                    f"reading window {window_id}: no answer in {_ANSWER_SECONDS:.0f} s"
                ) from error
            raise unreachable(self._settings.postgres(), error) from None
        except _ROW_FAULTS as error:
            raise DamagedRow(f"a trace of window {window_id} cannot be read: {error}") from error

    async def _server_answers(self) -> bool:
        """Tell whether the rows are slow, not the server: it answers others at once."""
        try:
            async with asyncio.timeout(_AT_ONCE_SECONDS), open_reader(self._settings) as other:
                await other._connection.execute("SELECT 1")  # a pooler alone does not do
                return True
        except (ServerUnavailable, TimeoutError):
            return False


@asynccontextmanager
async def open_reader(settings: Settings) -> AsyncIterator[TraceReader]:
    """Open a connection for one task's reading.

    Raises:
        ServerUnavailable: Postgres does not answer.
        UserError: DATABASE_URL is missing or no URL.
    """
    url = settings.postgres()
    try:
        # No statement cache: a pooler in transaction mode forgets prepared statements.
        connection = await asyncpg.connect(
            _without_libpq_only(url),
            statement_cache_size=0,
            timeout=5,
            command_timeout=_ANSWER_SECONDS,
        )
    except (OSError, asyncpg.PostgresError, TimeoutError) as error:
        raise unreachable(url, error) from None
    try:
        yield TraceReader(connection, settings)
    finally:
        try:
            await connection.close(timeout=5)
        except _SERVER_GONE:
            connection.terminate()


def _without_libpq_only(url: str) -> str:
    """Drop parameters that only libpq knows: asyncpg would send them, and the server refuse."""
    base, _, query = url.partition("?")
    kept = [p for p in query.split("&") if p and p.partition("=")[0] not in _LIBPQ_ONLY]
    return f"{base}?{'&'.join(kept)}" if kept else base
