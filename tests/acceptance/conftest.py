"""Real processes on real servers, with short intervals."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NoReturn

import httpx
import psutil
import pytest
import redis

from babylon_tasks.errors import ServerUnavailable
from babylon_tasks.local import ask
from babylon_tasks.settings import Settings
from babylon_tasks.store.identity import key_prefix
from babylon_tasks.work.context import Context
from tests.acceptance.in_process import Done, call
from tests.rows import query

Ended = Done | subprocess.CompletedProcess[str]


class Deployment:
    """One database, one Redis, and the environment in which roles run on them."""

    def __init__(self, context: Context, redis_url: str, folder: Path) -> None:
        self.context = context
        self.redis_url = redis_url
        self.folder = folder
        settings = context.settings
        self.env = {
            "DATABASE_URL": settings.postgres(),
            "REDIS_URL": redis_url,
            "TRAIN_RL_LOCAL": "true",
            "TRAINER": "noop",
            "BASE_MODEL": settings.base_model,
            "CHECKPOINT_STORE": settings.checkpoint_store,
            "SWEEP_SECONDS": "1",
            "PRODUCE_SECONDS": "1",
            "LEASE_SECONDS": "2",
            "HEARTBEAT_SECONDS": "0.5",
            "RETRY_SECONDS": "0",
            "PUBLISH": "always",  # as tests/conftest.py
            "HF_HUB_OFFLINE": "1",  # what is not on this machine is missed at once
        }
        self._processes: list[subprocess.Popen[str]] = []

    def key(self, name: str) -> str:
        """The key in Redis that Celery's roles here know by this name."""
        return key_prefix(self.context.settings.postgres()) + name

    def call(
        self, *arguments: str, env: dict[str, str] | None = None, silence_seconds: float = 3600.0
    ) -> Done:
        """Run `babylon …`, or `-m …` for a module, to its end in this process."""
        return call(arguments, self._env(env), self.folder, silence_seconds)

    def run(
        self, *arguments: str, env: dict[str, str] | None = None, timeout: float = 90
    ) -> subprocess.CompletedProcess[str]:
        """Run a program to its end: `babylon …`, or `celery …`, or Python with `-m …` or `-c …`."""
        return subprocess.run(
            self._command(arguments),
            env=self._env(env),
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def start(self, *arguments: str, env: dict[str, str] | None = None) -> subprocess.Popen[str]:
        """Start a role; it is ended with the test."""
        log = (self.folder / f"{len(self._processes)}.log").open("w")
        process = subprocess.Popen(
            self._command(arguments),
            env=self._env(env),
            cwd=self.folder,
            stdout=log,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._processes.append(process)
        return process

    def logs(self) -> str:
        """What every role has said, for a failing test."""
        return "\n".join(f"== {p.name}\n{p.read_text()}" for p in self.folder.glob("*.log"))

    def wait(self, condition: Callable[[], bool], seconds: float = 40) -> None:
        """Until it holds, or fail with what Postgres says and the end of each log."""
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                pytest.fail(f"nothing happened within {seconds} s\n{self._rows()}\n{self._tails()}")
            time.sleep(0.1)

    def wait_for_page(self, url: str) -> None:
        """Until a role that has just started answers there with 200."""

        def answers() -> bool:
            with contextlib.suppress(httpx.HTTPError):
                return httpx.get(url).status_code == 200
            return False

        self.wait(answers)

    def stop(self) -> None:
        """End every role that still runs; whether they obey SIGTERM is for tests to say."""
        for process in self._processes:
            if Path(process.args[0]).name == "celery":  # it would end its tasks first
                _kill_tree(process)
            else:
                process.terminate()
        for process in self._processes:
            try:
                process.wait(timeout=15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _tails(self, lines: int = 25) -> str:
        """The last lines of every role's log, in the order of their start."""
        tails = []
        for number, process in enumerate(self._processes):
            said = (self.folder / f"{number}.log").read_text().splitlines()
            told = [line for line in said if " DEBUG " not in line]
            command = " ".join([Path(process.args[0]).name, *process.args[1:]])
            tails += [f"== {number}.log: {command}, ended with {process.poll()}", *told[-lines:]]
        return "\n".join(tails)

    def _rows(self) -> str:
        """Where the windows stand, who holds what, and the last attempts."""
        rows = [
            row
            for text in (
                """SELECT window_id, state, attempts, may_share, reason, last_error, claimed_by,
                          not_before - now() AS wait FROM rl.windows ORDER BY window_id""",
                "SELECT *, expires_at - now() AS left FROM rl.leases ORDER BY resource",
                "SELECT * FROM rl.attempts ORDER BY started_at DESC LIMIT 20",
            )
            for row in query(self.context, text)
        ]
        return "\n".join(
            ", ".join(f"{name}: {value}" for name, value in row.items()) for row in rows
        )

    def _command(self, arguments: tuple[str, ...]) -> list[str]:
        if arguments[0] in ("-m", "-c"):
            return [sys.executable, *arguments]
        return [str(Path(sys.executable).with_name(arguments[0])), *arguments[1:]]

    def _env(self, changes: dict[str, str] | None) -> dict[str, str]:
        inherited = {
            name: value
            for name, value in os.environ.items()
            if name.lower() not in Settings.model_fields
        }
        return {**inherited, **self.env, **(changes or {})}


def _kill_tree(process: subprocess.Popen[str]) -> None:
    """Kill a process with its pool and its trainers."""
    if process.poll() is None:
        for child in psutil.Process(process.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        process.kill()


@pytest.fixture
def deployment(context: Context, redis_url: str, tmp_path: Path) -> Iterator[Deployment]:
    """An empty database and an empty Redis, and nothing running yet."""
    with redis.Redis.from_url(redis_url) as client:
        client.flushall()
    folder = tmp_path / "run"
    folder.mkdir()
    made = Deployment(context, redis_url, folder)
    yield made
    made.stop()


@pytest.fixture
def unserved(monkeypatch: pytest.MonkeyPatch) -> None:
    """The new version is not asked: that takes a server, which imports for seconds."""

    def refuse(env: Mapping[str, str]) -> NoReturn:
        raise ServerUnavailable("nobody serves")

    monkeypatch.setattr(ask, "serving", refuse)
