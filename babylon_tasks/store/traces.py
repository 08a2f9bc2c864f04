"""Reads traces with asyncpg, a few at a time, so that memory stays bounded.

asyncpg's own cursors prepare a statement under a name, which a pooler in transaction mode gives to
other clients. So the cursor is one of SQL, declared and read by statements without a name.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager

import asyncpg

from babylon_tasks.errors import DamagedRow, ServerUnavailable, SlowRead, UserError
from babylon_tasks.records.recorded_steps import RawTrace
from babylon_tasks.settings import Settings
from babylon_tasks.store.asyncpg_arguments import arguments
from babylon_tasks.store.database import Database
from babylon_tasks.store.postgres import unreachable
from babylon_tasks.store.queries import load

_SQL = load("traces")
_CONNECT_SECONDS = 5.0
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
# What a pooler does that gives a session away within a transaction; no window is to blame.
_OTHERS_SESSION = (
    asyncpg.DuplicatePreparedStatementError,
    asyncpg.DuplicateCursorError,
    asyncpg.InvalidSQLStatementNameError,
    asyncpg.InvalidCursorNameError,
    asyncpg.NoActiveSQLTransactionError,
)


class TraceReader:
    """A connection for reading traces; for one event loop, and one task at a time."""

    def __init__(
        self, connection: asyncpg.Connection, database: Database, settings: Settings
    ) -> None:
        self._connection = connection
        self._database = database
        self._settings = settings

    async def read(self, window_id: str) -> AsyncGenerator[RawTrace, None]:
        """Yield the window's rows that count, in the order in which they were written.

        It holds a transaction, so a caller that may stop early must close it
        (`contextlib.aclosing`).

        Raises:
            ServerUnavailable: Postgres went away.
            UserError: The table, or a right to read it, is missing.
            SlowRead: An answer took too long; other windows may still be readable.
            DamagedRow: Postgres itself cannot read a row.
        """
        slow = False
        try:
            async with self._connection.transaction(readonly=True):
                try:
                    await self._connection.execute(
                        _SQL["declare_traces"],
                        window_id,
                        self._settings.max_trace_bytes,
                        self._settings.excluded_scenario_patterns(),
                        self._settings.agent_patterns() or None,
                    )
                    # Without a name; nothing else is prepared until the transaction ends.
                    more = await self._connection.prepare(_SQL["fetch_traces"], name="")
                    while rows := await more.fetch():
                        for row in rows:
                            yield RawTrace(**row)
                except (TimeoutError, asyncpg.QueryCanceledError):
                    slow = True
                    raise
        except _SERVER_GONE as error:
            if slow and await self._server_answers():
                raise SlowRead(
                    f"reading window {window_id}: no answer in {_ANSWER_SECONDS:.0f} s"
                ) from error
            raise unreachable(self._database.url, error) from None
        except _OTHERS_SESSION as error:
            raise ServerUnavailable(
                f"{self._database.name}: a pooler in between mixes up sessions ({error.args[0]})"
            ) from error
        except asyncpg.SyntaxOrAccessError as error:
            raise UserError(
                f"traces cannot be read from {self._database.name}: {error.args[0]} (`babylon "
                "doctor` says what is missing)"
            ) from error
        except _ROW_FAULTS as error:
            raise DamagedRow(f"a trace of window {window_id} cannot be read: {error}") from error

    async def _server_answers(self) -> bool:
        """Tell whether the rows are slow, not the server: it answers others at once."""
        try:
            async with (
                asyncio.timeout(_AT_ONCE_SECONDS),
                open_reader(self._database, self._settings) as other,
            ):
                await other.ask()
                return True
        except (ServerUnavailable, TimeoutError):
            return False

    async def ask(self, seconds: float = _ANSWER_SECONDS) -> None:
        """Ask the server for something: a pooler lets us in before it has a connection for us.

        Raises:
            TimeoutError: It is silent for so long.
            ServerUnavailable: It does not answer.
        """
        try:
            async with asyncio.timeout(seconds):
                await self._connection.execute("SELECT 1")
        except TimeoutError:
            self._connection.terminate()  # to close it, an answer would be waited for
            raise
        except _SERVER_GONE as error:
            raise unreachable(self._database.url, error) from None


@asynccontextmanager
async def open_reader(database: Database, settings: Settings) -> AsyncIterator[TraceReader]:
    """Open a connection for one task's reading, to the server on which `database` is.

    Raises:
        ServerUnavailable: Postgres does not answer.
        ServerRefused: DATABASE_URL does not fit the server.
    """
    try:
        connection = await asyncpg.connect(
            **arguments(database.connected()),
            # No statement cache: a pooler in transaction mode forgets prepared statements.
            statement_cache_size=0,
            timeout=_CONNECT_SECONDS,
            command_timeout=_ANSWER_SECONDS,
        )
    except (OSError, ValueError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        raise unreachable(database.url, error) from None
    try:
        yield TraceReader(connection, database, settings)
    finally:
        try:
            await connection.close(timeout=5)
        except _SERVER_GONE:
            connection.terminate()
