"""All roles as child processes of one supervisor, for `babylon up` and `babylon demo`."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from babylon_tasks.child import end_with_parent
from babylon_tasks.errors import UserError
from babylon_tasks.local.processes import Check

log = logging.getLogger(__name__)

_FIRST_PAUSE_SECONDS = 1.0
_LONGEST_PAUSE_SECONDS = 60.0  # also how long a role must have run to count as well again
_GRACE_SECONDS = 30.0  # a worker takes 20 s to give back what it cannot finish
_USER_ERROR = 2


@dataclass(frozen=True, slots=True)
class Role:
    """A process to keep running; `arguments` follow the Python interpreter."""

    name: str
    arguments: tuple[str, ...]


def roles(flower_port: int) -> list[Role]:
    """Return beat, a CPU worker, a GPU worker and Flower, with the commands that the docs give."""
    celery = ("-P", "-m", "celery", "-A", "babylon_tasks")
    return [
        Role("beat", (*celery, "beat")),
        Role("cpu", (*celery, "worker", "-Q", "cpu", "-n", "cpu@%h")),
        Role("gpu", (*celery, "worker", "-Q", "gpu", "-n", "gpu@%h")),
        Role("flower", (*celery, "flower", f"--port={flower_port}")),
    ]


@dataclass(slots=True)
class _Child:
    """A role's process, and how long the next start waits if this one ends soon."""

    process: subprocess.Popen[bytes]
    started_at: float
    pause_seconds: float = _FIRST_PAUSE_SECONDS
    start_again_at: float | None = None  # once it has ended


class Stack(AbstractContextManager["Stack"]):
    """The running roles: starts them, restarts those that end, and stops all of them on exit.

    What ends again and again at once is started after longer and longer pauses. Each role logs to
    `{folder}/{name}.log`. `checks` are those of the servers that the roles need.
    """

    def __init__(
        self,
        roles: Sequence[Role],
        folder: Path,
        env: Mapping[str, str],
        checks: Sequence[Check] = (),
    ) -> None:
        self._roles = list(roles)
        self._folder = folder
        self._env = {**os.environ, **env}
        self._checks = checks
        self._running: dict[Role, _Child] = {}

    def __enter__(self) -> Stack:
        self._folder.mkdir(parents=True, exist_ok=True)
        for role in self._roles:
            self._running[role] = _Child(self._spawn(role, mode="wb"), time.monotonic())
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for child in self._running.values():
            child.process.terminate()
        deadline = time.monotonic() + _GRACE_SECONDS
        for role, process in [(role, child.process) for role, child in self._running.items()]:
            try:
                process.wait(timeout=max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                log.warning("%s does not stop, killing it", role.name)
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        self._running.clear()

    def keep_running(self) -> None:
        """Restart the roles that ended; call this about once a second.

        Raises:
            UserError: A role refused to start; the message is the role's own.
            ServerUnavailable: An embedded server ended; no role can work without it.
        """
        for check in self._checks:
            check()
        for role, child in self._running.items():
            if child.start_again_at is None:
                self._note_end(role, child)
            elif time.monotonic() >= child.start_again_at:
                process = self._spawn(role, mode="ab")
                self._running[role] = _Child(process, time.monotonic(), child.pause_seconds)

    def _note_end(self, role: Role, child: _Child) -> None:
        """If the role's process has ended, say when the next one starts."""
        code, now = child.process.poll(), time.monotonic()
        if code is None:
            return
        if code == _USER_ERROR:
            raise UserError(f"{role.name}: {self._last_line(role)}")
        if now - child.started_at >= _LONGEST_PAUSE_SECONDS:
            child.pause_seconds = _FIRST_PAUSE_SECONDS
        child.start_again_at = now + child.pause_seconds
        log.warning(
            "%s ended with code %d, starting it again in %.0f s: see %s",
            role.name,
            code,
            child.pause_seconds,
            self._folder / f"{role.name}.log",
        )
        child.pause_seconds = min(2 * child.pause_seconds, _LONGEST_PAUSE_SECONDS)

    def _spawn(self, role: Role, mode: str) -> subprocess.Popen[bytes]:
        with (self._folder / f"{role.name}.log").open(mode) as file:
            return subprocess.Popen(  # noqa: S603
                [sys.executable, *role.arguments],
                env=self._env,
                stdout=file,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                preexec_fn=end_with_parent,
            )

    def _last_line(self, role: Role) -> str:
        lines = (self._folder / f"{role.name}.log").read_text(errors="replace").splitlines()
        return next((line for line in reversed(lines) if line.strip()), "no output")
