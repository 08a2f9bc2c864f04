"""When to kill what, drawn before the run, so that a seed gives the same run again."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

SHORTEST_PAUSE_SECONDS = 5.0
LONGEST_PAUSE_SECONDS = 20.0
WORKERS = ("cpu1", "cpu2", "gpu1", "gpu2")
VICTIMS = (*WORKERS, "child", "trainer", "beat", "redis", "postgres")

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class PlannedKill:
    """A kill at so many seconds; `draw` (0 to 1) picks one among the victims of its kind."""

    after_seconds: float
    victim: str
    draw: float

    def pick(self, candidates: Sequence[T]) -> T:
        """Pick one of them."""
        return candidates[int(self.draw * len(candidates))]


def kill_schedule(seed: int, seconds: float) -> list[PlannedKill]:
    """Plan a kill of one random component every 5 to 20 seconds."""
    rng = random.Random(seed)
    planned: list[PlannedKill] = []
    after = 0.0
    while True:
        after += rng.uniform(SHORTEST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS)
        kill = PlannedKill(after, rng.choice(VICTIMS), rng.random())
        if after >= seconds:
            return planned
        planned.append(kill)
