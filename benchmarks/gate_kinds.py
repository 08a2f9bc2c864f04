"""The trials of one seed: its worlds, and each kind of candidate in them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from experiment import HOSTILE_FEE
from gate_candidates import (
    DRIFT_STEPS,
    RUNS,
    TOO_FAST,
    TOO_FAST_AND_FAR,
    Bench,
    by_length,
    failing,
    narrow,
    negated,
    put_nan,
    shuffled,
    tiny_change,
)
from gate_live import Live
from gate_models import BREAKER, OTHER, TINY, WORDY_MODEL
from gate_trial import Result, drift, examine, try_out
from gate_world import FIRST_HOUR, WORDY, CachingTrainer, Game, ServedWorld, Version
from loop import samples_of

from babylon_tasks.records.steps import Sample
from babylon_tasks.simulation.game.market import Rules

HOURS = DRIFT_STEPS + 1  # of a trial
FEW_STEPS = 3  # of a version that shall keep what its base model was taught
SPECIAL = {"length": WORDY_MODEL, "failing": BREAKER}


def trials(
    seed: int,
    numbers: Sequence[int],
    kinds: Sequence[str],
    agents: int,
    models: Path,
    folder: Path,
) -> Iterator[Result]:
    """Run the trials of one seed."""
    trainer = CachingTrainer()
    plain = [kind for kind in kinds if kind not in SPECIAL]
    if plain:
        yield from _Plain(seed, agents, models, folder, trainer).run(numbers, plain)
    if "length" in kinds:
        game = Game(seed, agents, FEW_STEPS, notes=WORDY)
        world = ServedWorld(folder / "length", models / WORDY_MODEL, trainer, game)
        yield from _special(world, numbers, "length")
    if "failing" in kinds:
        game = Game(seed, agents, FEW_STEPS, Rules(fee=HOSTILE_FEE), floor=False)
        world = ServedWorld(folder / "failing", models / BREAKER, trainer, game)
        yield from _special(world, numbers, "failing")


def _special(world: ServedWorld, numbers: Sequence[int], kind: str) -> Iterator[Result]:
    """Run the trials of a kind that has a world of its own."""
    lessons = {"length": by_length, "failing": failing}[kind]
    for number in numbers:
        started = time.monotonic()
        lesson, exam = _hours(world, number, 2)
        if kind == "length":
            exam = by_length(exam)
        bench, live = Bench(world, number), Live(world, number, long_answers=kind == "length")
        candidate = bench.spoiled(lessons(bench.some(lesson, RUNS)))
        verdict = examine(world, exam, world.served, candidate)
        result = try_out(live, kind, candidate, verdict, number)
        world.trainer.forget()
        yield replace(result, seconds=round(time.monotonic() - started, 1))


class _Plain:
    """The trials whose world is that of the tiny model as it is."""

    def __init__(
        self, seed: int, agents: int, models: Path, folder: Path, trainer: CachingTrainer
    ) -> None:
        self._world = ServedWorld(folder / "plain", models / TINY, trainer, Game(seed, agents))
        self._other: ServedWorld | None = None
        self._make_other = lambda: ServedWorld(
            folder / "other", models / OTHER, CachingTrainer(), Game(seed, agents)
        )

    def run(self, numbers: Sequence[int], kinds: Sequence[str]) -> Iterator[Result]:
        """Run the trials with these numbers."""
        world = self._world
        for number in numbers:
            hours = _hours(world, number, HOURS if "drift" in kinds else 2)
            bench, live = Bench(world, number), Live(world, number)
            for kind in kinds:
                started = time.monotonic()
                if kind == "drift":
                    result = drift(bench, live, hours)
                else:
                    candidate = self._candidate(kind, bench, live, hours[0])
                    verdict = examine(world, hours[1], world.served, candidate)
                    result = try_out(live, kind, candidate, verdict, number)
                yield replace(result, seconds=round(time.monotonic() - started, 1))
            world.trainer.forget()

    def _candidate(self, kind: str, bench: Bench, live: Live, hour: Sequence[Sample]) -> Version:
        world, some = self._world, bench.some(hour, RUNS)
        if kind == "honest":
            return bench.step(some)
        if kind == "shuffled":
            return bench.spoiled(shuffled(some, bench.seed))
        if kind == "negated":
            return bench.spoiled(negated(some))
        if kind in ("learning_rate", "limited_rate"):
            return bench.step(some, TOO_FAST if kind == "limited_rate" else TOO_FAST_AND_FAR)
        if kind == "nan":
            return bench.changed(world.served, kind, put_nan(bench.number))
        if kind == "other_shapes":
            return bench.changed(world.served, kind, narrow)
        if kind == "other_base":
            self._other = self._other or self._make_other()
            theirs = Bench(self._other, bench.number).step(some)
            return bench.copy(theirs, kind)
        assert kind == "no_better"
        copies = [bench.changed(world.served, f"{kind}{s}", tiny_change(bench.seed, s))
                  for s in (1, -1)]  # fmt: skip
        return min(copies, key=live.value)


def _hours(world: ServedWorld, number: int, count: int) -> list[list[Sample]]:
    """Play the hours of a trial."""
    first = FIRST_HOUR + number * HOURS
    return [samples_of(world.play(first + n), world.world.seed) for n in range(count)]
