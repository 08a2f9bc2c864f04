"""Time that tests move, and waiting for what other connections do, instead of sleeping."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime

import psycopg
from psycopg import sql

from babylon_tasks.store.database import Connection, Database
from babylon_tasks.work.context import Context
from tests.rows import Hour

_PATIENCE_SECONDS = 20.0
_OBEY = """
SELECT set_config('rl.clock_offset', split_part(setting, '=', 2), true)
  FROM pg_db_role_setting, unnest(setconfig) AS setting
 WHERE setdatabase = (SELECT oid FROM pg_database WHERE datname = current_database())
   AND starts_with(setting, 'rl.clock_offset=')
"""


class MovedDatabase(Database):
    """A database whose every transaction obeys `move_clock`, on connections opened before too."""

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """A transaction at the time that the test has moved to."""
        with super().transaction() as tx:
            tx.execute(_OBEY)
            yield tx


def movable(context: Context) -> Context:
    """Return the context on a database whose time can be moved."""
    return replace(context, database=MovedDatabase(context.database.url))


def move_clock(context: Context, seconds: float) -> None:
    """Let so much time pass for all who work on the context's database.

    The setting is the database's: new connections obey it, those of other processes too. A
    transaction that is under way keeps its time.
    """
    with psycopg.connect(context.settings.postgres(), autocommit=True) as connection:
        row = connection.execute(
            """SELECT (COALESCE(current_setting('rl.clock_offset', true), '0')::interval
                       + make_interval(secs => %s))::text""",
            [seconds],
        ).fetchone()
        assert row
        connection.execute(
            sql.SQL("ALTER DATABASE {} SET rl.clock_offset = {}").format(
                sql.Identifier(connection.info.dbname), sql.Literal(row[0])
            )
        )


def at_half_past(context: Context) -> None:
    """Let it be half past the hour in which the test began: none ends while it runs."""
    half_past = Hour.began.replace(minute=30, second=0, microsecond=0)
    move_clock(context, (half_past - datetime.now(UTC)).total_seconds())


def let_leases_run_out(context: Context) -> None:
    """Let as much time pass as a lease lives that nobody renews."""
    move_clock(context, context.settings.lease_seconds + 1)


def let_waits_pass(context: Context) -> None:
    """Let time pass until the last window that waits may be tried again."""
    with context.database.transaction() as tx:
        row = tx.execute(
            """SELECT extract(epoch FROM max(not_before) - rl.now())::float8 AS seconds
                 FROM rl.windows WHERE state IN ('due', 'scored')"""
        ).fetchone()
    if row and row["seconds"] and row["seconds"] > 0:
        move_clock(context, row["seconds"])


def wait_until_blocked(url: str) -> None:
    """Wait until a connection to this database waits for another one's lock."""
    _wait_for(
        url,
        """SELECT FROM pg_stat_activity
            WHERE datname = current_database() AND wait_event_type = 'Lock'""",
        lambda rows: rows > 0,
    )


def wait_until_ended(url: str, pid: int) -> None:
    """Wait until the server has ended the connection that its process `pid` serves."""
    _wait_for(url, f"SELECT FROM pg_stat_activity WHERE pid = {pid:d}", lambda rows: rows == 0)


def _wait_for(url: str, query: str, done: Callable[[int], bool]) -> None:
    deadline = time.monotonic() + _PATIENCE_SECONDS
    with psycopg.connect(url, autocommit=True) as connection:
        while not done(connection.execute(query.encode()).rowcount):
            assert time.monotonic() < deadline, f"in vain: {query}"
            time.sleep(0.01)
