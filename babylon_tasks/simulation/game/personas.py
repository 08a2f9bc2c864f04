"""Scripted agents: each a rule, and how often it follows the rule.

A persona is a probability for each action, so what it earns on average is a sum.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from babylon_tasks.simulation.game.market import DOWN, HOLD, LURE, UP, Market

Rule = Literal["noise", "momentum", "contrarian", "careful", "reckless", "failing", "oracle"]
Chances = tuple[float, float, float]  # of up, down, nothing; what is missing to 1 fails

_EVEN: Chances = (1 / 3, 1 / 3, 1 / 3)
_CAREFUL_EDGE = 0.2  # of the stake: below it a careful agent leaves a market alone


@dataclass(frozen=True, slots=True)
class Persona:
    """A rule, and the probability (`skill`) of following it; else any action is as likely."""

    rule: Rule
    skill: float

    def chances(self, market: Market) -> Chances:
        """Return the probability of each action."""
        ruled, skill = _RULES[self.rule](market), self.skill
        up, down, hold = (skill * r + (1 - skill) * e for r, e in zip(ruled, _EVEN, strict=True))
        return up, down, hold

    def value(self, market: Market) -> float:
        """Return the expected P&L of a decision, in dollars."""
        return expected(self.chances(market), market)


def expected(chances: Chances, market: Market) -> float:
    """Return the expected P&L in dollars of acting with these probabilities; failing earns 0."""
    return sum(
        chance * market.value(action)
        for action, chance in zip((UP, DOWN, HOLD), chances, strict=True)
    )


def _only(action: int) -> Chances:
    up, down, hold = (float(action == each) for each in (UP, DOWN, HOLD))
    return up, down, hold


def _careful(market: Market) -> Chances:
    good = market.value(market.best) >= _CAREFUL_EDGE * market.rules.limit
    return _only(market.best if good else HOLD)


def _follow(signal: str, sign: int) -> Callable[[Market], Chances]:
    def rule(market: Market) -> Chances:
        direction = sign * market.signals[signal]
        return _only(UP if direction > 0 else DOWN if direction < 0 else HOLD)

    return rule


_RULES: dict[Rule, Callable[[Market], Chances]] = {
    "noise": lambda market: _EVEN,
    "momentum": _follow("momentum", 1),
    "contrarian": _follow("momentum", -1),
    "careful": _careful,
    "reckless": _follow(LURE, 1),
    "failing": lambda market: (0.0, 0.0, 0.0),  # its calls fail
    "oracle": lambda market: _only(market.best),
}
NOISE, ORACLE = Persona("noise", 1.0), Persona("oracle", 1.0)
