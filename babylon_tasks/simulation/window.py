"""An hour of the game, and the random sequence from which all its rows are drawn."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta

from babylon_tasks.records.windows import window_id_at
from babylon_tasks.simulation.feed import make_posts
from babylon_tasks.simulation.market import make_markets
from babylon_tasks.simulation.values import milliseconds, seeded, snowflake, unix_ms


class Window:
    """An hour of the game; times are naive UTC, and every trajectory has ended by `end`."""

    def __init__(self, start: datetime, end: datetime, seed: int, steps_bytes: int) -> None:
        self.id = window_id_at(start.replace(tzinfo=UTC))
        self.start, self.end = start, end
        self.seed, self.steps_bytes = seed, steps_bytes
        self.rng = seeded("window", seed, self.id)
        self.ids = (
            snowflake(unix_ms(start) + n // 4096, seed % 1024, n % 4096) for n in itertools.count()
        )  # unique in the window, and different for another seed
        self.markets = make_markets(self.rng, self.ids)
        self.posts = make_posts(self.rng) if steps_bytes else []

    def draw_times(self) -> tuple[datetime, datetime]:
        """Draw when a trajectory began and ended."""
        whole = milliseconds(self.end - self.start)
        first = self.rng.randrange(whole // 2)
        last = self.rng.randrange(first + whole // 4, whole)
        return self.start + timedelta(milliseconds=first), self.start + timedelta(milliseconds=last)
