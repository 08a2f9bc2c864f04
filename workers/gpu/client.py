"""The worker's end of a trainer process: starts it, talks to it, notices when it is gone."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from pydantic import SecretStr

from babylon_tasks.errors import Retryable, TrainerDied, UserError
from babylon_tasks.logs import LogFormat
from babylon_tasks.records.steps import Progress, StepRequest, StepResult
from babylon_tasks.records.trainer_requests import (
    EvaluateRequest,
    EvaluateResult,
    GenerateRequest,
    GenerateResult,
)
from workers.gpu import lock, wire
from workers.gpu.process import CLOSE_SECONDS, ChildProcess

log = logging.getLogger(__name__)

LOOK_SECONDS = 1.0  # between two looks whether another trainer waits for an idle one's GPU

OnBeat = Callable[[Progress | None], None]

_Result = TypeVar("_Result", StepResult, EvaluateResult, GenerateResult)


@dataclass(frozen=True)
class TrainerOptions:
    """What a trainer process is started with, and how long it may say or do nothing.

    Args:
        kind: `torch`, `serverless` or `noop`.
        gpus: UUIDs or MIG ids; the trainer takes the first if it is free, else another that is,
            and sees no other. Without any, every GPU is hidden from it.
        slot: Its name in the log: its first GPU, or `cpu-N`.
        heartbeat_seconds: `on_beat` is called at least this often during a request.
        stall_seconds: A trainer that says nothing for so long is killed.
        idle_seconds: A trainer without work is ended after this, which frees its GPU.
        log_level: The trainer's; it logs to this process's stderr.
        log_format: The trainer's.
        wandb_api_key: For a `serverless` trainer; no other gets one.
    """

    kind: str
    gpus: Sequence[str] | None
    slot: str
    heartbeat_seconds: float
    stall_seconds: float
    idle_seconds: float
    log_level: str = "INFO"
    log_format: LogFormat = "console"
    wandb_api_key: SecretStr | None = None


class TrainerProcess:
    """A trainer in a process of its own, started at the first request and kept warm after it.

    One process serves whatever lineages ask. A trainer that died is started again at the next
    request. One whose GPU another trainer waits for is ended, after its request or while it is
    idle; at its next request it waits for its turn.
    """

    def __init__(self, options: TrainerOptions) -> None:
        self._options = options
        self._command = [sys.executable, "-P", "-m", "workers.trainer"]
        self._command += ["--kind", options.kind, "--log-level", options.log_level]
        self._command += ["--log-format", options.log_format]
        self._lock = threading.RLock()  # a request, and what ends the process, exclude each other
        self._process: ChildProcess | None = None
        self._holding: str | None = None  # the GPU whose lock the process has
        self._rest_over: threading.Event | None = None  # tells the thread that watches it idle

    @property
    def pid(self) -> int | None:
        """The running trainer's process id."""
        process = self._process
        return process.pid if process is not None else None

    def step(self, request: StepRequest, on_beat: OnBeat) -> StepResult:
        """Run one step; see `babylon_tasks.records.steps.Trainer`.

        An exception from `on_beat`, a stall, and a fault of the trainer end the process; a step
        that is refused for a reason (`Final`, `UserError`) leaves it warm.

        Raises:
            TrainerDied: The process ended, was silent for too long, or spoke nonsense.
            Retryable: The trainer failed, and says that the step may succeed later.
            Final: The step will fail again.
            UserError: A person must change something.
        """
        return self._ask(request, StepResult, on_beat)

    def evaluate(self, request: EvaluateRequest, on_beat: OnBeat) -> EvaluateResult:
        """Evaluate recorded answers; ends and errors as for `step`."""
        return self._ask(request, EvaluateResult, on_beat)

    def generate(self, request: GenerateRequest, on_beat: OnBeat) -> GenerateResult:
        """Generate answers; ends and errors as for `step`."""
        return self._ask(request, GenerateResult, on_beat)

    def close(self) -> None:
        """End the process, if there is one, and free its GPU. It may be called twice."""
        with self._lock:
            self._end_rest()
            self._end(grace_seconds=CLOSE_SECONDS)

    def _ask(self, request: wire.Request, result_type: type[_Result], on_beat: OnBeat) -> _Result:
        line = wire.encode(request)
        with self._lock:
            self._end_rest()
            try:
                process = self._running()
                process.send(line)
                answer = self._attend(process, result_type, on_beat)
            except BaseException:
                self._end(grace_seconds=0)
                raise
            if isinstance(answer, wire.ErrorAnswer):
                error = answer.exception()
                if isinstance(error, Retryable) and not isinstance(error, UserError):
                    self._end(grace_seconds=0)  # it cannot trust its own memory any more
                self._rest()
                raise error
            self._rest()
            return answer

    def _running(self) -> ChildProcess:
        if self._process is not None and not self._process.alive():
            log.warning("the trainer %s", self._process.ending())
            self._end(grace_seconds=0)
        if self._process is None:
            self._process = ChildProcess(self._command, self._environment())
            log.info("started a trainer on %s, pid %d", self._options.slot, self._process.pid)
        return self._process

    def _environment(self) -> dict[str, str]:
        environment = {k: v for k, v in os.environ.items() if k != "WANDB_API_KEY"}
        if self._options.wandb_api_key is not None:
            environment["WANDB_API_KEY"] = self._options.wandb_api_key.get_secret_value()
        environment["BABYLON_GPUS"] = ",".join(self._options.gpus or ())
        environment["CUDA_VISIBLE_DEVICES"] = ""  # the trainer sets it when it has one
        environment["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"  # numbers count as nvidia-smi's
        return environment

    def _attend(
        self, process: ChildProcess, result_type: type[_Result], on_beat: OnBeat
    ) -> _Result | wire.ErrorAnswer:
        """Pass on signs of life until the request's end.

        Raises:
            TrainerDied: The process ended, said nothing for too long, or spoke nonsense.
        """
        phase = "start"
        heard = beat = time.monotonic()
        while True:
            now = time.monotonic()
            wait = (
                min(beat + self._options.heartbeat_seconds, heard + self._options.stall_seconds)
                - now
            )
            answer = process.receive(max(wait, 0.0))
            now = time.monotonic()
            if answer is None:
                if now - heard >= self._options.stall_seconds:
                    raise TrainerDied(
                        f"no sign of life for {self._options.stall_seconds:g} s in phase {phase}"
                    )
                if now - beat >= self._options.heartbeat_seconds:
                    on_beat(None)
                    beat = time.monotonic()
                continue
            heard = now
            if isinstance(answer, result_type | wire.ErrorAnswer):
                return answer
            if isinstance(answer, wire.Result):
                raise TrainerDied(f"the trainer answered with a {type(answer).__name__}")
            if isinstance(answer, wire.Holding):
                self._holding = answer.gpu
            if isinstance(answer, Progress):
                phase = answer.phase
                on_beat(answer)
                if answer.job is not None:
                    process.send(wire.NOTED)
                heard = beat = time.monotonic()

    def _end(self, grace_seconds: float) -> None:
        process, self._process = self._process, None
        self._holding = None
        if process is not None:
            process.end(grace_seconds)

    def _rest(self) -> None:
        """End a request: give the GPU to who waits for it, else watch the idle trainer."""
        if self._process is None:
            return
        if self._wanted():
            self._give_way()
            return
        self._rest_over = threading.Event()
        threading.Thread(target=self._watch, args=(self._rest_over,), daemon=True).start()

    def _end_rest(self) -> None:
        if self._rest_over is not None:
            self._rest_over.set()
            self._rest_over = None

    def _watch(self, over: threading.Event) -> None:
        """End the idle trainer when nobody has needed it for long, or another needs its GPU."""
        end = time.monotonic() + self._options.idle_seconds
        while not over.wait(max(0.0, min(LOOK_SECONDS, end - time.monotonic()))):
            wanted = self._wanted()
            if not wanted and time.monotonic() < end:
                continue
            if not self._lock.acquire(blocking=False):
                return  # a request has begun, or somebody closes it
            try:
                if over.is_set():
                    return  # a request has come and gone meanwhile; it has a watch of its own
                if wanted:
                    self._give_way()
                else:
                    log.info("no work for %g s: ending the trainer", self._options.idle_seconds)
                    self._end(grace_seconds=CLOSE_SECONDS)
                return
            finally:
                self._lock.release()

    def _wanted(self) -> bool:
        gpu = self._holding
        return gpu is not None and bool(lock.waiting(gpu))

    def _give_way(self) -> None:
        log.info("another trainer waits for %s: ending this one", self._holding)
        self._end(grace_seconds=CLOSE_SECONDS)
