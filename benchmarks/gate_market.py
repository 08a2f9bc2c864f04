"""Whether a bad step comes to serve: hours of the market with one sabotaged step in ten.

    python benchmarks/gate_market.py [--seeds 3] [--windows 40] [--agents 48] [--json] [--svg FILE]

Each seed is played twice, with `PUBLISH=gate` and with `PUBLISH=always`: the same hours, the same
sabotage. All that decides is the product's own, on a real Postgres: produce, score, exam, step,
experiment and promotion run as the workers run them, and the endpoint's directory says which
version answers which agent. What is not there is HTTP and Celery; Postgres' clock is moved, an hour
in seconds. In the first tenth of each hour the hour before is scored and trained, then all agents
trade. Steps 5, 15, 25, … are sabotaged: a learning rate that is 100 times too high; negated
rewards; rewards for calls that break; shuffled rewards; each without the trust region, as by a
person who changed these settings.

Printed for each run: the expected P&L of the version that serves after each window, over markets
that nobody plays, exactly (`simulation/game/look.py`); and for how many windows in a row it was
lower than its best so far by more than the standard error of that difference (over the markets).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import loop  # sets the environment for what is imported below
import msgspec
import torch
from own_server import run_server
from plots import COLOURS, Line, Panel, line_charts
from recorded_calls import write_samples

from babylon_tasks import pipeline
from babylon_tasks.checkpoints import files as checkpoint_files
from babylon_tasks.records.lineages import Lineage
from babylon_tasks.records.steps import Logprobs, Progress, Sample, StepRequest, StepResult
from babylon_tasks.records.trainer_requests import EvaluateRequest, GenerateRequest
from babylon_tasks.records.windows import window_id_at
from babylon_tasks.settings import Settings
from babylon_tasks.simulation.game.hour import Answer, Question, play_hour
from babylon_tasks.simulation.game.look import Look, fresh_markets, look, questions
from babylon_tasks.simulation.game.market import Rules
from babylon_tasks.simulation.game.population import POPULATION, players
from babylon_tasks.simulation.game.prompts import read_answer
from babylon_tasks.simulation.game.record import record
from babylon_tasks.simulation.tiny_model import make_tiny_model
from babylon_tasks.simulation.values import seeded
from babylon_tasks.simulation.write import write
from babylon_tasks.store import calls, heads, steps
from babylon_tasks.store.calls import Answers, Assigned
from babylon_tasks.store.database import Connection, Database
from babylon_tasks.work.context import Context
from workers.serve.backend import Version
from workers.serve.directory import Directory, read
from workers.trainer.torch.trainer import TorchTrainer

RULES = Rules(lure_hours=0)  # what pays does not change: a fall is the version's
LOOKED_AT = 128  # markets
EVERY, FIRST = 10, 5  # of ten steps, the fifth is sabotaged
TOO_HIGH = 100.0
OWN_RATE = 5e-4  # about what the size of the tiny model gives
_PROCESSED, _PLAYED = timedelta(minutes=11), timedelta(minutes=12)

OnBeat = Callable[[Progress], None]


# --- the steps ---------------------------------------------------------------------------------


def shuffled(samples: list[Sample], step: int) -> list[float]:
    """Return the rewards in another order."""
    rewards = [sample.reward for sample in samples]
    seeded("sabotage", step).shuffle(rewards)
    return rewards


def negated(samples: list[Sample], step: int) -> list[float]:
    """Return rewards for the worst."""
    return [-sample.reward for sample in samples]


def failing(samples: list[Sample], step: int) -> list[float]:
    """Return rewards for calls that broke, and for nothing else."""
    return [
        float(any(read_answer(call.response) is None for call in sample.calls))
        for sample in samples
    ]


def honest(samples: list[Sample], step: int) -> list[float]:
    """Return the rewards as they are."""
    return [sample.reward for sample in samples]


SABOTAGE = {
    "learning rate x 100": (honest, TOO_HIGH),
    "negated rewards": (negated, 10.0),
    "failing is rewarded": (failing, 10.0),
    "shuffled rewards": (shuffled, 10.0),
}


def sabotage_of(step: int) -> str | None:
    """Return what is wrong with a step of this number, if anything is."""
    if step % EVERY != FIRST:
        return None
    return list(SABOTAGE)[step // EVERY % len(SABOTAGE)]


class SabotagedTrainer(TorchTrainer):
    """Trains one step in ten wrongly; asked as the trainer process is."""

    def step(self, request: StepRequest, on_progress: OnBeat) -> StepResult:
        """Run one step; its number is its seed."""
        name = sabotage_of(request.seed)
        if name is not None:
            rewards, times = SABOTAGE[name]
            lines = Path(request.samples_path).read_bytes().splitlines()
            samples = [msgspec.json.decode(line, type=Sample) for line in lines]
            each = zip(samples, rewards(samples, request.seed), strict=True)
            spoiled = [msgspec.structs.replace(sample, reward=reward) for sample, reward in each]
            write_samples(Path(request.samples_path), spoiled)
            wanted = msgspec.structs.replace(
                request.hyperparameters, learning_rate=times * OWN_RATE, max_policy_change=None
            )
            request = msgspec.structs.replace(request, hyperparameters=wanted)
        return super().step(request, on_progress)

    def close(self) -> None:
        """Keep the model: there is no process behind it."""


# --- the market --------------------------------------------------------------------------------


class MovedDatabase(Database):
    """A database whose clock is moved by `offset`."""

    offset = timedelta()

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """A transaction at the moved time."""
        with super().transaction() as tx:
            moved = f"{self.offset.total_seconds()} seconds"
            tx.execute("SELECT set_config('rl.clock_offset', %s, true)", [moved])
            yield tx


@dataclass
class Record:
    """What became of a run: looks at the version that serves, before the first window and after."""

    seed: int
    publish: str
    looks: list[Look] = field(default_factory=list)
    served: list[int] = field(default_factory=list)
    seconds: float = 0.0
    exams: dict[int, str] = field(default_factory=dict)
    experiments: list[dict[str, Any]] = field(default_factory=list)
    exam_seconds: float | None = None  # median
    step_seconds: float | None = None

    def lower_for(self) -> int:
        """Return for how many windows in a row, at most, it was lower than its best so far."""
        longest = now = 0
        best = self.looks[0]
        for each in self.looks:
            if each.policy > best.policy:
                best = each
            losses = [
                before - after for before, after in zip(best.by_market, each.by_market, strict=True)
            ]
            error = statistics.stdev(losses) / len(losses) ** 0.5
            now = now + 1 if statistics.fmean(losses) > error else 0
            longest = max(longest, now)
        return longest

    def as_json(self) -> dict[str, Any]:
        """Return the record for a program."""
        return {
            "seed": self.seed,
            "publish": self.publish,
            "served_pnl": [round(each.policy, 3) for each in self.looks],
            "best_pnl": round(self.looks[0].oracle, 3),
            "guessing_pnl": round(self.looks[0].noise, 3),
            "served_step": self.served,
            "lower_for_windows": self.lower_for(),
            "well_formed": [round(each.well_formed, 3) for each in self.looks],
            "seconds": round(self.seconds, 1),
            "exams": self.exams,
            "experiments": self.experiments,
            "exam_seconds": self.exam_seconds,
            "step_seconds": self.step_seconds,
        }


class Market:
    """One run: hours in which the agents ask what the endpoint's directory says."""

    def __init__(self, context: Context, trainer: SabotagedTrainer, agents: int, run: Record):
        self._context, self._trainer, self._run = context, trainer, run
        self._players = players(POPULATION, agents)
        self._directory = Directory()
        self._markets = fresh_markets(run.seed, 0, RULES, LOOKED_AT)
        self._questions = Path(context.settings.checkpoint_store).parent / "look.jsonl"
        write_samples(self._questions, questions(self._markets))
        self._looks: dict[int, Look] = {}

    def play(self, windows: int) -> None:
        """Play so many hours; look at what serves before the first one and after each."""
        database = self._context.database
        assert isinstance(database, MovedDatabase)
        began = datetime.now(UTC)
        first = began.replace(minute=0, second=0, microsecond=0) + timedelta(hours=2)
        for number in range(windows + 1):
            start = first + timedelta(hours=number)
            if number:
                database.offset = start + _PROCESSED - datetime.now(UTC)
                self._work()
            self._look()
            if number < windows:
                database.offset = start + _PLAYED - datetime.now(UTC)
                self._hour(number, start)

    def _work(self) -> None:
        """Do what the workers do with the hour before."""
        pipeline.produce(self._context)
        pipeline.score(self._context)
        pipeline.publish(self._context)
        pipeline.train(self._context, self._trainer)
        pipeline.publish(self._context)

    def _hour(self, number: int, start: datetime) -> None:
        with self._context.database.transaction() as tx:
            self._directory = read(tx, self._context.lineage, self._directory)
        assigned: dict[Assigned, Answers] = {}

        def ask(asked: Sequence[Question]) -> list[Answer]:
            answers: list[Answer | None] = [None] * len(asked)
            by_version: dict[Version, list[int]] = defaultdict(list)
            for place, question in enumerate(asked):
                version = self._directory.find(self._context.lineage.name, question.agent)
                by_version[version].append(place)
                key = Assigned(version.lineage, window_id_at(start), question.agent, version.step)
                assigned.setdefault(key, Answers(0, start, start)).count += 1
            for version, places in by_version.items():
                said = self._ask(version, [asked[place] for place in places], number)
                for place, answer in zip(places, said, strict=True):
                    answers[place] = answer
            return [answer for answer in answers if answer is not None]

        hour = play_hour(self._run.seed, number, RULES, self._players, ask)
        with self._context.database.transaction() as tx:
            write(tx, [record(hour, start.replace(tzinfo=None), self._run.seed)])
            calls.add_assignments(tx, assigned)

    def _ask(self, version: Version, asked: Sequence[Question], number: int) -> list[Answer]:
        name = self._context.lineage.name
        request = GenerateRequest(
            model_name=name, base_model=self._context.settings.base_model,
            checkpoint=_folder(version.checkpoint), prompts=[each.messages for each in asked],
            max_tokens=loop.MAX_ANSWER_TOKENS, temperature=1.0,
            seed=self._run.seed * 10_000 + number,
        )  # fmt: skip
        found = self._trainer.generate(request, lambda progress: None).generations
        return [
            Answer(one.text, f"{name}@{version.step}", Logprobs(one.token_ids, one.logprobs), name,
                   one.finish_reason)
            for (one,) in found
        ]  # fmt: skip

    def _look(self) -> None:
        name = self._context.lineage.name
        with self._context.database.transaction() as tx:
            head = heads.read(tx, name)
            step = steps.read(tx, name, head.published_step) if head else None
        number = step.step if step else 0
        if number not in self._looks:
            request = EvaluateRequest(
                name, self._context.settings.base_model,
                _folder(step.checkpoint) if step else None, str(self._questions), 4096, 16_384,
            )  # fmt: skip
            found = self._trainer.evaluate(request, lambda progress: None).trajectories
            self._looks[number] = look(self._markets, [one.logprob for one in found])
        self._run.looks.append(self._looks[number])
        self._run.served.append(number)
        print(
            f"seed {self._run.seed}, {self._run.publish}, window {len(self._run.looks) - 1}: "
            f"step {number} serves, ${self._looks[number].policy:.2f} a decision",
            file=sys.stderr, flush=True,
        )  # fmt: skip


def _folder(checkpoint: str | None) -> str | None:
    return str(checkpoint_files.open_local(checkpoint)) if checkpoint else None


# --- the runs ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Order:
    """A run to play, and where."""

    seed: int
    publish: str
    windows: int
    agents: int
    url: str
    model: Path
    folder: Path


def play(order: Order) -> Record:
    """Play a run, in a process of its own."""
    torch.set_num_threads(1)
    started = time.monotonic()
    settings = Settings(
        database_url=order.url,  # type: ignore[arg-type]
        train_rl_local=True,
        trainer="torch",
        base_model=str(order.model),
        checkpoint_store=str(order.folder / "checkpoints"),
        publish=order.publish,  # type: ignore[arg-type]
    )
    order.folder.mkdir(parents=True)
    context = Context(MovedDatabase(order.url), settings, "market", Lineage.of_deployment(settings))
    run = Record(order.seed, order.publish)
    Market(context, SabotagedTrainer("cpu-0"), order.agents, run).play(order.windows)
    run.seconds = time.monotonic() - started
    with context.database.transaction() as tx:
        rows = tx.execute("SELECT step, state, reason FROM rl.exams ORDER BY step").fetchall()
        run.exams = {row["step"]: f"{row['state']}: {row['reason']}" for row in rows}
        run.experiments = tx.execute(
            "SELECT step, served_step, state, reason FROM rl.experiments ORDER BY id"
        ).fetchall()
        (row,) = tx.execute(
            """SELECT (SELECT percentile_cont(0.5) WITHIN GROUP (ORDER BY seconds) FROM rl.exams)
                          AS exam_seconds,
                      percentile_cont(0.5) WITHIN GROUP (ORDER BY total) AS step_seconds
                 FROM (SELECT (SELECT sum(e.value::float8) FROM jsonb_each_text(seconds) e) AS total
                         FROM rl.steps) s"""
        ).fetchall()
        run.exam_seconds, run.step_seconds = row["exam_seconds"], row["step_seconds"]
    context.database.close()
    return run


def play_all(seeds: int, windows: int, agents: int, first_seed: int) -> list[Record]:
    """Play every run, two at a time."""
    with tempfile.TemporaryDirectory(prefix="babylon-market-") as temporary, run_server() as server:
        folder = Path(temporary)
        model = make_tiny_model(folder / "tiny")
        orders = [
            Order(seed, publish, windows, agents, server.database(f"{publish}_{seed}"), model,
                  folder / f"{publish}-{seed}")
            for seed in range(first_seed, first_seed + seeds)
            for publish in ("gate", "always")
        ]  # fmt: skip
        with ProcessPoolExecutor(min(2, os.cpu_count() or 1), get_context("spawn")) as pool:
            return list(pool.map(play, orders))


def draw(runs: Sequence[Record]) -> str:
    """Draw what the served version earns, with the gate and without it, as a share of the best."""
    panels = []
    for publish in ("gate", "always"):
        chosen = [run for run in runs if run.publish == publish]
        lines = [
            Line([each.policy / each.oracle for each in run.looks], COLOURS[n % len(COLOURS)],
                 f"seed {run.seed}", thick=True)
            for n, run in enumerate(chosen)
        ]  # fmt: skip
        first = chosen[0].looks[0]
        panels.append(
            Panel(f"PUBLISH={publish}: P&L of what serves, best possible = 1", lines,
                  [("guessing", first.noise / first.oracle)], low=-0.5)
        )  # fmt: skip
    return line_charts(panels)


def main() -> None:
    """Play, print and draw."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=101, help="below 100: for development")
    parser.add_argument("--windows", type=int, default=40)
    parser.add_argument("--agents", type=int, default=48, help="that the endpoint answers")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--svg", type=Path)
    options = parser.parse_args()
    runs = play_all(options.seeds, options.windows, options.agents, options.first_seed)
    if options.svg:
        options.svg.write_text(draw(runs))
    if options.json:
        print(json.dumps([run.as_json() for run in runs], indent=1))
        return
    for run in runs:
        print(
            f"seed {run.seed}, PUBLISH={run.publish}: ${run.looks[0].policy:.2f} to "
            f"${run.looks[-1].policy:.2f} a decision (best possible ${run.looks[-1].oracle:.2f}), "
            f"lower than its best for {run.lower_for()} windows in a row at most; "
            f"{run.seconds:.0f} s"
        )


if __name__ == "__main__":
    sys.exit(main())
