"""An embedded server for a benchmark, and what work uses of it."""

from __future__ import annotations

import contextlib
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import psutil
import psycopg
from psycopg import sql

from babylon_tasks.local.postgres import embedded_postgres
from babylon_tasks.settings import Settings
from babylon_tasks.store.migrate import migrate

_SETTINGS = {"wal_level": "minimal", "max_wal_senders": "0", "max_connections": "300"}
_SAMPLE_SECONDS = 0.05


class Server:
    """An embedded Postgres, and databases on it."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder, self._url = folder, url
        self.pid = int((folder / "data" / "postmaster.pid").read_text().split("\n", 1)[0])

    def database(self, name: str, template: str = "template1") -> str:
        """Make a migrated database; return its URL."""
        statement = sql.SQL("CREATE DATABASE {} TEMPLATE {} STRATEGY file_copy")
        with psycopg.connect(self._url, autocommit=True) as connection:
            connection.execute(statement.format(sql.Identifier(name), sql.Identifier(template)))
        url = urlunsplit(urlsplit(self._url)._replace(path=f"/{name}"))
        migrate(url)
        return url

    def settings(self, url: str, **changes: Any) -> Settings:
        """Return the settings of a worker that trains nothing; `changes` are not validated."""
        settings = Settings(
            database_url=url,  # type: ignore[arg-type]
            train_rl_local=True,
            trainer="noop",
            base_model="none",
            checkpoint_store=f"{self.folder}/checkpoints{urlsplit(url).path}",
            settle_seconds=0,
        )
        return settings.model_copy(update=changes)


@contextmanager
def run_server() -> Iterator[Server]:
    """Run a server in a temporary folder."""
    with tempfile.TemporaryDirectory(prefix="babylon-bench-") as temporary:
        folder = Path(temporary)
        with embedded_postgres(folder / "data", "postgres", settings=_SETTINGS) as url:
            yield Server(folder, url)


@dataclass
class Usage:
    """What pieces of work have used; `waits` counts samples of busy connections."""

    seconds: float = 0.0
    server_cpu_seconds: float = 0.0
    transactions: int = 0
    deadlocks: int = 0
    waits: Counter[str] = field(default_factory=Counter)

    def add(self, other: Usage) -> None:
        """Add what another piece has used."""
        self.seconds += other.seconds
        self.server_cpu_seconds += other.server_cpu_seconds
        self.transactions += other.transactions
        self.deadlocks += other.deadlocks
        self.waits += other.waits

    @property
    def lock_waits(self) -> float:
        """The share of the samples of busy connections that waited for a lock."""
        return self.waits["Lock"] / max(1, self.waits.total())


@contextmanager
def measured(usage: Usage, url: str, server_pid: int) -> Iterator[None]:
    """Add what the block uses of the server."""
    over = threading.Event()
    sampler = threading.Thread(target=_sample, args=(url, usage.waits, over))
    cpu, transactions, deadlocks = _counters(url, server_pid)
    sampler.start()
    started = time.perf_counter()
    try:
        yield
    finally:
        usage.seconds += time.perf_counter() - started
        over.set()
        sampler.join()
    after = _counters(url, server_pid)
    usage.server_cpu_seconds += after[0] - cpu
    usage.transactions += after[1] - transactions
    usage.deadlocks += after[2] - deadlocks


def _counters(url: str, server_pid: int) -> tuple[float, int, int]:
    with psycopg.connect(url) as connection:
        row = connection.execute(
            """SELECT xact_commit + xact_rollback, deadlocks
                 FROM pg_stat_database WHERE datname = current_database()"""
        ).fetchone()
    assert row is not None
    return _cpu_seconds(server_pid), *row


def _cpu_seconds(server_pid: int) -> float:
    """Return the CPU seconds of all processes of the server, those that have ended included."""
    server = psutil.Process(server_pid)
    total = sum(server.cpu_times()[:4])
    for process in server.children():
        with contextlib.suppress(psutil.NoSuchProcess):  # its parent counts it now
            total += sum(process.cpu_times()[:2])
    return total


def _sample(url: str, waits: Counter[str], over: threading.Event) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        while not over.wait(_SAMPLE_SECONDS):
            rows = connection.execute(
                """SELECT COALESCE(wait_event_type, 'CPU'), count(*) FROM pg_stat_activity
                    WHERE datname = current_database() AND state = 'active'
                      AND pid <> pg_backend_pid() GROUP BY 1"""
            )
            waits.update(dict(rows.fetchall()))
