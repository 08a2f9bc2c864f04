"""Reads a window's traces for the scorers: decodes and filters them, counts what is left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence, Set
from contextlib import aclosing
from dataclasses import dataclass, replace

from babylon_tasks.records.actions import AgentRun, run_of
from babylon_tasks.records.recorded_steps import RawTrace, Unusable, parse_steps
from babylon_tasks.records.shares import takes_share
from babylon_tasks.records.traces import Outcome, decode
from babylon_tasks.records.versions import Versions
from babylon_tasks.scoring import filters
from babylon_tasks.scoring.own import OwnVersions, VersionCounts
from babylon_tasks.scoring.scorer import Group
from babylon_tasks.store import markets, steps
from babylon_tasks.store.traces import TraceReader
from babylon_tasks.store.windows import Counts
from babylon_tasks.work.context import Context
from babylon_tasks.work.remembered import Batch, complete


@dataclass(frozen=True, slots=True)
class ReadWindow:
    """A window's traces: those to score, the unusable ones, and the counts of what is left out.

    `filtered` has the ids of those that can be used, but that a filter left out. `by_version` says
    what each of the lineage's own versions did. `counts` and the funnel are of the window's own
    rows, without `isEvaluation`; `rows` counts all that were read.
    """

    group: Group
    counts: Counts
    unusable: Mapping[str, Unusable]
    filtered: Set[str]
    funnel: Counter[str]
    by_version: Mapping[str, VersionCounts]
    rows: int = 0


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
    reading = _Reading(context, sees_runs)
    async with aclosing(reader.read(window_id)) as rows:
        async for raw in rows:
            on_row()
            reading.add(raw)
    lineage, settings, unusable = context.lineage.name, context.settings, reading.unusable
    outcomes = [_in_exam(each, lineage, settings.exam_percent) for each in reading.outcomes()]
    window_markets, known = [], {}
    with context.database.transaction() as tx:
        if sees_runs:
            window_markets = markets.read(tx, window_id)
        if any(outcome.answered for outcome in outcomes):
            known = steps.steps_of_versions(tx, lineage)
    own = OwnVersions(Versions(lineage, known))
    outcomes = [own.claim(outcome) for outcome in outcomes]
    of_window = [outcome for outcome in outcomes if not outcome.evaluation]
    kept, funnel = filters.apply(of_window, settings, window_id, own.did)
    unreadable = len(unusable.keys() - reading.evaluations)
    counts = Counts(len(reading.agents), len(of_window) + unreadable)
    funnel["trajectories"] = counts.trajectories
    funnel["unreadable"] = unreadable
    _count(kept, funnel)
    if len(of_window) < len(outcomes):
        # Apart, so that they take no place of MAX_PER_WINDOW from those that train.
        evaluations = [outcome for outcome in outcomes if outcome.evaluation]
        examined, _ = filters.apply(evaluations, settings, window_id, own.did)
        funnel["evaluations"] = len(examined)
        kept += examined
    scored = [outcome for outcome in kept if outcome.floored is None]
    floored = [outcome for outcome in kept if outcome.floored is not None]
    return ReadWindow(
        Group(window_id, scored, reading.runs, window_markets, floored),
        counts,
        unusable,
        {o.trajectory_id for o in outcomes} - {o.trajectory_id for o in kept},
        funnel,
        own.count(kept),
        len(outcomes) + len(unusable),
    )


class _Reading:
    """Decodes the traces of one window, and completes them, some at a time."""

    def __init__(self, context: Context, sees_runs: bool) -> None:
        self._context, self._sees_runs = context, sees_runs
        self.agents: set[str] = set()
        self.evaluations: set[str] = set()  # trajectory ids
        self.runs: dict[str, AgentRun] = {}
        self.unusable: dict[str, Unusable] = {}
        self._outcomes: list[Outcome] = []
        self._batch = Batch()

    def add(self, raw: RawTrace) -> None:
        if raw.evaluation:
            self.evaluations.add(raw.trajectory_id)
        else:
            self.agents.add(raw.agent_id)
        try:
            parsed = parse_steps(raw)
            trace = decode(raw, parsed)
            if self._sees_runs:
                self.runs[raw.trajectory_id] = run_of(raw, parsed)
        except Unusable as verdict:
            self.unusable[raw.trajectory_id] = verdict
            return
        if self._batch.add(raw, trace):
            self._complete()

    def outcomes(self) -> list[Outcome]:
        """Return the outcomes of all usable traces, in order."""
        self._complete()
        return self._outcomes

    def _complete(self) -> None:
        traces = complete(self._context.database, self._batch.traces, with_tokens=False)
        self._outcomes += [trace.outcome for trace in traces]
        self._batch = Batch()


def _in_exam(outcome: Outcome, lineage: str, percent: float) -> Outcome:
    """Mark a run for exams alone: the app says so, or EXAM_PERCENT keeps its agent for them."""
    if outcome.evaluation or takes_share(f"exam {lineage}", outcome.agent_id, percent):
        return replace(outcome, exam_only=True)
    return outcome


def _count(kept: Sequence[Outcome], funnel: Counter[str]) -> None:
    """Count the trajectories that get a score, and the calls of those that may train."""
    funnel["scored"] = len(kept)
    funnel["exam_only"] = sum(outcome.exam_only for outcome in kept)
    to_train = [outcome for outcome in kept if not outcome.exam_only]
    funnel["floored_runs"] = sum(outcome.floored is not None for outcome in to_train)
    for outcome in to_train:
        funnel["calls"] += outcome.calls
        funnel["floored_calls"] += len(outcome.badly)
        funnel.update(outcome.left_out)
        if outcome.captured or outcome.uncaptured:
            funnel.update(captured=outcome.captured, uncaptured=outcome.uncaptured)
