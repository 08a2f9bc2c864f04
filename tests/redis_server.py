"""Debian's redis-server: TLS, ACLs of channels and cluster mode, which the wheel's 6.2 lacks."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis

from babylon_tasks.child import end_with_parent
from tests.chaos.ports import quiet_port
from tests.missing import missing

_SYSTEM = "/usr/local/bin:/usr/bin:/bin"  # not the environment's own folder: the wheel's is there


def program() -> str:
    """Its path; without it a test skips, and fails in CI."""
    found = shutil.which("redis-server", path=_SYSTEM)
    if found:
        return found
    missing("no redis-server of version 7: apt-get install redis-server (.ci/run does so)")


class RedisServer:
    """A running server, and its administrator's client."""

    def __init__(self, port: int, admin: redis.Redis) -> None:
        self.port = port
        self.admin: Any = admin  # redis-py's types leave much out

    def url(self, login: str = "", database: int = 0, scheme: str = "redis") -> str:
        """The URL of a user, such as `user:password@`."""
        return f"{scheme}://{login}127.0.0.1:{self.port}/{database}"


@contextmanager
def redis_server(
    folder: Path, *options: str, plain: bool = True, sentinel: Path | None = None
) -> Iterator[RedisServer]:
    """Run a server on loopback with these options; without `plain` only its TLS port is open.

    Its administrator comes in by a socket, whatever its users may do. With the configuration of a
    Sentinel it is one.
    """
    port, socket = quiet_port(), folder / f"redis-{time.monotonic_ns()}.sock"
    ports = ["--port", str(port)] if plain else ["--port", "0", "--tls-port", str(port)]
    command = [program(), *([str(sentinel)] if sentinel else [])]
    command += [*ports, "--unixsocket", str(socket), "--dir", str(folder), "--bind", "127.0.0.1"]
    command += ["--sentinel"] if sentinel else ["--save", "", "--loglevel", "warning", *options]
    with (folder / "redis.log").open("ab") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, preexec_fn=end_with_parent
        )
    admin = redis.Redis(unix_socket_path=str(socket))
    try:
        _wait(admin, folder)
        yield RedisServer(port, admin)
    finally:
        admin.close()
        process.kill()
        process.wait()


def _wait(admin: redis.Redis, folder: Path) -> None:
    deadline = time.monotonic() + 20
    while True:
        try:
            admin.ping()
        except redis.ConnectionError:
            if time.monotonic() > deadline:
                pytest.fail((folder / "redis.log").read_text()[-2000:])
            time.sleep(0.02)
        else:
            return
