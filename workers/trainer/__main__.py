"""The trainer process: `python -m workers.trainer --kind torch|serverless|noop`.

It reads requests from stdin and answers on what was stdout when it started; see `wire.py`. The
end of stdin ends it at once, even in the middle of a request, so that a worker that is killed takes
its trainer with it.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import gc
import logging
import os
import queue
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from typing import NoReturn, Protocol, get_args

from babylon_tasks.errors import BabylonError, Retryable, UserError
from babylon_tasks.logs import LogFormat, bound, configure_logging
from babylon_tasks.records.steps import Progress, StepRequest, StepResult
from babylon_tasks.records.trainer_requests import (
    EvaluateRequest,
    EvaluateResult,
    GenerateRequest,
    GenerateResult,
)
from babylon_tasks.text import one_line, place_of
from workers.gpu import wire
from workers.trainer.bare_art import use_bare_art
from workers.trainer.bars import need_no_semaphore

log = logging.getLogger("workers.trainer")

PROGRESS_SECONDS = 0.25  # progress of one phase is not sent more often than this

# At DEBUG they log what is sent, prompts and headers.
_TALKATIVE = ("openai", "httpx", "httpcore")


OnProgress = Callable[[Progress], None]


class _Trainer(Protocol):
    def step(self, request: StepRequest, on_progress: OnProgress) -> StepResult: ...

    def evaluate(self, request: EvaluateRequest, on_progress: OnProgress) -> EvaluateResult: ...

    def generate(self, request: GenerateRequest, on_progress: OnProgress) -> GenerateResult: ...


class _Answers:
    """The way back to the worker: the file descriptor that stdout was."""

    def __init__(self) -> None:
        self._fd = os.dup(1)
        os.dup2(2, 1)  # ART and its libraries print; their lines belong in the log
        self._phase = ""
        self._sent_at = 0.0

    def send(self, answer: wire.Answer) -> None:
        data = wire.encode(answer)
        try:
            while data:
                data = data[os.write(self._fd, data) :]
        except BrokenPipeError:
            os._exit(0)  # nobody is there to hear it

    def begin(self) -> None:
        """Begin a request: its first sign of life is sent."""
        self._phase = ""

    def progress(self, progress: Progress) -> None:
        """Send a sign of life, unless one of this phase has just been sent."""
        now = time.monotonic()
        last = progress.total > 0 and progress.done == progress.total
        must = progress.job is not None or progress.phase != self._phase
        if must or last or now - self._sent_at >= PROGRESS_SECONDS:
            self._phase, self._sent_at = progress.phase, now
            self.send(progress)


def _read_requests(requests: queue.Queue[bytes]) -> None:
    for line in sys.stdin.buffer:
        requests.put(line)
    os._exit(0)  # not sys.exit: the main thread may be deep in a kernel


def _prepare_environment() -> None:
    """Set what ART and its libraries read when they are imported.

    Nothing of it depends on the request: the process serves others after it.
    """
    os.environ.pop("WANDB_API_KEY", None)  # ART would open a run of its own
    os.environ["WANDB_MODE"] = "disabled"
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # no network at import
    os.environ["TOKENIZERS_PARALLELISM"] = "true"  # nothing here forks
    os.environ["TQDM_DISABLE"] = "1"
    # Each micro-batch has a shape of its own: without it free memory falls to pieces.
    if "PYTORCH_CUDA_ALLOC_CONF" not in os.environ:  # the setting's older name
        os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
    # On a CPU that others use too, threads that spin while they wait cost up to ten times.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def _hold_gpu(answers: _Answers) -> tuple[str, object]:
    """Return the GPU that this process may use from now on, and its lock; no GPU, no lock.

    Raises:
        UserError: The folder for locks cannot be written, or is another user's.
    """
    gpus = [gpu for gpu in os.environ.get("BABYLON_GPUS", "").split(",") if gpu]
    if not gpus:
        return "cpu", None  # processes share a CPU well enough
    from workers.gpu.lock import hold_gpu

    try:
        gpu, lock = hold_gpu(gpus, lambda: answers.progress(Progress("load", share=0.0)))
    except OSError as error:
        raise UserError(f"no GPU can be locked: {error.strerror or error}") from error
    os.environ["CUDA_VISIBLE_DEVICES"] = gpu  # CUDA reads it when it starts
    answers.send(wire.Holding(gpu))
    return gpu, lock


@contextlib.contextmanager
def _importing() -> Iterator[None]:
    """Import packages without the garbage collector: it looks for garbage where none is.

    A sixth of the time. What is imported is never looked at again.

    Raises:
        UserError: A package is not installed, broken, or of another release.
    """
    gc.disable()
    try:
        yield
    except ModuleNotFoundError:
        raise
    except (ImportError, OSError) as error:
        raise UserError(
            f"the training packages cannot be imported ({error}): "
            "pip install --force-reinstall 'babylon-tasks[train]'"
        ) from error
    finally:
        gc.freeze()
        gc.enable()


def _torch_trainer(slot: str, answers: _Answers) -> _Trainer:
    _prepare_environment()
    answers.progress(Progress("load", share=0.0))
    with _importing():
        need_no_semaphore()
        use_bare_art()
        from workers.trainer.torch.trainer import TorchTrainer
    return TorchTrainer(slot)


def _serverless_trainer() -> _Trainer:
    key = os.environ.get("WANDB_API_KEY", "")
    _prepare_environment()  # takes the key away
    with _importing():
        need_no_semaphore()
        use_bare_art()
        from workers.trainer.wandb.trainer import ServerlessTrainer

    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.WARNING)
    return ServerlessTrainer(key)


def _not_installed(error: ModuleNotFoundError, kind: str) -> UserError:
    extra = "judge" if kind == "serverless" else "train"
    package, _, module = (error.name or "a package").partition(".")
    if package == "art" and module:
        return UserError(
            f"ART has no {error.name}, it is of another release: "
            f"pip install --force-reinstall 'babylon-tasks[{extra}]'"
        )
    name = {"art": "ART"}.get(package, package)
    return UserError(f"{name} is not installed: pip install 'babylon-tasks[{extra}]'")


def _fault(error: Exception, request: wire.Request) -> BabylonError:
    """Nobody's data is at fault where the disk is full."""
    first_line = str(error).strip().partition("\n")[0]
    # Not by errno: what writes weights raises errors of its own.
    if os.strerror(errno.ENOSPC) in first_line:
        folder = request.scratch_dir if isinstance(request, StepRequest) else tempfile.gettempdir()
        return UserError(f"no space left for {folder}: free some, or set TMPDIR")
    what = f"{type(error).__name__}: {one_line(first_line, 1500)}"
    return Retryable(f"the trainer failed: {what} ({place_of(error)})")


def _make_trainer(kind: str, slot: str, answers: _Answers) -> _Trainer:
    if kind == "torch":
        return _torch_trainer(slot, answers)
    if kind == "serverless":
        return _serverless_trainer()
    from workers.trainer.noop import NoopTrainer

    return NoopTrainer()


def _result(trainer: _Trainer, request: wire.Request, on_progress: OnProgress) -> wire.Result:
    match request:
        case StepRequest():
            return trainer.step(request, on_progress)
        case EvaluateRequest():
            return trainer.evaluate(request, on_progress)
        case GenerateRequest():
            return trainer.generate(request, on_progress)


def _serve(kind: str, answers: _Answers, requests: queue.Queue[bytes]) -> NoReturn:
    held: tuple[str, object] | None = None
    trainer: _Trainer | None = None

    def tell(progress: Progress) -> None:
        answers.progress(progress)
        if progress.job is not None and requests.get() != wire.NOTED:
            raise Retryable("the worker did not note the job")

    while True:
        request = wire.decode_request(requests.get())
        answers.begin()
        step = request.seed if isinstance(request, StepRequest) else None
        with bound(lineage=request.model_name, step=step):
            try:
                held = held or _hold_gpu(answers)
                trainer = trainer or _make_trainer(kind, held[0], answers)
                answer: wire.Answer = _result(trainer, request, tell)
            except BabylonError as error:
                answer = wire.answer_error(error)
            except ModuleNotFoundError as error:  # ART imports some packages late
                answer = wire.answer_error(_not_installed(error, kind))
            except Exception as error:
                # A fault of the program or of CUDA: what is in memory cannot be trusted any more.
                log.exception("a %s failed", type(request).__name__)
                answers.send(wire.answer_error(_fault(error, request)))
                logging.shutdown()
                os._exit(1)  # sys.exit would wait for the thread that reads stdin
        answers.send(answer)


def main() -> None:
    """Answer requests until stdin ends."""
    parser = argparse.ArgumentParser(prog="python -m workers.trainer", description=__doc__)
    parser.add_argument("--kind", choices=["torch", "serverless", "noop"], default="torch")
    parser.add_argument("--log-level", default="INFO")
    parser.add_argument("--log-format", choices=get_args(LogFormat), default="console")
    arguments = parser.parse_args()
    answers = _Answers()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the group; the worker decides
    configure_logging(arguments.log_level, arguments.log_format)
    requests: queue.Queue[bytes] = queue.Queue()
    answers.send(wire.Ready())
    threading.Thread(target=_read_requests, args=(requests,), daemon=True).start()
    _serve(arguments.kind, answers, requests)


if __name__ == "__main__":
    main()
