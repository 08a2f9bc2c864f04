"""What agents do in a window: a skilled one bets with the momentum, and the outcome pays."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from dataclasses import dataclass

from babylon_tasks.simulation.agents import Agent
from babylon_tasks.simulation.market import Market

_ACTIONS = ("BUY_SHARES", "SELL_SHARES", "HOLD", "CREATE_POST", "COMMENT")
_WEIGHTS = (62, 8, 10, 10, 10)
_AMOUNTS = (50, 75, 100, 150)
_START_BALANCE = 10_000.0
_STEADY_STEPS = 6


@dataclass(frozen=True, slots=True)
class Turn:
    """What an agent did in a step, before it becomes JSON."""

    number: int  # of the step, from 0
    market: Market
    action: str
    pnl: float  # dollars, as the agent saw it before it acted
    side: str = ""  # YES or NO of a trade
    amount: int = 0  # dollars
    success: bool = True
    gain: float = 0.0  # dollars, visible from the next step on

    @property
    def balance(self) -> float:
        """The agent's money before it acted, in dollars."""
        return _START_BALANCE + self.pnl

    @property
    def open_positions(self) -> int:
        """The number of open positions before the agent acted."""
        return min(self.number, 4)


def play(rng: random.Random, markets: Sequence[Market], player: Agent) -> list[Turn]:
    """Play 3 to 12 steps; the first is a bet, and no step shows the gain of the last one."""
    turns: list[Turn] = []
    pnl = 0.0
    for number in range(rng.randint(3, 12)):
        action = rng.choices(_ACTIONS, _WEIGHTS)[0] if number else "BUY_SHARES"
        turn = _turn(rng, markets, player, number, action, pnl)
        turns.append(turn)
        pnl = round(pnl + turn.gain, 2)
    return turns


def steady_play(
    rng: random.Random, markets: Sequence[Market], player: Agent, final_pnl: float
) -> list[Turn]:
    """Play with the same number of steps and the same P&L (dollars) for every agent."""
    path = [round(final_pnl * n / (_STEADY_STEPS - 1), 2) for n in range(_STEADY_STEPS)]
    turns = [_turn(rng, markets, player, n, "BUY_SHARES", pnl) for n, pnl in enumerate(path)]
    return [dataclasses.replace(turn, success=True) for turn in turns]


def has_signal(plays: Sequence[tuple[Agent, list[Turn]]]) -> bool:
    """Tell whether, over all its trajectories, one agent gained and another one lost."""
    sums: dict[str, float] = {}
    for player, turns in plays:
        sums[player.id] = sums.get(player.id, 0.0) + turns[-1].pnl
    return max(sums.values()) > 0 > min(sums.values())


def _turn(
    rng: random.Random,
    markets: Sequence[Market],
    player: Agent,
    number: int,
    action: str,
    pnl: float,
) -> Turn:
    market = markets[-1] if action == "HOLD" else rng.choice(markets[:-1])
    if action not in ("BUY_SHARES", "SELL_SHARES"):
        return Turn(number, market, action, pnl)
    up = (market.momentum > 0) == (rng.random() < player.skill)
    bought = up if action == "BUY_SHARES" else not up
    amount = rng.choice(_AMOUNTS)
    success = rng.random() < 0.95
    won = up == market.outcome
    gain = amount * (rng.uniform(0.6, 1.0) if won else -rng.uniform(0.6, 1.0)) if success else 0.0
    side = "YES" if bought else "NO"
    return Turn(number, market, action, pnl, side, amount, success, round(gain, 2))
