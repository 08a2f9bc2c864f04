"""A world with a gate: steps that are made before a test begins, and windows of two versions."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from babylon_tasks import pipeline
from babylon_tasks.records.exams import Exam
from babylon_tasks.records.experiments import Experiment, ExperimentLook
from babylon_tasks.records.windows import window_id_at
from babylon_tasks.store import exams, experiments
from tests.chaos.inject.opinions import LIST
from tests.chaos.injection import FOLDER
from tests.chaos.servers import Servers
from tests.chaos.verdict import REJECTED
from tests.chaos.world import ROOT, World
from tests.rows import add_trajectory, query, steps
from workers.gpu.client import TrainerOptions, TrainerProcess

_FIRST_HOURS_AGO = 500  # the windows before an experiment; its own are newer
_EXPERIMENT_HOURS_AGO = 200


class Examined:
    """A world with PUBLISH=gate; `make` does in this process what happened before the test."""

    def __init__(self, world: World, trainer: TrainerProcess) -> None:
        self.world, self._trainer = world, trainer
        self._windows = 0

    def scored(self, *, bad: bool = False) -> str:
        """Add the next window and score it; a step that learns from a bad one is bad."""
        (window,) = self.window(bad=bad)
        self._score()
        return window

    def window(self, *, bad: bool = False) -> list[str]:
        """Add the next window, newer than all before it, for the roles."""
        self._windows += 1
        if bad:
            hours = timedelta(hours=_FIRST_HOURS_AGO - self._windows)
            self.mark_bad(window_id_at(datetime.now(UTC) - hours))
        windows = self.world.add_windows(1, _FIRST_HOURS_AGO - self._windows)
        if bad:
            self.world.expected[windows[0]] = REJECTED
        return windows

    def mark_bad(self, window: str) -> None:
        """Let every step that learns from this window be bad."""
        with (self.world.folder / "bad_windows").open("a") as file:
            file.write(f"{window}\n")

    def step(self, *, bad: bool = False) -> str:
        """Train one more step over a window of its own; what passed before it is published."""
        window = self.scored(bad=bad)
        assert pipeline.train(self.world.context, self._trainer)
        pipeline.publish(self.world.context)
        return window

    def experiment(self) -> None:
        """Let an experiment run with step 1, since 200 hours, beside step 0."""
        self.step()
        self.answered(window_id_at(datetime.now(UTC)), {"agent-0": 0})
        self.step()
        query(
            self.world.context,
            """UPDATE rl.experiments SET first_window = %s WHERE ended_at IS NULL RETURNING 1""",
            window_id_at(datetime.now(UTC) - timedelta(hours=_EXPERIMENT_HOURS_AGO)),
        )
        query(
            self.world.context,
            "UPDATE rl.shares SET starts_at = starts_at - interval '200 hours' RETURNING 1",
        )

    def play(self, number: int, better: bool | None, agents: int = 8) -> str:
        """Add window `number` of the experiment: step 1 earns more, less or (None) nobody asks."""
        window = self.window_of(number)
        self.world.expected[window] = "trained"
        # By 25 dollars an agent in either version; one window alone decides nothing.
        earned = {0: 400.0, 1: 400.0 if better is None else 630.0 if better else 170.0}
        answered = {f"{n}-of-{step}": step for step in earned for n in range(agents)}
        if better is not None:
            self.answered(window, answered)
        for agent, step in answered.items():
            pnl = earned[step] + 25 * int(agent.partition("-")[0])
            add_trajectory(self.world.context, window, agent, stepsJson=steps(pnl))
        return window

    def window_of(self, number: int) -> str:
        """Return the id of a window of the experiment."""
        hours = _EXPERIMENT_HOURS_AGO - 1 - number
        return window_id_at(datetime.now(UTC) - timedelta(hours=hours))

    def answered(self, window: str, agents: Mapping[str, int], **counts: int) -> None:
        """Say which step the endpoint answered each agent with."""
        told = {"answers": 10, "failed": 0, "malformed": 0, **counts}
        with self.world.context.database.transaction() as tx:
            for agent, step in agents.items():
                tx.execute(
                    """INSERT INTO rl.assignments (model_name, window_id, agent, step, answers,
                                                   failed, malformed, first_at, last_at)
                       VALUES (%s, %s, %s, %s, %s, %s, %s, rl.now(), rl.now())""",
                    [self.name, window, agent, step, *told.values()],
                )

    @property
    def name(self) -> str:
        """The lineage of MODEL_NAME."""
        return self.world.context.lineage.name

    def position(self) -> tuple[int, int]:
        """Return the head, and the step that serves."""
        found = query(self.world.context, "SELECT * FROM rl.heads WHERE model_name = %s", self.name)
        return (found[0]["step"], found[0]["published_step"]) if found else (0, 0)

    def exams(self) -> dict[int, Exam]:
        """Return the exams by step."""
        with self.world.context.database.transaction() as tx:
            return {exam.step: exam for exam in exams.read(tx, self.name)}

    def experiments(self) -> list[tuple[Experiment, list[ExperimentLook]]]:
        """Return the experiments, newest first."""
        with self.world.context.database.transaction() as tx:
            return experiments.listing(tx, self.name)

    def promotions(self) -> list[tuple[str, int]]:
        """Return what was promoted, in order: by whom, and which step."""
        found = query(self.world.context, "SELECT kind, to_step FROM rl.promotions ORDER BY id")
        return [(row["kind"], row["to_step"]) for row in found]

    def parents(self) -> dict[int, int]:
        """Return the parent of each step."""
        found = query(self.world.context, "SELECT step, parent_step FROM rl.steps")
        return {row["step"]: row["parent_step"] for row in found}

    def train(self) -> bool:
        """Examine and train in this process; whether a step was committed."""
        self._score()
        return pipeline.train(self.world.context, self._trainer) is not None

    def _score(self) -> None:
        pipeline.produce(self.world.context)
        while pipeline.score(self.world.context):
            pass


@contextmanager
def examined(servers: Servers, folder: Path, **settings: Any) -> Iterator[World]:
    """Make an empty world in which steps pass an exam before they serve."""
    (folder / "bad_windows").touch()
    changes = {
        "PUBLISH": "gate",
        "PYTHONPATH": f"{FOLDER}:{ROOT}",
        "BABYLON_PRELOAD": "opinions",
        LIST: str(folder / "bad_windows"),
        **settings,
    }
    with World(servers, folder, changes) as made:
        yield made


@contextmanager
def trainer_of(world: World) -> Iterator[TrainerProcess]:
    """Start a trainer process with this world's good and bad steps."""
    names = ("PYTHONPATH", "BABYLON_PRELOAD", LIST)
    kept = {name: os.environ.get(name) for name in names}
    os.environ.update({name: world.fleet.env[name] for name in names})
    process = TrainerProcess(TrainerOptions("noop", None, "cpu-0", 1.0, 30.0, 60.0))
    try:
        yield process
    finally:
        process.close()
        for name, value in kept.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
