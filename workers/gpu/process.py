"""The trainer as a child process: the lines that go to it and come from it, and its end."""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
import subprocess
import time
from collections import deque
from typing import IO

import msgspec

from babylon_tasks.errors import TrainerDied
from workers.gpu import wire

log = logging.getLogger(__name__)

CLOSE_SECONDS = 5.0  # for a trainer to end by itself when its pipe closes
KILL_SECONDS = 30.0  # for the kernel to reap a killed one; longer means stuck in a driver


class ChildProcess:
    """One run of the trainer.

    It is started by subprocess, not multiprocessing: a Celery prefork child may not have children
    of that kind.
    """

    def __init__(self, command: list[str], environment: dict[str, str]) -> None:
        self._popen = subprocess.Popen(  # noqa: S603 our own module
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            bufsize=0,
        )
        self._poll = select.poll()
        self._poll.register(self._stdout, select.POLLIN | select.POLLHUP)
        self._unfinished = b""
        self._lines: deque[bytes] = deque()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._popen.pid

    @property
    def _stdout(self) -> IO[bytes]:
        assert self._popen.stdout is not None
        return self._popen.stdout

    def alive(self) -> bool:
        """Tell whether it has not ended."""
        return self._popen.poll() is None

    def send(self, line: bytes) -> None:
        """Write a line to the trainer.

        Raises:
            TrainerDied: Nobody reads it.
        """
        assert self._popen.stdin is not None
        data = memoryview(line)
        try:
            while data:
                data = data[self._popen.stdin.write(data) :]
        except BrokenPipeError:
            raise self._death() from None

    def receive(self, timeout_seconds: float) -> wire.Answer | None:
        """Return the next answer, or None when there is none in time.

        Raises:
            TrainerDied: The process ended, or what it said cannot be read.
        """
        deadline = time.monotonic() + timeout_seconds
        while not self._lines:
            seconds_left = deadline - time.monotonic()
            # Rounded up: a poll that returns a moment early would spin.
            if not self._poll.poll(max(0, int(seconds_left * 1000) + 1) if seconds_left > 0 else 0):
                return None
            data = os.read(self._stdout.fileno(), 65_536)
            if not data:
                raise self._death()
            *lines, self._unfinished = (self._unfinished + data).split(b"\n")
            self._lines.extend(lines)
        try:
            return wire.decode_answer(self._lines.popleft())
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise TrainerDied(f"the trainer's answer cannot be read: {error}") from error

    def ending(self) -> str:
        """How it ended, in words."""
        code = self._popen.returncode
        if code is None or code >= 0:
            return f"ended with exit code {code}; its last lines are in this worker's log"
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = f"signal {-code}"
        hint = " (out of memory?)" if name == "SIGKILL" else ""
        return f"was ended by {name}{hint}"

    def end(self, grace_seconds: float) -> None:
        """Close its pipe, wait so long, then kill it."""
        assert self._popen.stdin is not None
        with contextlib.suppress(OSError):
            self._popen.stdin.close()
        if grace_seconds > 0:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._popen.wait(grace_seconds)
        self._popen.kill()
        try:
            self._popen.wait(KILL_SECONDS)
        except subprocess.TimeoutExpired:
            log.critical("trainer %d does not die; its successor waits for its GPU", self.pid)
        self._stdout.close()

    def _death(self) -> TrainerDied:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._popen.wait(CLOSE_SECONDS)  # the pipe closes a moment before the process ends
        return TrainerDied(f"the trainer {self.ending()}")
