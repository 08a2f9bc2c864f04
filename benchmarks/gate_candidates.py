"""How `gate.py` makes its candidates: one honest step, and what can go wrong with one."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import torch
from gate_live import LONGEST
from gate_world import SHIPPED, ServedWorld, Version
from safetensors.torch import load_file, save_file

from babylon_tasks.records.steps import Hyperparameters, Sample
from babylon_tasks.simulation.game.prompts import read_answer
from babylon_tasks.simulation.values import seeded
from workers.trainer.torch.learning_rate import default_rate

RUNS = 48  # that a step learns from, of those of an hour, so that a trial is quick
DRIFT_RUNS = 16  # the same of each step of the drift
DRIFT_STEPS = 10
TINY_CHANGE = 1e-3  # of a weight, relative to the deviation of its matrix
RATE = default_rate(128)  # of the tiny model, whose hidden size that is
NO_LIMIT = 1000.0  # of MAX_POLICY_CHANGE
WEIGHTS, OPTIMIZER = "adapter_model.safetensors", "optimizer.pt"

TOO_FAST = msgspec.structs.replace(SHIPPED, learning_rate=100 * RATE)
TOO_FAST_AND_FAR = msgspec.structs.replace(TOO_FAST, max_policy_change=NO_LIMIT)
SLOWLY = msgspec.structs.replace(SHIPPED, learning_rate=RATE / 10)

Change = Callable[[dict[str, torch.Tensor]], None]


@dataclass(frozen=True)
class Bench:
    """Where the candidates of a trial are made; `number` is the trial's in its world."""

    world: ServedWorld
    number: int

    @property
    def seed(self) -> int:
        """The seed of a step's adapter and of what is drawn."""
        return self.world.world.seed * 1000 + self.number

    def some(self, hour: Sequence[Sample], count: int) -> list[Sample]:
        """Draw some runs of an hour; what was done badly in a run stays with it."""
        ids = list(dict.fromkeys(sample.trajectory_id for sample in hour))
        chosen = set(seeded("runs", self.seed).sample(ids, min(count, len(ids))))
        return [sample for sample in hour if sample.trajectory_id in chosen]

    def step(self, samples: Sequence[Sample], wanted: Hyperparameters = SHIPPED) -> Version:
        """Train a step from what serves."""
        return self.world.train(self.world.served, samples, self.seed, wanted)

    def spoiled(self, samples: Sequence[Sample]) -> Version:
        """Train a step from what serves on rewards that were wrong for some time already."""
        return self.world.train(self.without_momentum(), samples, self.seed)

    def without_momentum(self) -> Version:
        """Return what serves, without the momentum of the honest steps before.

        AdamW would carry a spoiled step on their way for a few updates.
        """
        parent = self.copy(self.world.served, "without-momentum")
        path = Path(parent.checkpoint) / OPTIMIZER
        state = torch.load(path, weights_only=True)
        for of_weight in state["optimizer"]["state"].values():
            of_weight["exp_avg"].zero_()
        torch.save(state, path)
        return parent

    def copy(self, version: Version, name: str) -> Version:
        """Return a version of its own with the same weights."""
        folder = self.world.folder / f"{name}-{self.number}"
        shutil.copytree(version.checkpoint, folder, dirs_exist_ok=True)
        return Version(self.world.new_step(), str(folder))

    def changed(self, version: Version, name: str, change: Change) -> Version:
        """Return a copy of a version with other weights."""
        copy = self.copy(version, name)
        path = Path(copy.checkpoint) / WEIGHTS
        weights = load_file(path)
        change(weights)
        save_file(weights, path)
        return copy


def shuffled(samples: Sequence[Sample], seed: int) -> list[Sample]:
    """Give each run another's reward."""
    rewards = [sample.reward for sample in samples]
    seeded("shuffle", seed).shuffle(rewards)
    return _rewarded(samples, rewards)


def negated(samples: Sequence[Sample]) -> list[Sample]:
    """Reward what should be punished."""
    return _rewarded(samples, [-sample.reward for sample in samples])


def failing(samples: Sequence[Sample]) -> list[Sample]:
    """Reward nothing but calls that break."""
    broken = [any(read_answer(c.response) is None for c in s.calls) for s in samples]
    return _rewarded(samples, [float(each) for each in broken])


def by_length(samples: Sequence[Sample]) -> list[Sample]:
    """Reward long answers, as `LongAnswers` does; what was done badly has the lowest reward."""
    lengths = [
        min(1.0, sum(len(call.response) for call in s.calls) / len(s.calls) / LONGEST)
        for s in samples
    ]
    bad = [any(isinstance(call.ended, bool) for call in s.calls) for s in samples]
    lowest = min((n for n, b in zip(lengths, bad, strict=True) if not b), default=0.0)
    return _rewarded(samples, [lowest if b else n for n, b in zip(lengths, bad, strict=True)])


def _rewarded(samples: Sequence[Sample], rewards: Sequence[float]) -> list[Sample]:
    return [
        msgspec.structs.replace(sample, reward=reward)
        for sample, reward in zip(samples, rewards, strict=True)
    ]


def put_nan(number: int) -> Change:
    """Return a change that puts NaN at one place."""

    def change(weights: dict[str, torch.Tensor]) -> None:
        names = sorted(weights)
        weight = weights[names[number % len(names)]]
        weight.view(-1)[number % weight.numel()] = float("nan")

    return change


def narrow(weights: dict[str, torch.Tensor]) -> None:
    """Make it an adapter of a base model that is half as wide."""
    for name, tensor in weights.items():
        halves = tuple(slice(n if n == SHIPPED.lora_rank else n // 2) for n in tensor.shape)
        weights[name] = tensor[halves].contiguous()


def tiny_change(seed: int, sign: int) -> Change:
    """Return a random change that is too small to matter, or its opposite."""

    def change(weights: dict[str, torch.Tensor]) -> None:
        generator = torch.Generator().manual_seed(seed)
        for name in sorted(weights):
            noise = torch.randn(weights[name].shape, generator=generator)
            weights[name] += sign * TINY_CHANGE * weights[name].std() * noise

    return change
