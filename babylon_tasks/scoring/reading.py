"""Reads a window's traces for the scorers: decodes and filters them, counts what is left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence, Set
from contextlib import aclosing
from dataclasses import dataclass

from babylon_tasks.records.actions import AgentRun, run_of
from babylon_tasks.records.recorded_steps import Unusable, parse_steps
from babylon_tasks.records.traces import Outcome, decode
from babylon_tasks.records.versions import Versions
from babylon_tasks.scoring import filters
from babylon_tasks.scoring.own import OwnVersions, VersionCounts
from babylon_tasks.scoring.scorer import Group
from babylon_tasks.store import markets, steps
from babylon_tasks.store.traces import TraceReader
from babylon_tasks.store.windows import Counts
from babylon_tasks.work.context import Context


@dataclass(frozen=True, slots=True)
class ReadWindow:
    """A window's traces: those to score, the unusable ones, and the counts of what is left out.

    `filtered` has the ids of those that can be used, but that a filter left out. `by_version` says
    what each of the lineage's own versions did.
    """

    group: Group
    counts: Counts
    unusable: Mapping[str, Unusable]
    filtered: Set[str]
    funnel: Counter[str]
    by_version: Mapping[str, VersionCounts]


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
                parsed = parse_steps(raw)
                outcome = decode(raw, parsed).outcome
                if sees_runs:
                    runs[raw.trajectory_id] = run_of(raw, parsed)
                outcomes.append(outcome)
            except Unusable as verdict:
                unusable[raw.trajectory_id] = verdict
    window_markets, known = [], {}
    with context.database.transaction() as tx:
        if sees_runs:
            window_markets = markets.read(tx, window_id)
        if any(outcome.answered for outcome in outcomes):
            known = steps.steps_of_versions(tx, context.lineage.name)
    own = OwnVersions(Versions(context.lineage.name, known))
    outcomes = [own.claim(outcome) for outcome in outcomes]
    kept, funnel = filters.apply(outcomes, context.settings, window_id, own.did)
    funnel["trajectories"] = len(outcomes) + len(unusable)
    funnel["unreadable"] = len(unusable)
    _count(kept, funnel)
    scored = [outcome for outcome in kept if outcome.floored is None]
    floored = [outcome for outcome in kept if outcome.floored is not None]
    return ReadWindow(
        Group(window_id, scored, runs, window_markets, floored),
        Counts(len(agents), len(outcomes) + len(unusable)),
        unusable,
        {o.trajectory_id for o in outcomes} - {o.trajectory_id for o in kept},
        funnel,
        own.count(kept),
    )


def _count(kept: Sequence[Outcome], funnel: Counter[str]) -> None:
    """Count the trajectories that get a score, and their calls."""
    funnel["scored"] = len(kept)
    funnel["floored_runs"] = sum(outcome.floored is not None for outcome in kept)
    for outcome in kept:
        funnel["calls"] += outcome.calls
        funnel["floored_calls"] += len(outcome.badly)
        funnel.update(outcome.left_out)
