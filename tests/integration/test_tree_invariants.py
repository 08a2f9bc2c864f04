"""Random histories of lineages: train, publish, move the head, retry, fork, in any order."""

from __future__ import annotations

import contextlib
import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from babylon_tasks import pipeline
from babylon_tasks.checkpoints import files as checkpoint_files
from babylon_tasks.errors import UserError
from babylon_tasks.intake import stage as intake
from babylon_tasks.records.steps import Trainer
from babylon_tasks.training.reset import reset
from babylon_tasks.work import lineage_changes
from babylon_tasks.work.context import Context
from babylon_tasks.work.fleet import Fleet
from tests.paths import way
from tests.rows import add_window, hours_ago, query

pytestmark = pytest.mark.slow

OWN = "babylon-agent"
EVENTS = (
    "window",
    "window",
    "train",
    "train",
    "train",
    "publish",
    "reset",
    "reset",
    "retry",
    "fork",
)


class History:
    """One database, and a seed that says what happens to it."""

    def __init__(self, make_context: Callable[..., Context], trainer: Trainer, seed: int) -> None:
        self.rng = random.Random(seed)
        self.make_context, self.trainer = make_context, trainer
        self.context = make_context(keep_checkpoints=self.rng.randint(1, 3))
        self.fleet = Fleet(self.context.database, self.context.settings, self.context.holder)
        self.windows = 0
        self.highest: Counter[str] = Counter()
        self.happened: Counter[str] = Counter()
        self.retried = 0  # windows

    def happen(self) -> None:
        event = self.rng.choice(EVENTS)
        lineage = self.rng.choice(self.fleet.active())
        with contextlib.suppress(UserError):  # what cannot be is refused, and changes nothing
            getattr(self, event)(lineage)
            self.happened[event] += 1
        self.check()

    # --- what may happen ----------------------------------------------------------------------

    def window(self, _: Context) -> None:
        self.windows += 1
        add_window(self.context, hours_ago(1 + self.windows), agents=2)
        pipeline.produce(*self.fleet.active())

    def train(self, lineage: Context) -> None:
        pipeline.score(lineage)
        report = pipeline.train(lineage, self.trainer)
        if report:
            name = lineage.lineage.name
            assert report.step > self.highest[name], "numbers only grow"
            self.highest[name] = report.step

    def publish(self, lineage: Context) -> None:
        pipeline.publish(lineage)

    def reset(self, lineage: Context) -> None:
        reset(lineage, str(self.any_step(lineage)), "chance")

    def retry(self, lineage: Context) -> None:
        given_up = [row["step"] for row in self.steps_of(lineage) if row["given_up_at"]]
        step = self.rng.choice(given_up) if given_up else self.any_step(lineage)
        self.retried += len(intake.retry_steps(lineage, [str(step)]))

    def fork(self, lineage: Context) -> None:
        name = f"fork-{self.happened['fork']}"
        if self.happened["fork"] == 3:
            raise UserError("enough")
        origin = f"{lineage.lineage.name}@{self.any_step(lineage)}"
        made = lineage_changes.fork(self.fleet, origin, name, [])
        self.highest[name] = made.lineage.forked_step or 0

    def any_step(self, lineage: Context) -> int:
        inherited = self.rng.randint(0, lineage.lineage.forked_step or 0)
        own: list[int] = [row["step"] for row in self.steps_of(lineage)]
        return self.rng.choice([inherited, *own])

    def steps_of(self, lineage: Context) -> list[dict[str, Any]]:
        name = lineage.lineage.name
        return query(self.context, "SELECT * FROM rl.steps WHERE model_name = %s", name)

    # --- what must hold -----------------------------------------------------------------------

    def check(self) -> None:
        steps = {(row["model_name"], row["step"]): row for row in self.rows("rl.steps")}
        origins = {row["name"]: row for row in self.rows("rl.lineages")}
        rows = {(row["model_name"], row["window_id"]): row for row in self.rows("rl.windows")}
        for head in self.rows("rl.heads"):
            name = head["model_name"]
            path = list(way(steps, origins, name, head["step"]))
            trained = [(window, step["step"]) for step in path for window in step["window_ids"]]
            assert len({window for window, _ in trained}) == len(trained), "trained twice"
            for window, step in trained:
                row = rows[name, window]
                assert (row["state"], row["trained_step"]) == ("trained", step)
            if path:
                checkpoint_files.open_local(path[0]["checkpoint"])
                assert path[0]["removed_at"] is None
            on_the_way = {step["step"] for step in path}
            assert head["published_step"] in on_the_way | {0}
            own = [step for (of, _), step in steps.items() if of == name]
            assert {s["step"] for s in own if s["given_up_at"] is None} == {
                step["step"] for step in path if step["model_name"] == name
            }
        self.check_models(steps)

    def check_models(self, steps: dict[tuple[str, int], Any]) -> None:
        """The app sees the versions that serve or served on the way, and no others."""
        published = query(self.context, "SELECT * FROM rl.heads WHERE model_name = %s", OWN)
        statuses = {row["modelId"]: row["status"] for row in self.rows("trained_models")}
        for step in (step for (of, _), step in steps.items() if of == OWN):
            if step["given_up_at"] or step["removed_at"]:
                expected = "archived"
            else:
                serves = published[0]["published_step"]
                expected = "ready" if step["step"] < serves else "training"
                expected = "deployed" if step["step"] == serves else expected
            assert statuses[f"{OWN}-{step['version']}"] == expected

    def rows(self, table: str) -> list[dict[str, Any]]:
        return query(self.context, f"SELECT * FROM {table}")


@pytest.mark.parametrize("seed", range(1, 6))
def test_a_window_trains_once_on_every_way(
    make_context: Callable[..., Context], trainer: Trainer, seed: int
) -> None:
    history = History(make_context, trainer, seed)
    for _ in range(70):
        history.happen()
    assert all(history.happened[event] for event in EVENTS), history.happened
    assert history.retried
