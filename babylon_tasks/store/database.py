"""One psycopg connection: opened when needed, and again after the server restarted.

It relies on no session state (no server-side prepared statements, no session locks, no LISTEN), so
a pooler in transaction mode (PgBouncer, Neon, Supabase) may be in between.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import psycopg
from psycopg.rows import DictRow, dict_row
from psycopg.types.json import Jsonb

from babylon_tasks.errors import ServerUnavailable, UserError
from babylon_tasks.store import postgres

Connection = psycopg.Connection[DictRow]

_SERVER_COMES_FIRST = 2.0  # seconds: the server's own timeout is to end a transaction first
# With UTC, a column of the app may be a timestamp with or without time zone. The rest is what
# psycopg can read, whatever the role or the database has as its own.
_LIMITS = """SELECT set_config('statement_timeout', %s, true), set_config('lock_timeout', %s, true),
                    set_config('idle_in_transaction_session_timeout', %s, true),
                    set_config('TimeZone', 'UTC', true), set_config('DateStyle', 'ISO', true),
                    set_config('IntervalStyle', 'postgres', true),
                    set_config('extra_float_digits', '1', true)"""

_NOT_OURS = (
    psycopg.errors.InsufficientPrivilege,
    psycopg.errors.UndefinedTable,
    psycopg.errors.UndefinedColumn,
    psycopg.errors.UndefinedFunction,
    psycopg.errors.InvalidSchemaName,
)


class Database:
    """The connection of one process; it is not shared between threads or over a fork.

    A transaction that takes longer than `timeout_seconds` is ended by the server, so that a frozen
    client keeps no locks, and by the client, since over a cut network no answer ever comes.
    """

    def __init__(self, url: str, timeout_seconds: float = 30.0) -> None:
        self.url = url
        self.timeout_seconds = timeout_seconds
        self._connection: Connection | None = None
        self._in_transactions = 0.0  # seconds, of those that have ended
        self._began_at: float | None = None

    @property
    def seconds_in_transactions(self) -> float:
        """How long this process has been in transactions, so waited for the server, until now."""
        under_way = 0.0 if self._began_at is None else time.monotonic() - self._began_at
        return self._in_transactions + under_way

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """Open a transaction: committed at the end, rolled back by an exception.

        Raises:
            ServerUnavailable: The server cannot be reached, went away meanwhile, or was too slow.
            UserError: A table, a column or a privilege is missing.
        """
        with self._hang_up_later():
            connection = self._alive()
            try:
                with connection.transaction():
                    connection.execute(_LIMITS, [f"{self.timeout_seconds:.0f}s"] * 3)
                    yield connection
            except _NOT_OURS as error:
                raise UserError(
                    f"{error.diag.message_primary}: run `babylon migrate`, and grant this role the "
                    "schemas rl and public"
                ) from error
            except psycopg.errors.ReadOnlySqlTransaction as error:
                raise ServerUnavailable(
                    f"{self.name} is read-only (a standby, or default_transaction_read_only): is "
                    "DATABASE_URL that of the primary?"
                ) from error
            except psycopg.Error as error:
                if connection.closed or connection.broken:
                    raise postgres.lost(self.url, error) from error
                if isinstance(error, psycopg.OperationalError) and not isinstance(
                    error,
                    psycopg.errors.ProgramLimitExceeded,  # the row's fault
                ):
                    raise ServerUnavailable(
                        f"{self.name}: {error.diag.message_primary or error}"
                    ) from error
                raise

    @contextmanager
    def _hang_up_later(self) -> Iterator[None]:
        self._began_at = time.monotonic()
        timer = threading.Timer(self.timeout_seconds + _SERVER_COMES_FIRST, self._hang_up)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
            self._in_transactions, self._began_at = self.seconds_in_transactions, None

    def _hang_up(self) -> None:
        """End the wait for the server's answer; the timer's thread calls this."""
        connection = self._connection
        with contextlib.suppress(OSError, psycopg.Error):
            if connection is not None:
                with socket.socket(fileno=os.dup(connection.pgconn.socket)) as line:
                    line.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the connection; the next transaction opens a new one."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    @property
    def name(self) -> str:
        """Host and database, for messages; without user or password."""
        return postgres.server_name(self.url)

    def connected(self) -> Connection:
        """Return the connection, opened anew if it was lost.

        Raises:
            ServerUnavailable: The server does not answer, or refuses us.
        """
        with self._hang_up_later():
            return self._alive()

    def _alive(self) -> Connection:
        if self._connection is not None:
            try:
                self._connection.execute("SELECT 1")
            except psycopg.Error:
                self.close()
            else:
                return self._connection
        self._connection = postgres.connect(self.url, row_factory=dict_row)
        return self._connection


def now(connection: Connection) -> datetime:
    """Return the time by the database's clock, the only clock that decides anything."""
    row = connection.execute("SELECT rl.now() AS now").fetchone()
    assert row is not None
    moment: datetime = row["now"]
    return moment


def jsonb(value: Any) -> Jsonb:
    """Wrap a value for a jsonb column."""
    return Jsonb(value)
