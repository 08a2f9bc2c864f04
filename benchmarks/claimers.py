"""Processes that claim windows of many lineages at once, through the code that workers run."""

from __future__ import annotations

import asyncio
import ctypes
import logging
import multiprocessing
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import psutil
import psycopg

from babylon_tasks import pipeline
from babylon_tasks.pipeline import SCORE_BATCH
from babylon_tasks.records.scores import Score
from babylon_tasks.records.steps import Progress, StepRequest, StepResult
from babylon_tasks.scoring.heuristic import Heuristic
from babylon_tasks.scoring.registry import WITHOUT_JUDGE
from babylon_tasks.scoring.scorer import Group
from babylon_tasks.settings import Settings
from babylon_tasks.store.lineages import Stage
from babylon_tasks.work.fleet import Fleet
from workers.queues import ENOUGH
from workers.trainer.noop import NoopTrainer

_FORK = multiprocessing.get_context("fork")  # 64 processes in a moment, with all modules
_BELL_SECONDS = 2.0  # a claimer that found nothing looks again after so long, or when a bell rings
_LOOK_SECONDS = 0.1
_STAGES: tuple[Stage, ...] = ("score", "train")  # an order to work is an index of it
_REST, _END = -1, -2


class SleepingScorer(Heuristic):
    """Scores as the heuristic does, after a sleep."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    async def score(self, group: Group) -> list[Score]:
        await asyncio.sleep(self._seconds)
        return await super().score(group)


class SleepingTrainer(NoopTrainer):
    """Trains nothing, after a sleep."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def step(self, request: StepRequest, on_beat: Callable[[Progress], None]) -> StepResult:
        time.sleep(self._seconds)
        return super().step(request, on_beat)

    def close(self) -> None:
        pass


@dataclass
class Turn:
    """What one claim got: so many windows of a lineage, at a moment."""

    at: float
    stage: Stage
    lineage: str
    windows: int


class Crew:
    """So many claimers, a process with a connection each; they rest until `work` is called."""

    def __init__(
        self, settings: Settings, claimers: int, sleep_seconds: Mapping[Stage, float]
    ) -> None:
        self._settings, self._sleep_seconds = settings, sleep_seconds
        self._order = _FORK.Value(ctypes.c_int, _REST)
        self._busy = _FORK.Value(ctypes.c_int, claimers)
        self._bell = _FORK.Semaphore(0)
        self._claimers = []
        for number in range(claimers):
            ours, theirs = _FORK.Pipe(duplex=False)
            process = _FORK.Process(target=self._claim, args=(number, theirs), daemon=True)
            process.start()
            theirs.close()
            self._claimers.append((process, ours))
        self._wait_until_idle()

    def work(self, stage: Stage, down_to: int = 0) -> int:
        """Work until no more than so many windows wait for the stage; return how many moved on."""
        before = self._count(stage)
        self._give(_STAGES.index(stage))
        while self._count(stage) > down_to:
            time.sleep(_LOOK_SECONDS)
        self._give(_REST)
        self._wait_until_idle()
        return before - self._count(stage)

    def cpu_seconds(self) -> float:
        """Return the CPU seconds of all claimers."""
        return sum(sum(psutil.Process(each.pid).cpu_times()[:2]) for each, _ in self._claimers)

    def close(self) -> list[Turn]:
        """End the claimers; return all turns in their order."""
        self._give(_END)
        turns: list[Turn] = []
        for process, pipe in self._claimers:
            turns += pipe.recv()
            process.join()
        return sorted(turns, key=lambda turn: turn.at)

    def _give(self, order: int) -> None:
        with self._busy.get_lock():
            self._order.value = order
        for _ in self._claimers:
            self._bell.release()

    def _count(self, stage: Stage) -> int:
        state = {"score": "due", "train": "scored"}[stage]
        with psycopg.connect(self._settings.postgres()) as connection:
            row = connection.execute(
                "SELECT count(*) FROM rl.windows WHERE state = %s", [state]
            ).fetchone()
        assert row is not None
        return int(row[0])

    def _wait_until_idle(self) -> None:
        while self._busy.value:
            assert all(process.is_alive() for process, _ in self._claimers), "a claimer failed"
            time.sleep(_LOOK_SECONDS)

    def _claim(self, number: int, pipe: Any) -> None:
        """Do what a worker's tasks do, one after another, when the bell rings and while it pays."""
        logging.disable(logging.WARNING)
        WITHOUT_JUDGE["heuristic"] = SleepingScorer(self._sleep_seconds["score"])
        trainer = SleepingTrainer(self._sleep_seconds["train"])
        fleet = Fleet.of_deployment(self._settings, f"claimer:{number}")
        fleet.active()  # a process reads each lineage's overrides once
        turns: list[Turn] = []
        self._leave()
        while (order := self._enter()) != _END:
            if order != _REST:
                stage = _STAGES[order]
                while self._order.value == order:
                    task = _score(fleet) if stage == "score" else _train(fleet, trainer)
                    if not task:
                        break
                    turns += [Turn(time.monotonic(), stage, *each) for each in task]
                    if self._bell.get_value() < ENOUGH["gpu"]:
                        self._bell.release()
                self._leave()
            self._bell.acquire(timeout=_BELL_SECONDS)
        pipe.send(turns)
        fleet.database.close()

    def _enter(self) -> int:
        """Return the order; whoever gets one to work is busy from now on."""
        with self._busy.get_lock():
            order = int(self._order.value)
            self._busy.value += order >= 0
        return order

    def _leave(self) -> None:
        with self._busy.get_lock():
            self._busy.value -= 1


def _score(fleet: Fleet) -> list[tuple[str, int]]:
    """Score one batch, as `workers.tasks.score` does; return the lineages and their windows."""
    moved: list[tuple[str, int]] = []
    left = SCORE_BATCH
    for context in fleet.in_turn("score"):
        if windows := len(pipeline.score(context, limit=left)):
            moved.append((context.lineage.name, windows))
            left -= windows
        if left <= 0:
            break
    if moved:
        fleet.sweep(SCORE_BATCH)
    return moved


def _train(fleet: Fleet, trainer: SleepingTrainer) -> list[tuple[str, int]]:
    """Train one step, as `workers.tasks.train` does."""
    for context in fleet.in_turn("train"):
        if report := pipeline.train(context, trainer):
            return [(context.lineage.name, len(report.window_ids))]
    return []
