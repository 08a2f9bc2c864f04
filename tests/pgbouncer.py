"""A real PgBouncer between a test and its Postgres; Debian's package `pgbouncer` has it."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
from psycopg.conninfo import conninfo_to_dict

from babylon_tasks.local.pgdata import open_to, system_user
from babylon_tasks.local.ports import free_port
from tests.missing import missing


def _program() -> str:
    found = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")
    if found is None:
        missing("no PgBouncer: apt-get install pgbouncer")
    return found


@contextmanager
def pgbouncer(postgres_url: str, folder: Path, pool_mode: str, **settings: str) -> Iterator[str]:
    """Run one in front of the server, with two connections a database, and yield its URL.

    Its users need no password: it logs in as the server's own user. `settings` are more lines of
    its file.
    """
    program, port = _program(), free_port()
    server = conninfo_to_dict(postgres_url)
    login = " ".join(
        f"{key}={value}" for key, value in server.items()
        if key in ("host", "port", "user", "password") and value
    )  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    file, log = folder / "pgbouncer.ini", folder / "pgbouncer.log"
    lines = {
        "listen_addr": "127.0.0.1",
        "listen_port": str(port),
        "unix_socket_dir": "",
        "auth_type": "any",
        "pool_mode": pool_mode,
        "default_pool_size": "2",
        "max_client_conn": "200",
        **settings,
    }
    text = "".join(f"{name} = {value}\n" for name, value in lines.items())
    file.write_text(f"[databases]\n* = {login}\n[pgbouncer]\n{text}")
    open_to(system_user(), folder)
    url = f"postgresql://anybody@127.0.0.1:{port}/{server.get('dbname') or 'postgres'}"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [program, str(file)], user=system_user(), stdout=output, stderr=output
        )
    try:
        _wait(url, process, log)
        yield url
    finally:
        process.kill()  # it would wait for its clients
        process.wait()


def _wait(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 20
    while True:
        try:
            psycopg.connect(url, connect_timeout=2).close()
        except psycopg.OperationalError:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.02)
        else:
            return
