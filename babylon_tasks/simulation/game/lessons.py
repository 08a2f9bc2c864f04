"""What a base model is taught before it plays: to answer in form, and to do as it is told.

It is never taught what pays: told to go by one signal it does, and left to itself it draws lots.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from babylon_tasks.simulation.agents import NAMES
from babylon_tasks.simulation.game.market import DOWN, HOLD, SIGNALS, UP, Market, Rules, draw_market
from babylon_tasks.simulation.game.prompts import messages, write_answer
from babylon_tasks.simulation.values import seeded

Example = tuple[list[dict[str, str]], str]  # chat messages, and their answer


def form(seed: int) -> Iterator[Example]:
    """Yield decisions that are left to the agent, with a random action, without end."""
    rng = seeded("form", seed)
    for market in _markets(seed):
        yield messages(rng.choice(NAMES), market), write_answer(rng.choice((UP, DOWN, HOLD)))


def obedience(seed: int) -> Iterator[Example]:
    """Yield decisions by one signal that the prompt names, with that action, without end."""
    rng = seeded("obedience", seed)
    for market in _markets(seed):
        signal = rng.choice(list(SIGNALS))
        action = {1: UP, 0: HOLD, -1: DOWN}[market.signals[signal]]
        asked = messages(rng.choice(NAMES), market, f"follow {signal}")
        yield asked, write_answer(action)


def _markets(seed: int) -> Iterator[Market]:
    rng, rules = seeded("lessons", seed), Rules()
    for n in itertools.count():
        yield draw_market(rng, str(n), 0, rules)
