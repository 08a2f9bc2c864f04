"""What a policy is worth, exactly: by the probability of each of its answers, not by one draw."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from babylon_tasks.records.steps import Call, Sample
from babylon_tasks.simulation.agents import NAMES
from babylon_tasks.simulation.game.market import DOWN, HOLD, UP, Market, Rules, draw_market
from babylon_tasks.simulation.game.personas import NOISE, ORACLE, expected
from babylon_tasks.simulation.game.prompts import messages, write_answer
from babylon_tasks.simulation.values import seeded

_ANSWERS = (UP, DOWN, HOLD)
_NAME = NAMES[0]


@dataclass(frozen=True, slots=True)
class Look:
    """Expected P&L of a decision in dollars, over some markets, and the mass on proper answers.

    `by_market` has the policy's in each market.
    """

    policy: float
    noise: float
    oracle: float
    well_formed: float
    by_market: tuple[float, ...]

    @property
    def gap_closed(self) -> float:
        """How far the policy is on the way from the noise persona (0) to the oracle (1)."""
        return (self.policy - self.noise) / (self.oracle - self.noise)


def fresh_markets(seed: int, hour: int, rules: Rules, count: int) -> list[Market]:
    """Draw markets that nobody plays; in every hour the same, but for what an hour changes."""
    rng = seeded("look", seed)
    return [draw_market(rng, str(number), hour, rules) for number in range(count)]


def questions(markets: Sequence[Market]) -> list[Sample]:
    """Return a sample for each answer to each market, whose likelihoods `look` reads."""
    samples = []
    for number, market in enumerate(markets):
        system, user = (message["content"] for message in messages(_NAME, market))
        for action in _ANSWERS:
            call = Call(system, user, write_answer(action))
            samples.append(Sample("look", f"{number}-{action}", 0.0, [call]))
    return samples


def look(markets: Sequence[Market], logprobs: Sequence[float]) -> Look:
    """Return a policy's worth from its log-probabilities of all `questions`, in their order."""
    chances = iter([math.exp(value) for value in logprobs])
    by_market, well_formed = [], 0.0
    for market in markets:
        up, down, hold = (next(chances) for _ in _ANSWERS)
        by_market.append(expected((up, down, hold), market))
        well_formed += up + down + hold
    count = len(markets)
    return Look(
        policy=sum(by_market) / count,
        noise=sum(NOISE.value(market) for market in markets) / count,
        oracle=sum(ORACLE.value(market) for market in markets) / count,
        well_formed=well_formed / count,
        by_market=tuple(by_market),
    )
