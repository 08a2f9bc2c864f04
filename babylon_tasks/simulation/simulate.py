"""Rows as Babylon writes them, made up from a seed: for the demo, the benchmarks and the tests.

The market is simple on purpose. Momentum stands in the prompt and says the outcome nine times in
ten, an agent's skill is how often it bets with the momentum, and money follows the outcome. So
what a model can learn from these rows is known: side YES when momentum is up, NO when it is down.

Which windows come out, in UTC hours before `now`'s hour (`0` is the unfinished one):
`2 … windows + 1` good, and with `odd=True` one without signal, one with too few agents and the
unfinished hour, beside rows that are malformed, strange but valid, or must never count.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

from babylon_tasks.simulation.agents import PERSONAS, agent
from babylon_tasks.simulation.market import make_market, make_markets
from babylon_tasks.simulation.play import Turn, play
from babylon_tasks.simulation.prompts import Call, Question, short_prompt, turn_calls
from babylon_tasks.simulation.records import (
    MALFORMED,
    NEVER_COUNTS,
    ODD,
    Kind,
    TrajectoryRow,
    WindowRows,
)
from babylon_tasks.simulation.rows import make_rows
from babylon_tasks.simulation.values import seeded
from babylon_tasks.simulation.window import Window
from babylon_tasks.simulation.write import Summary, write

__all__ = [
    "MALFORMED",
    "NEVER_COUNTS",
    "ODD",
    "Call",
    "Question",
    "Summary",
    "TrajectoryRow",
    "WindowRows",
    "agent",
    "calls",
    "question",
    "simulate",
    "write",
]


def simulate(
    windows: int,
    agents: int,
    seed: int,
    now: datetime,
    *,
    odd: bool = True,
    steps_bytes: int = 0,
) -> Iterator[WindowRows]:
    """Make the rows of each window, oldest window first; the same arguments make the same rows.

    Args:
        windows: Good windows, at least 1; the newest is two hours before `now`'s hour.
        agents: Agents of a good window, at least 2; each has a row of its own there.
        seed: Of everything random.
        now: Naive means UTC.
        odd: Also the special windows and the malformed, strange and never counting rows.
        steps_bytes: Grow each `stepsJson` to about this size (UTF-8 bytes); 0: leave it alone.
    """
    if windows < 1 or agents < 2:
        raise ValueError("simulate needs at least 1 window and 2 agents")
    now = now.astimezone(UTC).replace(tzinfo=None) if now.tzinfo else now
    hour = now.replace(minute=0, second=0, microsecond=0)
    kinds: list[tuple[int, Kind]] = [(back, "good") for back in range(windows + 1, 1, -1)]
    if odd:
        kinds = [(windows + 3, "too_few"), (windows + 2, "no_signal"), *kinds, (0, "unfinished")]
    for back, kind in kinds:
        start = hour - timedelta(hours=back)
        end = min(start + timedelta(hours=1), max(now, start + timedelta(seconds=1)))
        window = Window(start, end, seed, steps_bytes)
        strange = odd and kind == "good"
        share = slice(back - 2, None, windows)  # each fault and oddity falls on one good window
        yield make_rows(
            window,
            kind,
            agents,
            faults=MALFORMED[share] if strange else (),
            odd=ODD[share] if strange else (),
            traps=NEVER_COUNTS if strange or kind == "too_few" else (),
        )


def question(seed: int) -> Question:
    """A prompt of the kind the agents get most often, with a market none of them met."""
    rng = seeded("question", seed)
    market = make_market(rng, "0", rng.choice((-1, 1)) * rng.uniform(2, 9))
    user = short_prompt(agent(seed % 12, seed), Turn(0, market, "BUY_SHARES", pnl=0.0))
    return Question(PERSONAS[0], user, market.right_side)


def calls(seed: int, skill: float) -> Iterator[Call]:
    """Endless LLM calls of agents of one skill (probability), for a supervised start."""
    rng = seeded("calls", seed)
    for index in itertools.count():
        player = dataclasses.replace(agent(index, seed), skill=skill)
        markets = make_markets(rng, map(str, itertools.count()))
        for turn in play(rng, markets, player):
            yield from turn_calls(rng, markets, player, turn)
