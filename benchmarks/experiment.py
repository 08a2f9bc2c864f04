"""Plays one run of `recipe.py`: the models, the hours, the lineages, and what became of them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from baselines import PLAIN, conversations, one_sequence_an_update, state_lines
from loop import LOOKED_AT, SETTINGS, Loop, World, runs_of, samples_of

from babylon_tasks.records.steps import Hyperparameters
from babylon_tasks.simulation.game import lessons
from babylon_tasks.simulation.game.hour import BROKEN
from babylon_tasks.simulation.game.look import Look
from babylon_tasks.simulation.game.market import DOWN, UP, Rules
from babylon_tasks.simulation.game.personas import Persona
from babylon_tasks.simulation.game.prompts import write_answer
from babylon_tasks.simulation.tiny_model import make_tiny_model
from babylon_tasks.simulation.values import seeded
from babylon_tasks.training.recipe import hyperparameters_in_force
from workers.trainer.torch.trainer import TorchTrainer

if TYPE_CHECKING:
    from recipe import Run

# A real model takes a minute for such an hour on one core, and most of another for a look at 64
# markets: it is looked at in fewer, and in more at the end, where it must differ from the base.
SMALL = (
    Persona("noise", 1.0), Persona("momentum", 0.8), Persona("contrarian", 0.8),
    Persona("careful", 0.5), Persona("careful", 0.5), Persona("reckless", 0.8),
)  # fmt: skip
SMALL_POLICIES = 8
SMALL_LOOK, LAST_LOOK = 20, 80
# Most bets lose here, and all agents are the model, which was not taught to leave a market alone:
# what it knows besides betting is to break its call.
HOSTILE_FEE = 0.3  # of the stake
HOSTILE_POLICIES = 30
BREAKS = 0.25  # share of broken calls in what the model was taught


def make_models(folder: Path, part: str) -> None:
    """Make the base models of a part, unless they are there."""
    make_tiny_model(folder / "tiny")
    if part == "absence":
        from real_model import teach_form

        teach_form(folder / "tiny", folder / "breaker", _with_broken_calls(), steps=60, rate=1e-3)
    if part == "real":
        from real_model import fetch, teach_form

        fetch(folder / "smollm2")
        teach_form(folder / "smollm2", folder / "real", lessons.form(0), steps=64, rate=3e-5)


def _with_broken_calls() -> Iterator[lessons.Example]:
    rng = seeded("broken calls")
    for asked, _ in lessons.form(1):
        yield asked, BROKEN if rng.random() < BREAKS else write_answer(rng.choice((UP, DOWN)))


@dataclass
class _Record:
    """What became of a lineage: a look before the first window and after each.

    `last` and `base` are the newest version and the base model in the same markets of the last
    hour: what pays changes with the hour.
    """

    name: str
    wanted: Hyperparameters
    looks: list[Look] = field(default_factory=list)
    changes: list[float] = field(default_factory=list)
    failed: list[float] = field(default_factory=list)
    last: Look | None = None
    base: Look | None = None

    def as_json(self, run: Run) -> dict[str, Any]:
        last = self.looks[-1]
        return {
            "run": run.name,
            "name": self.name,
            "policy": [round(look.policy, 3) for look in self.looks],
            "noise": round(last.noise, 3),
            "oracle": round(last.oracle, 3),
            "gap_closed": [round(look.gap_closed, 4) for look in self.looks],
            "well_formed": [round(look.well_formed, 4) for look in self.looks],
            "policy_change": [round(change, 4) for change in self.changes],
            "failed": [round(share, 3) for share in self.failed],
            "hyperparameters": msgspec.to_builtins(self.wanted),
        } | self._at_the_end()

    def _at_the_end(self) -> dict[str, list[float]]:
        """Return the P&L by market: the last version's, and the base model's, in dollars."""
        if self.last is None or self.base is None:
            return {}
        looks = {"policy_by_market": self.last, "base_by_market": self.base}
        return {name: [round(value, 3) for value in look.by_market] for name, look in looks.items()}


def play(run: Run, models: Path, folder: Path) -> list[dict[str, Any]]:
    """Play all windows of a run, and return a record of each lineage in it."""
    world = _world(run)
    trainer = TorchTrainer("cpu-0")
    wanted = Hyperparameters(
        **{
            name: run.recipe.get(name, getattr(hyperparameters_in_force(SETTINGS), name))
            for name in Hyperparameters.__struct_fields__
        }
    )
    model = models / run.model
    loop = Loop(folder / "loop", model, world, wanted, trainer, run.lag)
    record = _Record(run.name if run.part != "compare" else "shipped", wanted)
    others = _Others(folder, model, world, trainer, wanted) if run.part == "compare" else None
    real = run.part == "real"
    count = SMALL_LOOK if real else LOOKED_AT
    record.looks.append(loop.look(0, count=count))
    for number in range(run.windows):
        hour = loop.play(number)
        ours = hour.decisions[len(world.population) :]
        asked = [decision for decisions in ours for decision in decisions]
        if asked:
            record.failed.append(sum(d.action is None for d in asked) / len(asked))
        samples = samples_of(hour, world.seed, floor=run.floor)
        if len({sample.reward for sample in samples}) > 1:
            record.changes.append(loop.train(samples)["policy_change"])
        record.looks.append(loop.look(number + 1, count=count))
        if others is not None:
            others.train(hour, samples)
    if real:
        record.last = loop.look(run.windows, count=LAST_LOOK)
        record.base = loop.look(run.windows, base=True, count=LAST_LOOK)
    return [record.as_json(run), *(others.as_json(run) if others else [])]


def _world(run: Run) -> World:
    options = dict(run.world)
    rules = Rules(flip_hour=run.flip_hour)
    if options.pop("hostile", False):
        rules = Rules(fee=HOSTILE_FEE)
        options |= {"population": (), "policies": HOSTILE_POLICIES}
    if options.pop("small", False):
        options |= {"population": SMALL, "policies": SMALL_POLICIES}
    return World(run.seed, rules=rules, **options)


class _Others:
    """Lineages that are trained on the hours of another one."""

    def __init__(
        self,
        folder: Path,
        model: Path,
        world: World,
        trainer: TorchTrainer,
        wanted: Hyperparameters,
    ) -> None:
        self._seed = world.seed
        at_our_rate = msgspec.structs.replace(PLAIN, learning_rate=wanted.learning_rate)
        # By name: the recipe, the view of an hour, whether each step begins with the base model,
        # and whether each sequence has an update of its own.
        self._arms = {
            "upstream: conversation": (at_our_rate, conversations, True, False),
            "upstream: state lines": (at_our_rate, state_lines, False, False),
            "ART's steps, its rate": (PLAIN, None, False, True),
            "ART's steps, our rate": (at_our_rate, None, False, True),
        }
        self._loops = {
            name: Loop(folder / str(n), model, world, arm[0], trainer)
            for n, (name, arm) in enumerate(self._arms.items())
        }
        self._records = {
            name: _Record(name, self._arms[name][0], [loop.look(0)])
            for name, loop in self._loops.items()
        }

    def train(self, hour: Any, samples: Any) -> None:
        """Train each lineage one step on this hour."""
        runs = runs_of(hour, self._seed)
        for name, (_, view, anew, one_by_one) in self._arms.items():
            seen = view(hour, runs, samples) if view else samples
            with one_sequence_an_update() if one_by_one else contextlib.nullcontext():
                metrics = self._loops[name].train(seen, anew=anew)
            self._records[name].changes.append(metrics["policy_change"])
            self._records[name].looks.append(self._loops[name].look(hour.number + 1))

    def as_json(self, run: Run) -> list[dict[str, Any]]:
        """Return the records."""
        return [record.as_json(run) for record in self._records.values()]
