"""A window's markets and their outcomes: the future, which only judges may see."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Market:
    """A row of `market_outcomes`: a stock (`ticker`) or a prediction market (`id`, `question`).

    Prices are in the game's dollars, `change_percent` is over the window; anything may be unknown.
    """

    ticker: str | None
    start_price: float | None
    end_price: float | None
    change_percent: float | None
    id: str | None
    question: str | None
    outcome: str | None

    @property
    def has_prices(self) -> bool:
        """Whether both prices are known."""
        return _is_known(self.start_price) and _is_known(self.end_price)

    def was_right(self, side: str) -> bool | None:
        """Return whether a bet on that side (YES, NO, LONG, SHORT) came true; None if unknown."""
        side = side.strip().upper()
        if side in ("YES", "NO"):
            outcome = (self.outcome or "").strip().upper()
            return outcome == side if outcome in ("YES", "NO") else None
        if side in ("LONG", "SHORT"):
            change = self.change_percent
            if not change and self.start_price is not None and self.end_price is not None:
                change = self.end_price - self.start_price  # the percent is rounded, or missing
            return (change > 0) == (side == "LONG") if change and _is_known(change) else None
        return None


def _is_known(value: float | None) -> bool:
    return value is not None and math.isfinite(value)  # a decimal of Postgres may be NaN
