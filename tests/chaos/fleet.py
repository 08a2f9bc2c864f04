"""Roles as real processes; each dies as a whole, as if it had a machine of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from tests.chaos import processes


@dataclass(frozen=True, slots=True)
class Kill:
    """What was killed, when, and which processes died of it."""

    at: datetime
    what: str
    pids: tuple[int, ...] = ()


@dataclass(slots=True)
class _Role:
    command: Sequence[str]
    env: Mapping[str, str]
    log: Path
    process: subprocess.Popen[bytes]
    restart_seconds: float | None  # None: what died stays dead
    died_at: float | None = None


@dataclass
class Fleet:
    """Named roles, each in a session of its own with a log of its own.

    A role started with `keep_running` is started again after it died, `restart_seconds` later, as
    systemd does it: what its death left behind is killed first.
    """

    folder: Path
    env: Mapping[str, str]
    kills: list[Kill] = field(default_factory=list)
    _roles: dict[str, _Role] = field(default_factory=dict)
    _lock: threading.RLock = field(default_factory=threading.RLock)
    _stopped: threading.Event = field(default_factory=threading.Event)
    _supervisor: threading.Thread | None = None

    def start(
        self,
        name: str,
        *command: str,
        env: Mapping[str, str] | None = None,
        keep_running: bool = False,
        restart_seconds: float = 1.0,
    ) -> int:
        """Start a role: a script beside this interpreter, or an option of the interpreter itself.

        `start("cpu1", "celery", "-A", …)`, `start("x", "-m", "module")`; returns its pid.
        """
        first, *rest = command
        script = str(Path(sys.executable).with_name(first))
        full = [sys.executable, *command] if first.startswith("-") else [script, *rest]
        merged = {**self.env, **(env or {})}
        log = self.folder / f"{name}.log"
        with self._lock:
            assert not self._lives(name), f"{name} runs already"
            self._roles[name] = _Role(
                full,
                merged,
                log,
                processes.spawn(full, log=log, folder=self.folder, env=merged),
                restart_seconds if keep_running else None,
            )
            if keep_running and self._supervisor is None:
                self._supervisor = threading.Thread(target=self._supervise, daemon=True)
                self._supervisor.start()
        return self.pid(name)

    def pid(self, name: str) -> int:
        """Return the pid of the role's first process, whether it lives or not."""
        return self._roles[name].process.pid

    def lives(self, name: str) -> bool:
        """Tell whether the role's first process lives."""
        with self._lock:
            return self._lives(name)

    def children(self, name: str) -> list[int]:
        """Return its living pool processes."""
        leader = self.pid(name)
        return [pid for pid in processes.session(leader) if processes.parent(pid) == leader]

    def trainers(self, name: str) -> list[int]:
        """Return its living trainer processes."""
        found = processes.session(self.pid(name))
        return [pid for pid in found if "-m workers.trainer" in processes.command_line(pid)]

    def kill(self, name: str) -> None:
        """Kill everything in its session with SIGKILL, as if its machine were lost."""
        with self._lock:
            role = self._roles[name]
            at = datetime.now(UTC)
            pids = processes.kill_session(role.process.pid)
            role.process.wait()
            self.kills.append(Kill(at, name, tuple(pids)))

    def kill_process(self, pid: int, what: str = "process") -> None:
        """Kill one process with SIGKILL."""
        self.kills.append(Kill(datetime.now(UTC), what, (pid,)))
        os.kill(pid, signal.SIGKILL)

    def terminate(self, name: str, grace_seconds: float = 30.0) -> int:
        """Send SIGTERM to its first process, as a supervisor does, and return its exit code.

        Raises:
            TimeoutExpired: It is still there after the grace time, and is killed.
        """
        with self._lock:
            role = self._roles[name]
            role.restart_seconds = None
        role.process.terminate()
        try:
            return role.process.wait(timeout=grace_seconds)
        finally:
            processes.kill_session(role.process.pid)

    def wait(self, name: str, seconds: float = 60.0) -> int:
        """Wait until its first process has ended by itself, and return its exit code.

        Raises:
            TimeoutExpired: It has not.
        """
        return self._roles[name].process.wait(timeout=seconds)

    def freeze(self, name: str) -> None:
        """Stop everything in its session with SIGSTOP, as on a suspended machine."""
        processes.signal_session(self.pid(name), signal.SIGSTOP)

    def thaw(self, name: str) -> None:
        """Continue everything in its session with SIGCONT."""
        processes.signal_session(self.pid(name), signal.SIGCONT)

    def stop_all(self) -> None:
        """Kill what still runs; `terminate` is for tests of how a role ends."""
        self._stopped.set()
        if self._supervisor is not None:
            self._supervisor.join()
        for role in self._roles.values():
            processes.kill_session(role.process.pid)
            role.process.wait()

    def logs(self) -> str:
        """Return the logs of all roles, for a failing test."""
        files = sorted(self.folder.glob("*.log"))
        return "\n".join(f"== {f.name}\n{f.read_text(errors='replace')}" for f in files)

    def _lives(self, name: str) -> bool:
        return name in self._roles and self._roles[name].process.poll() is None

    def _supervise(self) -> None:
        while not self._stopped.wait(0.1):
            with self._lock:
                for role in self._roles.values():
                    self._start_again(role)

    def _start_again(self, role: _Role) -> None:
        if role.restart_seconds is None or role.process.poll() is None:
            return
        now = time.monotonic()
        if role.died_at is None:
            role.died_at = now
            processes.kill_session(role.process.pid)
        if now - role.died_at >= role.restart_seconds:
            role.died_at = None
            role.process = processes.spawn(
                role.command, log=role.log, folder=self.folder, env=role.env
            )
