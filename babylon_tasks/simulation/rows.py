"""All rows of a window."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from datetime import timedelta

from babylon_tasks.simulation.agents import Agent, agent
from babylon_tasks.simulation.market import TICKERS
from babylon_tasks.simulation.oddities import malformed, never_counting
from babylon_tasks.simulation.play import Turn, has_signal, play, steady_play
from babylon_tasks.simulation.records import (
    Kind,
    Malformed,
    NeverCounts,
    Odd,
    OutcomeRow,
    WindowRows,
)
from babylon_tasks.simulation.trajectories import make_trajectory
from babylon_tasks.simulation.window import Window

_FLAT_PNL = 84.0
_TRAP_PNL = 5_000.0  # P&L of rows that never count: counting them by mistake changes the scores


def make_rows(
    window: Window,
    kind: Kind,
    agents: int,
    faults: Sequence[Malformed],
    odd: Sequence[Odd],
    traps: Sequence[NeverCounts],
) -> WindowRows:
    """Make the agents' rows, then malformed rows of one more agent, then rows that never count."""
    rng, seed = window.rng, window.seed
    plays = _plays(window, kind, 1 if kind == "too_few" else agents, "repeated_agent" in odd)
    notes: dict[int, list[Odd]] = {}
    for index, what in enumerate(odd):
        # The repeated agent has the last row; the other oddities go to the agents in turn.
        at = len(plays) - 1 if what == "repeated_agent" else index % agents
        notes.setdefault(at, []).append(what)
    rows = [
        make_trajectory(window, player, turns, notes.get(at, ()))
        for at, (player, turns) in enumerate(plays)
    ]
    odd_ids = {rows[at].trajectory_id: tuple(what) for at, what in notes.items()}
    malformed_ids: dict[str, Malformed] = {}
    for fault in faults:
        extra = agent(agents, seed)
        row = make_trajectory(window, extra, play(rng, window.markets, extra))
        rows.append(malformed(row, fault))
        malformed_ids[row.trajectory_id] = fault
    trap_ids: dict[str, NeverCounts] = {}
    for trap in traps:
        second = agent(1, seed)
        turns = steady_play(rng, window.markets, second, _TRAP_PNL)
        row = make_trajectory(window, second, turns)
        rows.append(never_counting(row, trap))
        trap_ids[row.trajectory_id] = trap
    used = {row.agent_id for row in rows}
    players = (agent(index, seed) for index in range(agents + 1))
    return WindowRows(
        window_id=window.id,
        kind=kind,
        agents=tuple(player for player in players if player.id in used),
        trajectories=tuple(rows),
        outcomes=() if kind == "unfinished" else tuple(_outcomes(window)),
        malformed=malformed_ids,
        odd=odd_ids,
        never_counts=trap_ids,
    )


def _plays(
    window: Window, kind: Kind, agents: int, repeated_agent: bool
) -> list[tuple[Agent, list[Turn]]]:
    """Draw each agent's steps; for a good window, until one agent wins and another one loses."""
    rng = window.rng
    players = [agent(index, window.seed) for index in range(agents)]
    if repeated_agent:
        players.append(players[-1])
    if kind == "no_signal":
        return [(p, steady_play(rng, window.markets, p, _FLAT_PNL)) for p in players]
    for _ in range(1000):
        plays = [(p, play(rng, window.markets, p)) for p in players]
        if kind != "good" or has_signal(plays):
            return plays
        # With these outcomes all agents may win, or all lose; new outcomes change that.
        window.markets = [
            dataclasses.replace(m, outcome=rng.random() < 0.5) for m in window.markets
        ]
    raise AssertionError("no draw had both a winner and a loser")


def _outcomes(window: Window) -> Iterator[OutcomeRow]:
    """Yield outcomes of stocks and markets, written within five minutes after the window's end."""
    rng = window.rng
    at = window.start + timedelta(hours=1, seconds=rng.randint(5, 290))
    for ticker in TICKERS[:3]:
        before = round(rng.uniform(20, 200), 2)
        after = round(before * rng.uniform(0.94, 1.06), 2)
        change = round((after - before) / before * 100, 2)
        yield OutcomeRow(
            id=next(window.ids),
            window_id=window.id,
            stock_ticker=ticker,
            start_price=before,
            end_price=after,
            change_percent=change,
            sentiment="BULLISH" if change > 0 else "BEARISH",
            created_at=at,
        )
    for market in window.markets:
        sure = round(rng.uniform(0.8, 0.98), 4)
        yield OutcomeRow(
            id=next(window.ids),
            window_id=window.id,
            prediction_market_id=market.id,
            question=market.question,
            outcome="YES" if market.outcome else "NO",
            final_probability=sure if market.outcome else round(1 - sure, 4),
            created_at=at,
        )
