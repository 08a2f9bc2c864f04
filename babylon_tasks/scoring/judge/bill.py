"""What a judge's answers cost."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(slots=True)
class Bill:
    """The sum over some answers; `usd` is None if the price of one is unknown."""

    answers: int = 0
    tokens: int = 0
    usd: float | None = 0.0

    def add(self, tokens: int, usd: float | None) -> None:
        """Count one answer."""
        self.include(Bill(1, tokens, usd))

    def include(self, other: Bill) -> None:
        """Count the answers of another bill."""
        self.answers += other.answers
        self.tokens += other.tokens
        self.usd = None if self.usd is None or other.usd is None else self.usd + other.usd

    def times(self, factor: float) -> Bill:
        """Return the bill of `factor` times as many answers, rounded to whole ones."""
        usd = None if self.usd is None else factor * self.usd
        return Bill(round(factor * self.answers), round(factor * self.tokens), usd)


def total(bills: Iterable[Bill]) -> Bill:
    """Return the sum of the bills."""
    one = Bill()
    for each in bills:
        one.include(each)
    return one
