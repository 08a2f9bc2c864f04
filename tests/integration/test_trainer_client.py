"""The worker's end of the trainer process: deaths, stalls, idleness, and what is passed on."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("peft")
pytest.importorskip("art")
from babylon_tasks.errors import CheckpointUnreadable, Final, Retryable, TrainerDied, UserError
from babylon_tasks.records.steps import Progress
from tests.unit.tiny import make_request, two_sided
from workers.gpu.client import TrainerOptions, TrainerProcess
from workers.gpu.lock import hold_gpu, lock_path

Make = Callable[..., TrainerProcess]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # a tiny model gains nothing from more
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # the GPU locks
    made: list[TrainerProcess] = []

    def make_one(
        kind: str = "noop", script: str | None = None, slot: str = "cpu-0", **limits: float
    ) -> TrainerProcess:
        limits = {
            "heartbeat_seconds": 0.2, "stall_seconds": 30, "idle_seconds": 60, **limits,
        }  # fmt: skip
        gpus = None if slot.startswith("cpu") else [slot]
        one = TrainerProcess(TrainerOptions(kind, gpus, slot, **limits))
        if script is not None:
            path = tmp_path / "fake.py"
            path.write_text(
                "import sys, time, os\ndef say(line): print(line, flush=True)\n"
                'say(\'{"type":"ready"}\')\nfor line in sys.stdin:\n'
                + "".join(f"    {statement}\n" for statement in script.split("\n"))
            )
            one._command = [sys.executable, str(path)]
        made.append(one)
        return one

    yield make_one
    for one in made:
        one.close()


@pytest.fixture
def request_(tmp_path: Path) -> Any:
    return make_request(tmp_path, "none", two_sided())


def ignore(progress: Progress | None) -> None:
    pass


def gone(pid: int, seconds: float = 5) -> bool:
    """Whether the process ends in time (one of ours, reaped or not)."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
            threads = len(list(Path(f"/proc/{pid}/task").iterdir()))
        except FileNotFoundError:
            return True
        if state == "Z" and threads == 1:  # its first thread alone may be a zombie before
            return True
        time.sleep(0.02)
    return False


def test_a_step_gives_a_result_and_the_process_stays_warm(make: Make, request_: Any) -> None:
    trainer, beats = make(), []
    assert trainer.pid is None
    result = trainer.step(request_, beats.append)
    assert (result.sequences, result.device, result.metrics) == (16, "none", {"trajectories": 8.0})
    assert [(b.phase, b.done, b.share) for b in beats if b] == [
        ("train", 0, 0.0),
        ("train", 8, 1.0),
    ]
    assert (Path(request_.output_dir) / "trainer_state.json").is_file()
    pid = trainer.pid
    trainer.step(request_, ignore)
    assert trainer.pid == pid is not None
    trainer.close()
    trainer.close()
    assert trainer.pid is None
    assert gone(pid)


def test_on_beat_is_called_while_the_trainer_is_silent(make: Make, request_: Any) -> None:
    trainer = make(script="time.sleep(30)", heartbeat_seconds=0.05, stall_seconds=1.0)
    beats: list[Any] = []
    with pytest.raises(TrainerDied, match=r"no sign of life for 1 s in phase start"):
        trainer.step(request_, beats.append)
    assert beats.count(None) >= 5
    assert trainer.pid is None


def test_a_stall_names_the_phase_and_kills(make: Make, request_: Any) -> None:
    trainer = make(script='say(\'{"type":"progress","phase":"train"}\')\ntime.sleep(30)')
    pids: list[Any] = []

    def begun(progress: Progress | None) -> None:
        pids.append(trainer.pid)
        if progress is not None:  # however long the start took
            trainer._options = replace(trainer._options, stall_seconds=0.5)

    with pytest.raises(TrainerDied, match="in phase train"):
        trainer.step(request_, begun)
    assert gone(pids[0])


def test_what_on_beat_raises_ends_the_process_and_is_passed_on(make: Make, request_: Any) -> None:
    trainer, pids = make(script="time.sleep(30)"), []

    def lost(progress: Progress | None) -> None:
        pids.append(trainer.pid)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trainer.step(request_, lost)
    assert gone(pids[0])


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        ("os._exit(3)", "exit code 3"),
        ("os.kill(os.getpid(), 9)", r"ended by SIGKILL \(out of memory\?\)"),
        ("say('Segmentation fault')", "cannot be read"),
        ("os.write(1, b'\\xff\\n')", "cannot be read"),
        ("say('{}')", "cannot be read"),
    ],
)
def test_a_trainer_that_dies_or_babbles(
    make: Make, request_: Any, statement: str, words: str
) -> None:
    trainer = make(script=statement)
    for _ in range(2):  # it is started again at the next step
        with pytest.raises(TrainerDied, match=words):
            trainer.step(request_, ignore)


@pytest.mark.parametrize(
    ("kind", "error", "warm"),
    [
        ("final", Final, True),
        ("user", UserError, True),
        ("checkpoint", CheckpointUnreadable, True),
        ("retryable", Retryable, False),
    ],
)
def test_errors_keep_their_kind(
    make: Make, request_: Any, kind: str, error: type[Exception], warm: bool
) -> None:
    trainer = make(script=f'say(\'{{"type":"error","kind":"{kind}","message":"do this"}}\')')
    with pytest.raises(error, match=r"^do this$"):
        trainer.step(request_, ignore)
    assert (trainer.pid is not None) == warm


def test_a_missing_parent_is_told_by_the_real_process(make: Make, request_: Any) -> None:
    import msgspec

    trainer = make()
    with pytest.raises(CheckpointUnreadable, match="no such folder"):
        trainer.step(msgspec.structs.replace(request_, parent="/nowhere"), ignore)
    assert trainer.step(request_, ignore).sequences == 16


def test_a_missing_package_is_named(make: Make, request_: Any) -> None:
    trainer = make("torch")
    program = "import sys; sys.modules['art'] = None\n"
    program += "from workers.trainer.__main__ import main; main()"
    trainer._command = [sys.executable, "-c", program]
    with pytest.raises(UserError, match=r"^ART is not installed: pip install"):
        trainer.step(request_, ignore)


def test_a_release_of_art_without_a_module_that_a_step_uses_is_named(
    make: Make, request_: Any
) -> None:
    trainer = make("torch")
    program = "import sys; sys.modules['art.loss'] = None\n"
    program += "from workers.trainer.__main__ import main; main()"
    trainer._command = [sys.executable, "-c", program]
    with pytest.raises(UserError, match=r"^ART has no art.loss, it is of another release: pip"):
        trainer.step(request_, ignore)


def test_a_fault_of_the_program_is_retryable_and_ends_the_process(
    make: Make, request_: Any
) -> None:
    Path(request_.samples_path).write_text("not json")
    trainer = make()
    with pytest.raises(Retryable, match="the trainer failed: DecodeError"):
        trainer.step(request_, ignore)
    assert trainer.pid is None


def test_a_full_disk_is_nobodys_fault(make: Make, request_: Any) -> None:
    Path(request_.output_dir).mkdir(parents=True)
    Path(request_.output_dir, "trainer_state.json").symlink_to("/dev/full")
    with pytest.raises(UserError, match=r"no space left .* set TMPDIR"):
        make().step(request_, ignore)


def test_a_trainer_that_died_between_steps_is_started_again(make: Make, request_: Any) -> None:
    trainer = make()
    trainer.step(request_, ignore)
    pid = trainer.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    assert gone(pid)
    trainer.step(request_, ignore)
    assert trainer.pid != pid


def test_an_idle_trainer_is_ended_and_started_again(make: Make, request_: Any) -> None:
    trainer, pids = make(idle_seconds=0.3), list[Any]()
    trainer.step(request_, lambda progress: pids.append(trainer.pid))
    assert pids
    assert gone(pids[0])
    while trainer.pid is not None:  # the test's own limit ends what never comes
        time.sleep(0.01)
    trainer.step(request_, ignore)
    assert trainer.pid not in pids


def test_closing_the_pipe_ends_a_trainer_in_the_middle_of_its_work(
    make: Make, request_: Any, tmp_path: Path
) -> None:
    """Even while its main thread waits for a GPU that another process holds."""
    _, held = hold_gpu(["GPU-1"], lambda: None)
    assert lock_path("GPU-1").is_relative_to(tmp_path)
    trainer, seen = make("torch", slot="GPU-1"), []

    def close_pipe(progress: Progress | None) -> None:
        if progress is not None:  # "load": it waits
            seen.append((trainer.pid, progress.phase))
            trainer._process._popen.stdin.close()

    with pytest.raises(TrainerDied, match="exit code 0"):
        trainer.step(request_, close_pipe)
    assert seen[0][1] == "load"
    held.release()
