"""A real PostgreSQL 18 from a wheel, as a child process, for a machine without a server.

It keeps its data in a folder, and listens on a socket that only its own user may reach.
"""

from __future__ import annotations

import fcntl
import functools
import os
import re
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import MappingProxyType
from urllib.parse import quote

import psycopg
from psycopg import sql

from babylon_tasks.child import end_with_parent
from babylon_tasks.errors import UserError
from babylon_tasks.local import pgdata
from babylon_tasks.local.processes import Check, checked, ended
from babylon_tasks.text import one_line

# Why a server ends; it says more after that, and tells its clients that it ends.
_FATAL = re.compile(r"\b(FATAL|PANIC): +(?!the database system is )")
_IN_USE_SECONDS = 15.0
_START_SECONDS = 30.0
_STOP_SECONDS = 20.0
_PORT = 5432  # only a part of the socket's name
_LONGEST_SOCKET = 100  # characters of a path; the kernel takes 107


@contextmanager
def embedded_postgres(
    folder: Path,
    database: str,
    checks: list[Check] | None = None,
    settings: Mapping[str, str] = MappingProxyType({}),
) -> Iterator[str]:
    """Run a server with its data in `folder`, and yield the database's URL.

    Args:
        folder: The data folder; the first call makes it.
        database: Name of the database; the first call makes it.
        checks: A check that the server still runs is added to this list.
        settings: Settings of postgresql.conf.

    Raises:
        UserError: The extra `embedded` is not installed, another process uses the folder, or the
            server did not start.
        ServerUnavailable: The server ended, and the caller failed because of that.
    """
    folder = folder.resolve()
    folder.parent.mkdir(parents=True, exist_ok=True)
    log = folder.with_name(f"{folder.name}.log")
    with ExitStack() as stack:
        lock = stack.enter_context(_lock(folder))
        sockets = stack.enter_context(_socket_folder(folder))
        url = f"postgresql://postgres:@/{{}}?host={quote(str(sockets))}&port={_PORT}"
        try:
            if not (folder / "PG_VERSION").exists():
                pgdata.initialize(folder, log, [lock], durable=settings.get("fsync") != "off")
            pgdata.open_to(pgdata.system_user(), folder)
            pgdata.forget_killed_server(folder)
            command = server_command(
                folder,
                {
                    "listen_addresses": "",
                    "port": str(_PORT),
                    "unix_socket_directories": str(sockets),
                    **settings,
                },
            )
            begin = log.stat().st_size if log.exists() else 0
            process = stack.enter_context(_running(command, folder, log, lock))
            _wait(process, url.format("postgres"), log, begin)
            _create_database(url.format("postgres"), database)
        except (subprocess.SubprocessError, OSError, psycopg.Error) as error:
            raise UserError(
                f"the embedded PostgreSQL did not start ({_reason(error, log)}): see {log}; "
                f"where its data may go, delete {folder} to begin anew"
            ) from error

        def check() -> None:
            if process.poll() is not None:
                raise ended("PostgreSQL", log)

        with checked(check, checks):
            yield url.format(database)


def server_command(folder: Path, settings: Mapping[str, str]) -> list[str]:
    """Return the command of a server on the folder's data; run it as `pgdata.system_user()`.

    Raises:
        UserError: The extra `embedded` is not installed.
        CalledProcessError, OSError: As `pgdata.system_user` has it.
    """
    options = [f"--{name}={value}" for name, value in settings.items()]
    return [str(pgdata.program("postgres")), "-D", str(folder), *options]


@contextmanager
def _lock(folder: Path) -> Iterator[int]:
    """Hold the folder's lock, and yield its file descriptor.

    Every process of the server inherits the descriptor. So the lock is free only when the last of
    them has ended, and the next start waits for a server that still stops.

    Raises:
        UserError: Another process holds the lock for longer than a server takes to stop.
    """
    with folder.with_name(f".{folder.name}.in_use").open("wb") as file:
        deadline = time.monotonic() + _IN_USE_SECONDS
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise UserError(f"another process runs PostgreSQL in {folder}") from None
                time.sleep(0.1)
        yield file.fileno()


@contextmanager
def _socket_folder(folder: Path) -> Iterator[Path]:
    """Yield the socket's folder: the data folder, or a temporary one if that path is too long."""
    if len(os.fsencode(folder)) + len(f"/.s.PGSQL.{_PORT}") <= _LONGEST_SOCKET:
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="babylon-postgres-") as short:
        pgdata.open_to(pgdata.system_user(), Path(short))
        yield Path(short)


@contextmanager
def _running(
    command: list[str], folder: Path, log: Path, lock: int
) -> Iterator[subprocess.Popen[bytes]]:
    """Run the server; at the end, stop it and close its clients' connections."""
    with log.open("ab") as file:
        process = subprocess.Popen(  # noqa: S603
            command,
            cwd=folder,
            user=pgdata.system_user(),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is for us
            pass_fds=[lock],
            preexec_fn=functools.partial(end_with_parent, signal.SIGINT),
        )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGINT)  # a fast shutdown; SIGQUIT is one without a checkpoint
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGQUIT)
            process.wait(_STOP_SECONDS)


def _wait(process: subprocess.Popen[bytes], url: str, log: Path, begin: int) -> None:
    """Wait until the server answers; after a crash it recovers first.

    `begin` is where its own lines begin in the log, which has those of earlier starts too.
    """
    deadline = time.monotonic() + _START_SECONDS
    while True:
        try:
            psycopg.connect(url, connect_timeout=2).close()
        except psycopg.OperationalError:
            if (code := process.poll()) is not None:
                said = log.read_bytes()[begin:]
                raise subprocess.CalledProcessError(code, process.args, stderr=said) from None
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
        else:
            return


def _create_database(url: str, database: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        exists = connection.execute(
            "SELECT 1 FROM pg_database WHERE datname = %s", [database]
        ).fetchone()
        if not exists:
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(database)))


def _reason(error: Exception, log: Path) -> str:
    """Describe the error in one line; for a failed program, by its name and why it ended."""
    if not isinstance(error, subprocess.CalledProcessError):
        return one_line(str(error)) or type(error).__name__
    said = error.stderr if error.stderr is not None else log.read_bytes()
    lines = said.decode(errors="replace").strip().splitlines()
    fatal = [line for line in lines if _FATAL.search(line)]
    why = "".join(f": {line}" for line in (fatal or lines)[-1:])
    return one_line(f"{Path(error.cmd[0]).name} ended with code {error.returncode}{why}")
