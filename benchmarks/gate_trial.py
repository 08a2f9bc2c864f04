"""One trial of `gate.py`: a candidate's exam and experiment, and what became of it."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gate_candidates import DRIFT_RUNS, SLOWLY, Bench, negated
from gate_live import Live
from gate_world import NAME, SETTINGS, ServedWorld, Version

from babylon_tasks.errors import BadWeights
from babylon_tasks.evaluation.exam import Examiner
from babylon_tasks.evaluation.exam import Version as Examined
from babylon_tasks.evaluation.verdict import judge
from babylon_tasks.records.exams import ExamState, Figures
from babylon_tasks.records.experiments import ExperimentState
from babylon_tasks.records.form import load_form_check
from babylon_tasks.records.gates import FAILURES_IN_A_ROW
from babylon_tasks.records.lineages import Lineage
from babylon_tasks.records.steps import Sample
from babylon_tasks.serving.decide import Decision


@dataclass(frozen=True)
class Verdict:
    """Whether a candidate passed its exam, the guards by which it did not, and the figures."""

    passed: bool
    guards: tuple[str, ...]
    figures: Figures


@dataclass(frozen=True)
class Result:
    """What became of a candidate.

    `ended` is `gate`, or how its experiment ended; `windows` are those of the experiments. `worth`
    is its expected P&L less that of the version that served, in dollars a decision; None if it has
    none.
    """

    kind: str
    seed: int
    number: int
    ended: str
    promoted: bool
    guards: tuple[str, ...] = ()
    windows: int = 0
    worth: float | None = None
    seconds: float = 0.0

    def as_json(self) -> dict[str, Any]:
        """Return it as plain values."""
        return asdict(self)


def examine(
    world: ServedWorld, samples: Sequence[Sample], served: Version, candidate: Version
) -> Verdict:
    """Examine a candidate on a window, as the product does."""
    scratch = world.folder / "exam"
    scratch.mkdir()
    examiner = Examiner(
        world.trainer, SETTINGS, Lineage(NAME, str(world.model), primary=True), None,
        load_form_check(SETTINGS.form_check), scratch, lambda progress: None,
    )  # fmt: skip
    versions = [Examined(each.step, Path(each.checkpoint)) for each in (served, candidate)]
    try:
        state, _, figures = judge(examiner.compare(samples, versions[0], versions[1]))
    except BadWeights:
        return Verdict(False, ("weights",), {})
    finally:
        shutil.rmtree(scratch)
    guards = tuple(name for name, figure in figures.items() if figure.worse)
    return Verdict(state == ExamState.PASSED, guards, figures)


def try_out(
    live: Live, kind: str, candidate: Version, verdict: Verdict, number: int
) -> Result:  # fmt: skip
    """Return what becomes of a candidate after its exam: one that passed is tried by agents."""
    world = live.world
    worth = (
        None if "weights" in verdict.guards else live.value(candidate) - live.value(world.served)
    )
    seed = world.world.seed
    if not verdict.passed:
        return Result(kind, seed, number, "gate", False, verdict.guards, 0, worth)
    ended = live.begin(world.served, candidate).end()
    promoted = ended.state == ExperimentState.PROMOTED
    return Result(kind, seed, number, ended.why, promoted, (), ended.windows, worth)


def drift(bench: Bench, live: Live, hours: Sequence[Sequence[Sample]]) -> Result:
    """Let a lineage go the wrong way slowly, one hour a step; each hour but the last trains one.

    A step is examined on the hour after its own, beside what serves, and the next one continues it
    if it passed. Meanwhile agents try the newest that passed, one at a time, an hour a window. It
    ends with a promotion, a rollback (the next step would start from what serves), a pause, or
    when nothing is left to try.
    """
    world, served = bench.world, bench.world.served
    head, newest, running = bench.without_momentum(), None, None
    failures, guards, windows, hour = 0, set[str](), 0, 0
    ended = "gate"
    worst = served
    while hour < len(hours) - 1 or running or newest:
        if hour < len(hours) - 1:
            lesson = negated(bench.some(hours[hour], DRIFT_RUNS))
            step = world.train(head, lesson, bench.seed + hour, SLOWLY)
            verdict = examine(world, hours[hour + 1], served, step)
            guards.update(verdict.guards)
            failures = 0 if verdict.passed else failures + 1
            if verdict.passed:
                head = newest = worst = step
            elif failures == FAILURES_IN_A_ROW:
                ended = "paused"  # which ends a running experiment
                break
        hour += 1
        if running and (done := running.look(newest.step if newest else None)):
            ended, windows, running = done.why, windows + done.windows, None
            if done.state != ExperimentState.UNDECIDED:
                break  # after a rollback the next step starts from what serves
        if running is None and newest:
            running, newest = live.begin(served, newest), None
    worth = live.value(worst) - live.value(served)
    promoted = ended == str(Decision.PROMOTED)
    return Result(
        "drift", world.world.seed, bench.number, ended, promoted, tuple(sorted(guards)), windows,
        worth,
    )  # fmt: skip
