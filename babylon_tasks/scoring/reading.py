"""Reads a window's traces for the scorers: decodes and filters them, counts what is left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Set
from contextlib import aclosing
from dataclasses import dataclass

from babylon_tasks.records.actions import AgentRun, run_of
from babylon_tasks.records.recorded_steps import Unusable, parse_steps
from babylon_tasks.records.traces import Outcome, decode
from babylon_tasks.scoring import filters
from babylon_tasks.scoring.scorer import Group
from babylon_tasks.store import markets
from babylon_tasks.store.traces import TraceReader
from babylon_tasks.store.windows import Counts
from babylon_tasks.work.context import Context


@dataclass(frozen=True, slots=True)
class ReadWindow:
    """A window's traces: those to score, the unusable ones, and the counts of what is left out.

    `filtered` has the ids of those that can be used, but that a filter left out.
    """

    group: Group
    counts: Counts
    unusable: Mapping[str, Unusable]
    filtered: Set[str]
    funnel: Counter[str]


async def read_window(
    context: Context,
    reader: TraceReader,
    window_id: str,
    *,
    sees_runs: bool,
    on_row: Callable[[], None] = lambda: None,
) -> ReadWindow:
    """Read a window and leave out what does not deserve a score.

    With `sees_runs` the group also gets the runs and the markets, which tell the future. `on_row`
    is called once for each trace that is read.

    Raises:
        ServerUnavailable, Retryable, Final: As `TraceReader.read` does.
    """
    outcomes: list[Outcome] = []
    runs: dict[str, AgentRun] = {}
    unusable: dict[str, Unusable] = {}
    agents: set[str] = set()
    async with aclosing(reader.read(window_id)) as rows:
        async for raw in rows:
            on_row()
            agents.add(raw.agent_id)
            try:
                steps = parse_steps(raw)
                outcome = decode(raw, steps).outcome
                if sees_runs:
                    runs[raw.trajectory_id] = run_of(raw, steps)
                outcomes.append(outcome)
            except Unusable as verdict:
                unusable[raw.trajectory_id] = verdict
    kept, funnel = filters.apply(outcomes, context.settings, window_id)
    funnel["trajectories"] = len(outcomes) + len(unusable)
    funnel["unreadable"] = len(unusable)
    funnel["scored"] = len(kept)
    for outcome in kept:
        funnel["calls"] += outcome.calls
        funnel.update(outcome.left_out)
    window_markets = []
    if sees_runs:
        with context.database.transaction() as tx:
            window_markets = markets.read(tx, window_id)
    return ReadWindow(
        Group(window_id, kept, runs, window_markets),
        Counts(len(agents), len(outcomes) + len(unusable)),
        unusable,
        {o.trajectory_id for o in outcomes} - {o.trajectory_id for o in kept},
        funnel,
    )
