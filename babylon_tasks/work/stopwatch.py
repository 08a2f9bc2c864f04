"""Measures the phases of a step."""

from __future__ import annotations

import time
from collections.abc import Mapping


class Stopwatch:
    """Sums the seconds of each phase; a phase may run several times.

    The sum of `seconds` is the time from its creation to the last call.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._since = time.monotonic()

    def end(self, name: str) -> None:
        """Add the time since the last call to this phase."""
        self._add(name, self._lap())

    def end_measured(self, measured: Mapping[str, float], rest: str) -> None:
        """Add seconds that others measured to their phases; the rest of the time goes to `rest`."""
        unmeasured = self._lap() - sum(measured.values())
        for name, seconds in measured.items():
            self._add(name, seconds)
        self._add(rest, max(unmeasured, 0.0))

    def _lap(self) -> float:
        now = time.monotonic()
        lap, self._since = now - self._since, now
        return lap

    def _add(self, name: str, seconds: float) -> None:
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds
