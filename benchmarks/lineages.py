"""What many lineages, a large table and a change of turns cost.

    python benchmarks/lineages.py [--json] [--quick] [--only claims|trajectories|turns]
    python benchmarks/lineages.py --only trajectories --trajectories 1000000

Each part has an embedded Postgres of its own.

- *claims*: 20,000 windows, of 1 lineage and of 200. 64 claimers, a process with a connection each,
  do what workers' tasks do, through the same code: take a turn, claim, read, score, commit, sweep;
  then take a turn, claim, read, train, commit. Scorer and trainer only sleep. The two deployments
  take turns, a fifth of the windows each time. The claimers are many more than the cores, so time a
  window is CPU time, of the server and of the claimers; the growth is the median of the rounds.
- *trajectories*: windows of 100 trajectories through produce, claim, score, train and commit, with
  100 thousand rows in the table and with 5 million; the two take turns, a new lineage each time.
- *turns*: two lineages on the tiny model in a real trainer process: a step after one of the other
  lineage, against a step after one of the same, both without the gradient.

`--quick` measures less of everything, and the large table has half a million rows.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import psycopg
from app_rows import load
from lineage_claims import measure_claims, name_of
from own_server import run_server

from babylon_tasks import pipeline
from babylon_tasks.simulation import simulate
from babylon_tasks.simulation.tiny_model import make_tiny_model
from babylon_tasks.work.context import Context
from workers.gpu.client import TrainerOptions, TrainerProcess
from workers.trainer.noop import NoopTrainer

PER_HOUR = 100  # trajectories


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    windows: int
    lineages: int
    claimers: int
    trajectories: tuple[int, int]
    rounds: int
    steps: int


FULL = Size(20_000, 200, 64, (100_000, 5_000_000), 5, 16)
QUICK = Size(2_000, 50, 16, (100_000, 500_000), 2, 8)


# --- trajectories -----------------------------------------------------------------------------


def measure_trajectories(size: Size) -> dict[str, Any]:
    """Take the windows of the last days through the stages, in two tables in turn."""
    figures: dict[str, Any] = {}
    with run_server() as server:
        urls = {rows: server.database(f"rows_{rows}") for rows in size.trajectories}
        seconds: dict[int, list[dict[str, float]]] = {}
        for rows, url in urls.items():
            started = time.perf_counter()
            load(url, rows, datetime.now(UTC), hours=rows // PER_HOUR, steps=1, bulk=True)
            figures[f"{rows}_rows"] = {
                "load_seconds": round(time.perf_counter() - started, 1),
                "gigabytes": round(table_bytes(url) / 1e9, 2),
            }
            seconds[rows] = []
        for number in range(size.rounds + 1):
            for rows, url in urls.items():
                settings = server.settings(url, model_name=f"round-{number}")
                taken = seconds_by_stage(Context.of_deployment(settings, "benchmark"))
                if number:  # the first warms up
                    seconds[rows].append(taken)
    totals = {}
    for rows, rounds in seconds.items():
        medians = {stage: statistics.median(r[stage] for r in rounds) for stage in rounds[0]}
        figures[f"{rows}_rows"] |= {f"{k}_ms_a_window": round(v, 3) for k, v in medians.items()}
        totals[rows] = statistics.median(sum(r.values()) for r in rounds)
    few, many = size.trajectories
    return {**figures, "growth_trajectories": round(totals[many] / totals[few], 2)}


def table_bytes(url: str) -> int:
    """Return the size of the table with its indexes."""
    with psycopg.connect(url) as connection:
        row = connection.execute("SELECT pg_total_relation_size('trajectories')").fetchone()
    assert row is not None
    return int(row[0])


def seconds_by_stage(context: Context) -> dict[str, float]:
    """Take a new primary lineage through all stages; return the milliseconds a window of each."""
    trainer, moments = NoopTrainer(), [time.perf_counter()]
    windows = len(pipeline.produce(context))
    moments.append(time.perf_counter())
    while pipeline.score(context):
        pass
    moments.append(time.perf_counter())
    while pipeline.train(context, trainer):  # type: ignore[arg-type]
        pass
    moments.append(time.perf_counter())
    context.database.close()
    assert windows == context.settings.lookback_hours, windows
    spans = (b - a for a, b in itertools.pairwise(moments))
    stages = ("produce", "score", "train")
    return {stage: span / windows * 1000 for stage, span in zip(stages, spans, strict=True)}


# --- turns ------------------------------------------------------------------------------------


def measure_turns(size: Size) -> dict[str, Any]:
    """Let two lineages on one base model take steps: A A B B A A …"""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    names = [name_of(number) for number in range(2)]
    with run_server() as server, tempfile.TemporaryDirectory() as folder:
        base_model = make_tiny_model(Path(folder) / "tiny")
        url = server.database("turns")
        with psycopg.connect(url) as connection:
            rows = simulate.simulate(size.steps, 4, 1, datetime.now(UTC), odd=False)
            simulate.write(connection, rows)
        settings = server.settings(
            url, base_model=str(base_model), trainer="torch", max_step_tokens=1
        )
        contexts = [
            Context.of_deployment(settings.model_copy(update={"model_name": name}), "benchmark")
            for name in names
        ]
        for context in contexts:
            pipeline.produce(context)
            while pipeline.score(context):
                pass
        options = TrainerOptions("torch", None, "cpu-0", 10, 900, 900, log_level="ERROR")
        trainer = TrainerProcess(options)
        try:
            return turns_of(contexts, trainer, size.steps)
        finally:
            trainer.close()


def turns_of(contexts: list[Context], trainer: TrainerProcess, steps: int) -> dict[str, Any]:
    """Take that many steps of each lineage, two in a row."""
    first = step(contexts[0], trainer)
    step(contexts[1], trainer)
    after_own, after_other = [], []
    for _ in range(steps // 2 - 1):
        for context in contexts:
            after_other.append(step(context, trainer))
            after_own.append(step(context, trainer))
    other, own = statistics.median(after_other), statistics.median(after_own)
    return {
        "first_step_seconds": round(first, 3),
        "step_after_other_lineage_seconds": round(other, 4),
        "step_after_own_lineage_seconds": round(own, 4),
        "turn_seconds": round(max(0.0, other - own), 4),
    }


def step(context: Context, trainer: TrainerProcess) -> float:
    """Train one window; return the wall seconds without the gradient."""
    pid = trainer.pid
    report = pipeline.train(context, trainer)
    assert report is not None
    assert pid in (None, trainer.pid), "the trainer was started again"
    phases = report.result.seconds_by_phase
    return report.seconds - phases["forward_backward"] - phases["optimizer"]


# --- all --------------------------------------------------------------------------------------

PARTS: dict[str, Callable[[Size], dict[str, Any]]] = {
    "claims": lambda size: measure_claims(size.windows, size.lineages, size.claimers, size.rounds),
    "trajectories": measure_trajectories,
    "turns": measure_turns,
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--quick", action="store_true", help="measure less of everything")
    parser.add_argument("--only", choices=PARTS, help="measure this part alone")
    parser.add_argument("--trajectories", type=int, help="rows of the large table")
    options = parser.parse_args()
    size = QUICK if options.quick else FULL
    if options.trajectories:
        size = replace(size, trajectories=(size.trajectories[0], options.trajectories))
    started = time.perf_counter()
    figures: dict[str, Any] = {"cpus": os.cpu_count(), "python": platform.python_version()}
    for name, measure in PARTS.items():
        if options.only in (None, name):
            figures |= measure(size)
    figures["seconds"] = round(time.perf_counter() - started)
    if options.json:
        print(json.dumps(figures))
        return
    for name, value in figures.items():
        if not isinstance(value, dict):
            print(f"{name:36} {value}")
            continue
        print(name)
        for key, part in value.items():
            print(f"  {key:34} {text(part)}")


def text(value: Any) -> str:
    """Write a figure, or several of them by their names, in a line."""
    if isinstance(value, list):
        return f"{min(value)} to {max(value)}"
    if isinstance(value, dict):
        return ", ".join(f"{key} {text(part)}" for key, part in value.items())
    return str(value)


if __name__ == "__main__":
    main()
