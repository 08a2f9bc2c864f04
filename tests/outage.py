"""An outage of Postgres for one database: the server refuses every connection to it."""

from __future__ import annotations

import threading

import psycopg
from psycopg import sql

from babylon_tasks.work.context import Context
from tests.conftest import with_database

_MOVED: dict[str, list[float]] = {}  # seconds that outages have moved each database's clock


class Outage:
    """The server takes no connection to this database; its end comes after the leases ran out.

    It ends by itself after so many seconds, or with None by `end`.
    """

    def __init__(self, context: Context, seconds: float | None = 0.3) -> None:
        self._context, self._seconds = context, seconds
        self._url = with_database(context.settings.postgres(), "postgres")
        self._end: threading.Thread | None = None
        self._moved = _MOVED.setdefault(self._url_of(), [0.0])

    def _url_of(self) -> str:
        return self._context.settings.postgres()

    def begin(self) -> None:
        """End all connections; a thread opens the database again."""
        self._allow(False)
        if self._seconds is not None:
            self._end = threading.Thread(target=self._end_later)
            self._end.start()

    def end(self) -> None:
        """Open the database again."""
        self._allow(True)

    def wait(self) -> None:
        """Wait until it is over."""
        assert self._end is not None
        self._end.join()

    def _end_later(self) -> None:
        threading.Event().wait(self._seconds)
        self._allow(True)

    def _allow(self, allowed: bool) -> None:
        with psycopg.connect(self._url, autocommit=True) as connection:
            name = psycopg.conninfo.conninfo_to_dict(self._context.settings.postgres())["dbname"]
            if allowed:
                connection.execute(
                    sql.SQL("ALTER DATABASE {} SET rl.clock_offset = {}").format(
                        sql.Identifier(str(name)), sql.Literal(f"{self._later():.0f} seconds")
                    )
                )
            connection.execute(
                sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS {}").format(
                    sql.Identifier(str(name)), sql.SQL("true" if allowed else "false")
                )
            )
            if not allowed:
                connection.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s",
                    [name],
                )

    def _later(self) -> float:
        self._moved[0] += self._context.settings.lease_seconds + 1
        return self._moved[0]
