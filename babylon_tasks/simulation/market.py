"""Prediction markets whose momentum predicts the outcome nine times in ten."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

TICKERS = ("NOVA", "KITE", "ORBX", "LUMA", "PYRE", "ZETA", "HELI", "MOSS")
_EVENTS = (
    "{ticker} close above ${level} this hour", "{ticker} announce a merger today",
    "{ticker} beat its forecast", "the council back {ticker}'s permit",
)  # fmt: skip
_MOMENTUM_ACCURACY = 0.9  # probability that the outcome follows the momentum


@dataclass(frozen=True, slots=True)
class Market:
    """A prediction market of one window, and its outcome, which agents do not see."""

    id: str
    question: str
    yes_price: float  # dollars, 0 to 1
    momentum: float  # percent
    outcome: bool  # YES

    @property
    def right_side(self) -> str:
        """The side that the momentum predicts."""
        return "YES" if self.momentum > 0 else "NO"

    @property
    def quote(self) -> str:
        """The prices and the momentum, as prompts show them."""
        yes = self.yes_price
        return f"YES {yes:.2f}, NO {1 - yes:.2f}, momentum {self.momentum:+.1f}%"


def make_markets(rng: random.Random, ids: Iterator[str]) -> list[Market]:
    """Make a window's markets: six with a clear momentum, then a flat one."""
    momenta = [rng.choice((-1, 1)) * rng.uniform(1.5, 9) for _ in range(6)]
    momenta.append(rng.uniform(-0.3, 0.3))
    return [make_market(rng, next(ids), momentum) for momentum in momenta]


def make_market(rng: random.Random, market_id: str, momentum: float) -> Market:
    """Make a market with this momentum (percent), and draw its outcome."""
    event = rng.choice(_EVENTS).format(ticker=rng.choice(TICKERS), level=rng.randrange(40, 200, 5))
    follows = rng.random() < _MOMENTUM_ACCURACY
    return Market(
        id=market_id,
        question=f"Will {event}?",
        yes_price=round(rng.uniform(0.3, 0.7), 2),
        momentum=round(momentum, 1),
        outcome=(momentum > 0) == follows,
    )
