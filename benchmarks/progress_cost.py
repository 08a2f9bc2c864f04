"""What the signs of life cost a training step.

    python benchmarks/progress_cost.py [--json] [--rounds 8] [--calls 32]

Two trainer processes on the CPU train the same step in turns, both warm, on the tiny model with
the shipped micro-batch. One tells how far it is, as every trainer does: it counts each micro-batch,
reads the loss once a second, and writes up to four lines a second and phase into a pipe, which
this process reads and decodes. The other tells and counts nothing. The ratios are the medians of
each round's two steps, by the clock and by the trainer's CPU seconds, which other programs disturb
less.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

os.environ.update(
    WANDB_MODE="disabled", HF_HUB_OFFLINE="1", CUDA_VISIBLE_DEVICES="", TQDM_DISABLE="1",
    OMP_NUM_THREADS="1",  # two threads on busy cores wait for each other
)  # fmt: skip
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from recorded_calls import recorded_calls, step_request, write_samples

from babylon_tasks.records.steps import Progress, StepRequest
from workers.gpu import wire
from workers.gpu.client import TrainerOptions, TrainerProcess
from workers.trainer.torch.flops import Passes
from workers.trainer.torch.meter import Meter

_SILENT = """
from workers.trainer import __main__ as trainer

trainer._Answers.progress = lambda self, progress: None
from workers.trainer.bare_art import use_bare_art
use_bare_art()
from workers.trainer.torch.meter import Meter
Meter.begin = lambda self, *, training=False: None
Meter.again = lambda self: None
Meter.add = lambda self, sequences, tokens, loss=None: None
from workers.trainer.torch import gradients
gradients.TELL_SECONDS = float("inf")
trainer.main()
"""
AGENTS = 8


def measure(folder: Path, rounds: int, calls: int) -> dict[str, Any]:
    """Train in turns; the first step of each process is not counted."""
    request = prepare(folder, calls)
    options = TrainerOptions("torch", None, "cpu-0", 10, 900, 900, log_level="ERROR")
    telling, silent = TrainerProcess(options), TrainerProcess(options)
    silent._command = [sys.executable, "-P", "-c", _SILENT, "--log-level", "ERROR"]
    told: list[Progress | None] = []
    try:
        for each in (telling, silent):
            step(each, request, [])
        pairs = []
        for number in range(rounds):
            told.clear()
            if number % 2:
                without, with_ = step(silent, request, []), step(telling, request, told)
            else:
                with_, without = step(telling, request, told), step(silent, request, [])
            pairs.append((with_, without))
    finally:
        telling.close()
        silent.close()
    clock, cpu = (
        [with_[which] / without[which] for with_, without in pairs] for which in (0, 1)
    )  # fmt: skip
    return {
        "ratio": round(statistics.median(clock), 4),
        "ratio_cpu": round(statistics.median(cpu), 4),
        "ratios": [round(each, 4) for each in clock],
        "ratios_cpu": [round(each, 4) for each in cpu],
        "step_seconds": round(statistics.median(without[0] for _, without in pairs), 2),
        "reports": sum(one is not None for one in told),
        "report_microseconds": round(report_microseconds(), 1),
        "rounds": rounds,
    }


def prepare(folder: Path, calls: int) -> StepRequest:
    """Write the model and the samples; in another process, since this one only watches."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        base_model = pool.submit(write_files, folder, calls).result()
    return step_request(folder, base_model)


def write_files(folder: Path, calls: int) -> str:
    """Write the model, and samples of so many calls; return the model's folder."""
    from babylon_tasks.simulation.tiny_model import make_tiny_model
    from workers.trainer.torch.model_files import check_base

    base_model = str(make_tiny_model(folder / "model"))
    chat, _ = check_base(base_model, None)
    write_samples(folder / "samples.jsonl", recorded_calls(chat, 1, AGENTS, calls // AGENTS))
    return base_model


def step(
    trainer: TrainerProcess, request: StepRequest, told: list[Progress | None]
) -> tuple[float, float]:
    """Train one step; return its seconds, and the trainer's CPU seconds."""
    cpu, began = cpu_seconds(trainer.pid), time.monotonic()
    trainer.step(request, told.append)
    return time.monotonic() - began, cpu_seconds(trainer.pid) - cpu


def report_microseconds(reports: int = 20_000) -> float:
    """Return the CPU microseconds to count a micro-batch and write its line; no busy core adds."""
    null = os.open(os.devnull, os.O_WRONLY)

    def write(progress: Progress) -> None:
        os.write(null, wire.encode(progress))

    meter = Meter(reports, reports, Passes(), write)
    meter.begin(training=True)
    began = time.process_time()
    for _ in range(reports):
        meter.add(1, 1, 0.5)
    seconds = time.process_time() - began
    os.close(null)
    return 1e6 * seconds / reports


def cpu_seconds(pid: int | None) -> float:
    """Return the CPU seconds of a process and its threads so far."""
    if pid is None:
        return 0.0
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--rounds", type=int, default=8, help="steps of each kind")
    parser.add_argument("--calls", type=int, default=32, help="of a step, a multiple of 8")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(Path(folder), arguments.rounds, arguments.calls)
    line = (
        "a step of {step_seconds} s with its {reports} reports takes {ratio} times what it takes "
        "without, {ratio_cpu} times in CPU seconds (medians of {rounds} rounds); a report takes "
        "{report_microseconds} CPU microseconds"
    )
    print(json.dumps(figures) if arguments.json else line.format(**figures))


if __name__ == "__main__":
    main()
