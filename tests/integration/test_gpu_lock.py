"""Several models on one GPU: real trainer processes, real locks, GPUs that are only names."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from babylon_tasks.records.steps import Call, Hyperparameters, Progress, Sample, StepRequest
from workers.gpu import lock as gpu_lock
from workers.gpu import wire
from workers.gpu.client import TrainerOptions, TrainerProcess
from workers.gpu.lock import hold_gpu, waiting
from workers.trainer import __main__ as trainer_main

Make = Callable[..., TrainerProcess]
Start = Callable[[], subprocess.Popen[bytes]]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setenv("TMPDIR", str(tmp_path))


@pytest.fixture
def make() -> Iterator[Make]:
    made: list[TrainerProcess] = []

    def make_one(*gpus: str, idle_seconds: float = 600) -> TrainerProcess:
        made.append(TrainerProcess(TrainerOptions("noop", gpus, gpus[0], 0.2, 100, idle_seconds)))
        return made[-1]

    yield make_one
    for one in made:
        one.close()


@pytest.fixture
def start_holder() -> Iterator[Start]:
    """Starts processes that hold or wait for GPU-1 and never give it back."""
    started: list[subprocess.Popen[bytes]] = []
    program = (
        "import time\nfrom workers.gpu.lock import hold_gpu\n"
        "held = hold_gpu(['GPU-1'], lambda: print('waits', flush=True))\n"
        "print('holds', flush=True)\ntime.sleep(600)\n"
    )

    def start() -> subprocess.Popen[bytes]:
        started.append(subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def said(process: subprocess.Popen[bytes]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().decode().strip()


@pytest.fixture
def ask(tmp_path: Path) -> Callable[[], StepRequest]:
    path = tmp_path / "samples.jsonl"
    path.write_bytes(msgspec.json.encode(Sample("w", "t", 1.0, [Call("s", "u", "r")])) + b"\n")
    return lambda: StepRequest(
        model_name="m", base_model="none", parent=None, samples_path=str(path),
        scratch_dir=str(tmp_path), output_dir=str(tmp_path / "out"), seed=1,
        hyperparameters=Hyperparameters(1e-5, 0, 8, 16, 0.1, 0.3, 100, 100),
    )  # fmt: skip


def until(condition: Callable[[], Any]) -> None:
    """The test's own limit ends what never comes."""
    while not condition():
        time.sleep(0.01)


def ignore(progress: Progress | None) -> None:
    pass


@pytest.mark.parametrize(("models", "steps"), [("AB", 4), ("ABC", 3)])
def test_models_take_turns(make: Make, ask: Any, models: str, steps: int) -> None:
    """Each has a step whenever the others had one, however soon it asks again."""
    order: list[str] = []
    left = dict.fromkeys(models, steps)

    def work(model: str) -> None:
        trainer = make("GPU-1")
        while left[model]:

            def on_beat(progress: Progress | None) -> None:
                if progress == Progress("train", share=0.0):
                    order.append(model)
                    left[model] -= 1
                    # The step lasts until everybody else who has work left has asked for the GPU.
                    others = sum(bool(left[other]) for other in models if other != model)
                    until(lambda: len(waiting("GPU-1")) >= others)

            trainer.step(ask(), on_beat)
        trainer.close()

    threads = [threading.Thread(target=work, args=(model,)) for model in models]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(order) == len(models) * steps
    assert order == order[: len(models)] * steps
    assert sorted(order[: len(models)]) == sorted(models)


def test_an_idle_holder_leaves_for_one_that_waits(make: Make, ask: Any) -> None:
    first, second = make("GPU-1"), make("GPU-1")
    first.step(ask(), ignore)
    assert first.pid is not None
    second.step(ask(), ignore)  # the first would be warm for ten minutes
    assert (first.pid, waiting("GPU-1")) == (None, [])
    first.step(ask(), ignore)
    assert second.pid is None


def test_an_idle_holder_stays_where_nobody_waits(make: Make, ask: Any) -> None:
    alone, other = make("GPU-1"), make("GPU-2")
    alone.step(ask(), ignore)
    pid = alone.pid
    other.step(ask(), ignore)
    time.sleep(2.5)
    assert alone.pid == pid
    alone.step(ask(), ignore)
    assert alone.pid == pid


def test_a_free_gpu_is_taken_where_its_own_is_not(
    make: Make, ask: Any, start_holder: Start
) -> None:
    assert said(start_holder()) == "holds"
    trainer = make("GPU-1", "GPU-2")
    trainer.step(ask(), ignore)
    assert trainer._holding == "GPU-2"
    trainer.close()
    assert trainer._holding is None


def test_whichever_gpu_comes_free_first_is_taken(make: Make, ask: Any, start_holder: Start) -> None:
    holder = start_holder()
    assert said(holder) == "holds"
    idle, waiter = make("GPU-2"), make("GPU-1", "GPU-2")
    idle.step(ask(), ignore)
    waiter.step(ask(), ignore)
    assert (waiter._holding, idle.pid) == ("GPU-2", None)
    assert waiting("GPU-1") == []


def test_a_killed_holder_frees_its_gpu(make: Make, ask: Any, start_holder: Start) -> None:
    holder = start_holder()
    assert said(holder) == "holds"

    def kill(progress: Progress | None) -> None:
        holder.kill()  # at the first sign that the other waits

    trainer = make("GPU-1")
    trainer.step(ask(), kill)
    assert trainer._holding == "GPU-1"


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_waiter_that_is_killed_or_frozen_blocks_nobody(
    start_holder: Start, monkeypatch: pytest.MonkeyPatch, how: signal.Signals
) -> None:
    monkeypatch.setattr(gpu_lock, "STALE_SECONDS", 1.0)
    holder = start_holder()
    assert said(holder) == "holds"
    first = start_holder()
    assert said(first) == "waits"
    os.kill(first.pid, how)

    gpu, lock = hold_gpu(["GPU-1"], holder.kill)  # as soon as it waits, behind the first
    assert gpu == "GPU-1"
    lock.release()


def test_what_the_dead_left_is_removed(
    start_holder: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_lock, "STALE_SECONDS", 0.0)
    monkeypatch.setattr(gpu_lock, "REMOVE_SECONDS", 0.0)
    assert said(start_holder()) == "holds"
    dead = start_holder()
    assert said(dead) == "waits"
    queue = gpu_lock.lock_path("GPU-1").with_suffix(".queue")
    assert len(list(queue.iterdir())) == 1
    dead.kill()
    dead.wait()
    until(lambda: waiting("GPU-1") == [] and not list(queue.iterdir()))


def test_a_worker_that_is_gone_takes_its_waiting_trainer_along(
    make: Make, ask: Any, start_holder: Start
) -> None:
    assert said(start_holder()) == "holds"
    trainer = make("GPU-1")

    def give_up(progress: Progress | None) -> None:
        until(lambda: waiting("GPU-1"))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trainer.step(ask(), give_up)
    assert trainer.pid is None


def test_the_trainer_sees_the_gpu_it_holds_and_no_other(
    monkeypatch: pytest.MonkeyPatch, start_holder: Start
) -> None:
    assert said(start_holder()) == "holds"
    monkeypatch.setenv("BABYLON_GPUS", "GPU-1,GPU-2")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    told: list[Any] = []

    class Answers:
        send = progress = told.append

    gpu, lock = trainer_main._hold_gpu(Answers())  # type: ignore[arg-type]
    assert (gpu, os.environ["CUDA_VISIBLE_DEVICES"]) == ("GPU-2", "GPU-2")
    assert told == [wire.Holding("GPU-2")]
    lock.release()  # type: ignore[attr-defined]


def test_a_pool_process_never_imports_torch() -> None:
    program = "import sys, workers.tasks; sys.exit('torch' in sys.modules)"
    environment = {
        **os.environ,
        "REDIS_URL": "redis://localhost/0",
        "DATABASE_URL": "postgresql:///x",
    }
    subprocess.run([sys.executable, "-c", program], env=environment, check=True)
