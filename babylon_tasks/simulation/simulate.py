"""Simulated rows as Babylon writes them, for the demo, the benchmarks and the tests.

The market is simple on purpose. The prompt shows the momentum, which predicts the outcome nine
times in ten. An agent's skill is how often it bets with the momentum, and the outcome decides what
it gains. So we know what a model can learn here: bet YES when momentum is up, NO when it is down.

The windows, in UTC hours before `now`'s hour (`0` is the unfinished one): `2 … windows + 1` are
good. With `odd=True` there is also one without signal, one with too few agents and the unfinished
hour, and there are rows that are malformed, strange but valid, or must never count.
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
        windows: Number of good windows, at least 1; the newest is two hours before `now`'s hour.
        agents: Number of agents in a good window, at least 2; each has a row of its own.
        seed: Seed of everything random.
        now: The time; a naive one is UTC.
        odd: Also make the special windows, and the rows that are malformed, strange or never count.
        steps_bytes: Grow each `stepsJson` to about this size (UTF-8 bytes); 0 leaves it as it is.

    Raises:
        ValueError: `windows` or `agents` is too small.
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
        share = slice(back - 2, None, windows)  # each fault and oddity is in one good window
        yield make_rows(
            window,
            kind,
            agents,
            faults=MALFORMED[share] if strange else (),
            odd=ODD[share] if strange else (),
            traps=NEVER_COUNTS if strange or kind == "too_few" else (),
        )


def question(seed: int) -> Question:
    """Make a prompt like those that agents get most often, with a market that no agent has seen."""
    rng = seeded("question", seed)
    market = make_market(rng, "0", rng.choice((-1, 1)) * rng.uniform(2, 9))
    user = short_prompt(agent(seed % 12, seed), Turn(0, market, "BUY_SHARES", pnl=0.0))
    return Question(PERSONAS[0], user, market.right_side)


def calls(seed: int, skill: float) -> Iterator[Call]:
    """Yield LLM calls of agents with this skill (probability), without end, to imitate."""
    rng = seeded("calls", seed)
    for index in itertools.count():
        player = dataclasses.replace(agent(index, seed), skill=skill)
        markets = make_markets(rng, map(str, itertools.count()))
        for turn in play(rng, markets, player):
            yield from turn_calls(rng, markets, player, turn)
