"""Where the seconds of a step go."""

from __future__ import annotations

import time
from collections.abc import Mapping


class Stopwatch:
    """A stopwatch with a name for each stretch; one phase may have several stretches.

    `seconds` adds up to the time since it was made, up to the last call.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._since = time.monotonic()

    def end(self, name: str) -> None:
        """All time since the last call was spent on this."""
        self._add(name, self._lap())

    def end_known(self, known: Mapping[str, float], rest: str) -> None:
        """Of the time since the last call so much is accounted for; the rest has this name."""
        left = self._lap() - sum(known.values())
        for name, seconds in known.items():
            self._add(name, seconds)
        self._add(rest, max(left, 0.0))

    def _lap(self) -> float:
        now = time.monotonic()
        lap, self._since = now - self._since, now
        return lap

    def _add(self, name: str, seconds: float) -> None:
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds
