"""Real servers that a test may break; they come back on the same port and password."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import time
import uuid
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import redis
from psycopg import sql

from babylon_tasks.local.pgdata import initialize, open_to, system_user
from babylon_tasks.local.postgres import server_command
from babylon_tasks.local.redis import redis_command
from babylon_tasks.store.migrate import migrate
from tests.chaos.ports import quiet_port
from tests.chaos.processes import every_pid, spawn, working_folder
from tests.conftest import with_database

_READY_SECONDS = 30.0
_ORPHAN_SECONDS = 5.0
_ROLE = "babylon"


class PostgresServer:
    """PostgreSQL 18 from its wheel, on loopback, with a role that needs its password.

    What is on disk must survive any of this, so fsync stays on.
    """

    def __init__(self, folder: Path) -> None:
        self._data = folder / "postgres"
        self._log = folder / "postgres.log"
        self._password = secrets.token_urlsafe(12)
        self._process: subprocess.Popen[bytes] | None = None
        self.port = quiet_port()

    @property
    def url(self) -> str:
        """The roles' URL: over TCP, with a password, no superuser."""
        return f"postgresql://{_ROLE}:{self._password}@127.0.0.1:{self.port}/postgres"

    @property
    def admin_url(self) -> str:
        """The superuser's URL, over the socket."""
        return f"postgresql://postgres@/postgres?host={self._data}&port={self.port}"

    @property
    def pid(self) -> int:
        """The postmaster's pid."""
        assert self._process is not None
        return self._process.pid

    def running(self) -> bool:
        """Whether the postmaster lives."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start it, unless it runs, and wait until it answers, also after a crash."""
        if self.running():
            return
        new = not self._data.exists()
        if new:
            self._initialize()
        self._run()
        if new:
            with psycopg.connect(self.admin_url, autocommit=True) as connection:
                connection.execute(
                    sql.SQL("CREATE ROLE {} LOGIN CREATEDB PASSWORD {}").format(
                        sql.Identifier(_ROLE), sql.Literal(self._password)
                    )
                )

    def stop(self) -> None:
        """Stop it and close its clients' connections (`pg_ctl stop -m fast`)."""
        self._end(signal.SIGINT)

    def stop_immediate(self) -> None:
        """Stop it without a checkpoint (`pg_ctl stop -m immediate`)."""
        self._end(signal.SIGQUIT)

    def kill(self) -> None:
        """Kill the postmaster, and wait until its backends notice that and end."""
        self._end(signal.SIGKILL)
        deadline = time.monotonic() + _ORPHAN_SECONDS
        while orphans := self._processes():
            if time.monotonic() > deadline:
                for pid in orphans:
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.02)

    def restart(self) -> None:
        """Stop and start it, as an administrator does; open transactions are rolled back."""
        self.stop()
        self.start()

    def _initialize(self) -> None:
        self._data.parent.mkdir(parents=True, exist_ok=True)
        initialize(self._data, self._log)
        (self._data / "pg_hba.conf").write_text(
            "local all postgres trust\nhost all all 127.0.0.1/32 scram-sha-256\n"
        )

    def _run(self) -> None:
        deadline = time.monotonic() + _READY_SECONDS
        while not self._answers():
            if time.monotonic() > deadline:
                raise TimeoutError(f"Postgres did not start: {self._log.read_text()[-2000:]}")
            if not self.running():  # also one that met its predecessor's last backends
                self._process = self._spawn()
            time.sleep(0.05)

    def _spawn(self) -> subprocess.Popen[bytes]:
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "unix_socket_directories": str(self._data),
            "max_connections": "100",
            "log_line_prefix": "%m [%p] ",
        }
        open_to(system_user(), self._data)  # pytest closes the folders of earlier tests
        command = server_command(self._data, settings)
        return spawn(command, log=self._log, folder=self._data, user=system_user())

    def _answers(self) -> bool:
        if not self.running():
            return False
        try:
            with psycopg.connect(self.admin_url, connect_timeout=2) as connection:
                connection.execute("SELECT 1")
        except psycopg.OperationalError:
            return False
        return True

    def _end(self, number: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait(timeout=30)

    def _processes(self) -> list[int]:
        return [pid for pid in every_pid() if working_folder(pid) == self._data]


class RedisServer:
    """redis-server from its wheel, on loopback, with a password, keeping nothing on disk."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "redis"
        self._password = secrets.token_urlsafe(12)
        self._process: subprocess.Popen[bytes] | None = None
        self.port = quiet_port()

    @property
    def url(self) -> str:
        """The URL with the password."""
        return f"redis://:{self._password}@127.0.0.1:{self.port}/0"

    def running(self) -> bool:
        """Whether the process lives, frozen or not."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start it, unless it runs, and wait until it answers."""
        if self.running():
            return
        command = redis_command(self._folder, self.port, self._password)
        log = self._folder / "redis.log"
        self._process = spawn(command, log=log)
        deadline = time.monotonic() + _READY_SECONDS
        while not self._answers():
            if time.monotonic() > deadline or not self.running():
                raise TimeoutError(f"Redis did not start: {log.read_text()[-2000:]}")
            time.sleep(0.02)

    def kill(self) -> None:
        """Kill it; everything in it is lost."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def freeze(self) -> None:
        """Freeze it with SIGSTOP: connections stay open, and nothing answers."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on with SIGCONT; harmless if it was not frozen."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def flush(self) -> None:
        """Delete everything in it (FLUSHALL)."""
        with redis.Redis.from_url(self.url) as client:
            client.flushall()

    def _answers(self) -> bool:
        try:
            with redis.Redis.from_url(self.url) as client:
                return bool(client.ping())
        except redis.ConnectionError:
            return False


class Servers:
    """One of each for many tests, because to start them anew would cost each test seconds.

    Each test has a database of its own, copied from a migrated one.
    """

    def __init__(self, folder: Path) -> None:
        self.postgres = PostgresServer(folder)
        self.redis = RedisServer(folder)
        self._template: str | None = None

    def repair(self) -> None:
        """Make both run and answer, whatever was done to them; also start them first."""
        if self.redis.running():
            self.redis.thaw()
        self.redis.start()
        self.postgres.start()

    def fresh_database(self) -> str:
        """Make a migrated database without rows, and return its URL."""
        if self._template is None:
            template = self._create("template1")
            migrate(template)
            self._template = urlsplit(template).path[1:]
        return self._create(self._template)

    def drop_database(self, url: str) -> None:
        """Drop the database, even if somebody is connected to it."""
        with psycopg.connect(self.postgres.admin_url, autocommit=True) as connection:
            name = sql.Identifier(urlsplit(url).path[1:])
            connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(name))

    def stop(self) -> None:
        """End both."""
        self.redis.kill()
        self.postgres.stop_immediate()

    def _create(self, template: str) -> str:
        name = f"chaos_{uuid.uuid4().hex[:12]}"
        with psycopg.connect(self.postgres.url, autocommit=True) as connection:
            connection.execute(
                sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(
                    sql.Identifier(name), sql.Identifier(template)
                )
            )
        return with_database(self.postgres.url, name)
