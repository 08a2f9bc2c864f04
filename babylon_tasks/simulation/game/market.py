"""Markets whose outcomes follow from signals in the prompt, with known noise.

A market goes up with probability p = sigmoid(sum of the weights of its signals), each with its
sign. Nobody sees p; whoever reads the signals well can bet on it. So the value of any decision is
known exactly, without playing it.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

from babylon_tasks.simulation.market import TICKERS

Kind = Literal["prediction", "perpetual"]

# What an agent may do: bet that the market goes up (buy YES, or go long) or down (sell YES, or go
# short), or nothing.
ACTIONS = ("BUY", "SELL", "HOLD")
UP, DOWN, HOLD = 0, 1, 2

# The words with which a market shows each signal: it points down, nowhere or up.
SIGNALS: Mapping[str, Mapping[int, str]] = {
    "orders": {-1: "selling", 0: "quiet", 1: "buying"},
    "news": {-1: "bad", 0: "none", 1: "good"},
    "momentum": {-1: "falling", 0: "flat", 1: "rising"},
    "crowd": {-1: "bearish", 0: "split", 1: "bullish"},
}
LURE = "crowd"

_LEVERAGE = 10.0
_LEAST_MOVE, _MOST_MOVE = 0.02, 0.08  # of a perpetual's price in the hour


@dataclass(frozen=True)
class Rules:
    """How the markets of a game behave.

    `weights` are the log-odds that each signal adds when it points up, and takes when it points
    down. The lure has `lure_weight` until `lure_hours`, and nothing after. From `flip_hour` on,
    every weight has the other sign. `fee` is a share of the stake; `limit` is what an order may
    cost, in dollars, and what agents stake.
    """

    weights: Mapping[str, float] = field(
        default_factory=lambda: MappingProxyType({"orders": 2.0, "news": 1.5, "momentum": 0.5})
    )
    lure_weight: float = 2.0
    lure_hours: int = 4
    flip_hour: int | None = None
    fee: float = 0.02
    limit: float = 100.0

    def weight(self, signal: str, hour: int) -> float:
        """Return the log-odds of a signal in an hour of the game, which counts from 0."""
        weight = self.weights.get(signal, 0.0)
        if signal == LURE:
            weight = self.lure_weight if hour < self.lure_hours else 0.0
        return -weight if self.flip_hour is not None and hour >= self.flip_hour else weight


@dataclass(frozen=True)
class Market:
    """A market of one hour: what the prompt shows, and the probability that it goes up.

    `price` is that of YES (0 to 1), or a perpetual's in dollars. `signals` has -1, 0 or 1 by name.
    """

    id: str
    kind: Kind
    ticker: str
    price: float
    signals: Mapping[str, int]
    chance: float
    rules: Rules

    def value(self, action: int) -> float:
        """Return the expected P&L of an action in dollars, its fee included."""
        if action == HOLD:
            return 0.0
        chance = self.chance if action == UP else 1 - self.chance
        if self.kind == "prediction":
            price = self.price if action == UP else 1 - self.price
            gain = chance / price - 1
        else:
            gain = _LEVERAGE * (_LEAST_MOVE + _MOST_MOVE) / 2 * (2 * chance - 1)
        return self.rules.limit * (gain - self.rules.fee)

    @property
    def best(self) -> int:
        """The action of the largest expected P&L."""
        return max((UP, DOWN, HOLD), key=self.value)


@dataclass(frozen=True)
class Outcome:
    """What became of a market: whether it went up, and how far a perpetual moved (a share)."""

    up: bool
    move: float

    def pnl(self, market: Market, action: int) -> float:
        """Return what an action gained in dollars, its fee included."""
        if action == HOLD:
            return 0.0
        won = self.up == (action == UP)
        if market.kind == "prediction":
            price = market.price if action == UP else 1 - market.price
            gain = 1 / price - 1 if won else -1.0
        else:
            gain = _LEVERAGE * (self.move if won else -self.move)
        return round(market.rules.limit * (gain - market.rules.fee), 2)


def draw_market(rng: random.Random, market_id: str, hour: int, rules: Rules) -> Market:
    """Draw a market of an hour of the game, which counts from 0."""
    kind: Kind = rng.choice(("prediction", "perpetual"))
    signals = {name: rng.choice((-1, 0, 1)) for name in SIGNALS}
    signals["momentum"] = rng.choice((-1, 1))
    signals[LURE] = rng.choice((-1, 1))
    cents = rng.randrange(42, 59, 2)
    price = cents / 100 if kind == "prediction" else float(rng.randrange(20, 200))
    ticker = rng.choice(TICKERS)
    return Market(market_id, kind, ticker, price, signals, chance_up(signals, hour, rules), rules)


def chance_up(signals: Mapping[str, int], hour: int, rules: Rules) -> float:
    """Return the probability that a market with these signals goes up in that hour."""
    odds = sum(rules.weight(name, hour) * value for name, value in signals.items())
    return 1 / (1 + math.exp(-odds))


def draw_outcome(rng: random.Random, market: Market) -> Outcome:
    """Draw what becomes of a market."""
    return Outcome(rng.random() < market.chance, rng.uniform(_LEAST_MOVE, _MOST_MOVE))
