"""The worker's end of a trainer process: starts it, talks to it, notices when it is gone."""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import IO

import msgspec

from babylon_tasks.errors import Retryable, TrainerDied
from babylon_tasks.training import Progress, StepRequest, StepResult
from workers.trainer import wire

log = logging.getLogger(__name__)

CLOSE_SECONDS = 5.0  # for a trainer to end by itself when its pipe closes
KILL_SECONDS = 30.0  # for the kernel to reap a killed one; longer means stuck in a driver

OnBeat = Callable[[Progress | None], None]


class TrainerProcess:
    """A trainer in a process of its own, started at the first step and kept warm between steps.

    It is subprocess, not multiprocessing: a Celery prefork child may not have children of that
    kind. A trainer that died is started again at the next step.

    Args:
        kind: `torch` or `noop`.
        gpu: The trainer's CUDA_VISIBLE_DEVICES; None leaves it as it is, or hides every GPU from
            a `cpu-N` slot.
        slot: The GPU's UUID, of which one trainer at a time may be used, or `cpu-N`.
        heartbeat_seconds: `on_beat` is called at least this often during a step.
        stall_seconds: A trainer that says nothing for so long is killed.
        idle_seconds: A trainer without work is ended after this, which frees its GPU.
        log_level: The trainer's; it logs to this process's stderr.
    """

    def __init__(
        self,
        kind: str,
        gpu: str | None,
        slot: str,
        heartbeat_seconds: float,
        stall_seconds: float,
        idle_seconds: float,
        log_level: str = "INFO",
    ) -> None:
        self._command = [sys.executable, "-m", "workers.trainer"]
        self._command += ["--kind", kind, "--log-level", log_level]
        self._gpu = gpu
        self._slot = slot
        self._heartbeat_seconds = heartbeat_seconds
        self._stall_seconds = stall_seconds
        self._idle_seconds = idle_seconds
        self._lock = threading.RLock()  # a step, and what ends the process, exclude each other
        self._process: _Process | None = None
        self._idle_timer: threading.Timer | None = None

    @property
    def pid(self) -> int | None:
        """The running trainer's process id."""
        process = self._process
        return process.pid if process is not None else None

    def step(self, request: StepRequest, on_beat: OnBeat) -> StepResult:
        """Run one step; see `babylon_tasks.training.Trainer`.

        An exception from `on_beat`, a stall, and a fault of the trainer end the process; a step
        refused for a reason (`Final`, `UserError`) leaves it warm.
        """
        with self._lock:
            self._stop_idle_timer()
            try:
                process = self._running()
                process.send(request)
                answer = self._attend(process, on_beat)
            except BaseException:
                self._end(grace_seconds=0)
                raise
            if isinstance(answer, wire.ErrorAnswer):
                error = answer.exception()
                if isinstance(error, Retryable):
                    self._end(grace_seconds=0)  # it cannot trust its own memory any more
                self._start_idle_timer()
                raise error
            self._start_idle_timer()
            return wire.plain_result(answer)

    def close(self) -> None:
        """End the process, if there is one, and free its GPU. It may be called twice."""
        with self._lock:
            self._stop_idle_timer()
            self._end(grace_seconds=CLOSE_SECONDS)

    def _running(self) -> _Process:
        if self._process is not None and not self._process.alive():
            log.warning("the trainer %s", self._process.ending())
            self._end(grace_seconds=0)
        if self._process is None:
            self._process = _Process(self._command, self._environment())
            log.info("started a trainer on %s, pid %d", self._slot, self._process.pid)
        return self._process

    def _environment(self) -> dict[str, str]:
        environment = {k: v for k, v in os.environ.items() if k != "WANDB_API_KEY"}
        environment["BABYLON_GPU_SLOT"] = self._slot
        if self._gpu is not None:
            environment["CUDA_VISIBLE_DEVICES"] = self._gpu
        elif self._slot.startswith("cpu"):
            environment["CUDA_VISIBLE_DEVICES"] = ""
        return environment

    def _attend(self, process: _Process, on_beat: OnBeat) -> wire.ResultAnswer | wire.ErrorAnswer:
        """Pass on signs of life until the step's end.

        Raises:
            TrainerDied: The process ended, said nothing for too long, or spoke nonsense.
        """
        phase = "start"
        heard = beat = time.monotonic()
        while True:
            now = time.monotonic()
            wait = min(beat + self._heartbeat_seconds, heard + self._stall_seconds) - now
            answer = process.receive(max(wait, 0.0))
            now = time.monotonic()
            if answer is None:
                if now - heard >= self._stall_seconds:
                    raise TrainerDied(
                        f"no sign of life for {self._stall_seconds:g} s in phase {phase}"
                    )
                if now - beat >= self._heartbeat_seconds:
                    on_beat(None)
                    beat = time.monotonic()
                continue
            heard = now
            if isinstance(answer, wire.ResultAnswer | wire.ErrorAnswer):
                return answer
            if isinstance(answer, wire.ProgressAnswer):
                phase = answer.phase
                on_beat(wire.plain_progress(answer))
                beat = time.monotonic()

    def _end(self, grace_seconds: float) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.end(grace_seconds)

    def _start_idle_timer(self) -> None:
        self._idle_timer = threading.Timer(self._idle_seconds, self._end_if_idle)
        self._idle_timer.daemon = True
        self._idle_timer.start()

    def _stop_idle_timer(self) -> None:
        if self._idle_timer is not None:
            self._idle_timer.cancel()
            self._idle_timer = None

    def _end_if_idle(self) -> None:
        if not self._lock.acquire(blocking=False):
            return  # a step has begun
        try:
            # A step may have come and gone since this timer fired: then it is not the one set.
            if self._idle_timer is threading.current_thread():
                log.info("no work for %g s: ending the trainer", self._idle_seconds)
                self._end(grace_seconds=CLOSE_SECONDS)
        finally:
            self._lock.release()


class _Process:
    """One run of the trainer, and the lines that go to it and come from it."""

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
        return self._popen.pid

    @property
    def _stdout(self) -> IO[bytes]:
        assert self._popen.stdout is not None
        return self._popen.stdout

    def alive(self) -> bool:
        return self._popen.poll() is None

    def send(self, request: StepRequest) -> None:
        """Raises TrainerDied when nobody reads."""
        assert self._popen.stdin is not None
        data = memoryview(wire.encode(request))
        try:
            while data:
                data = data[self._popen.stdin.write(data) :]
        except BrokenPipeError:
            raise self._death() from None

    def receive(self, timeout_seconds: float) -> wire.Answer | None:
        """The next answer, or None when there is none in time.

        Raises:
            TrainerDied: The process ended, or what it said cannot be read.
        """
        deadline = time.monotonic() + timeout_seconds
        while not self._lines:
            left = deadline - time.monotonic()
            # Rounded up: a poll that returns a moment early would spin.
            if not self._poll.poll(max(0, int(left * 1000) + 1) if left > 0 else 0):
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
