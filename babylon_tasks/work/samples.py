"""Reads a step's samples: the calls of scored trajectories, unchanged since they were scored.

Calls that a version of the lineage did badly are no part of what their trajectory is rewarded for:
they are a sample of their own, with the lowest score of the window.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import msgspec

from babylon_tasks.records.recorded_steps import RawTrace, Unusable
from babylon_tasks.records.scores import no_signal
from babylon_tasks.records.steps import Call, Sample
from babylon_tasks.records.traces import Trace, decode
from babylon_tasks.records.versions import Distances, Versions
from babylon_tasks.records.windows import Window
from babylon_tasks.settings import Settings
from babylon_tasks.store import logprobs, scores, steps
from babylon_tasks.store.database import Connection
from babylon_tasks.store.scores import Source, StoredScore
from babylon_tasks.store.traces import TraceReader, open_reader
from babylon_tasks.work.context import Context
from babylon_tasks.work.remembered import Batch, complete


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A window that cannot train now: for want of signal, or since a trace was rewritten.

    `no_signal` is the reason; None if a trace changed after it was scored. `funnel` counts what was
    left out of it.
    """

    window: Window
    no_signal: str | None
    funnel: Counter[str]


@dataclass(frozen=True, slots=True)
class RewardSource:
    """Whose scores are a window's rewards; the last two are None if no judge was asked."""

    scorer: str
    judge_model: str | None
    rubric_hash: str | None


@dataclass(frozen=True, slots=True)
class StepSamples:
    """The windows that a step will train, and the rewards by trajectory id.

    `funnels` counts what was left out of each window after it was scored. `ages` counts the calls
    by age (how many steps their version is behind the head), without calls of unknown age.
    `sources` says whose scores each window has, `attached` counts its calls with log-probabilities
    that a server gave. `left_out` has the other windows.
    """

    windows: list[Window] = field(default_factory=list)
    rewards: dict[str, float] = field(default_factory=dict)
    funnels: dict[str, Counter[str]] = field(default_factory=dict)
    ages: Counter[int] = field(default_factory=Counter)
    sources: dict[str, RewardSource] = field(default_factory=dict)
    attached: Counter[str] = field(default_factory=Counter)
    left_out: list[LeftOut] = field(default_factory=list)

    def staleness(self) -> dict[str, float]:
        """Return metrics of the step: calls of known age, and their mean and largest age in steps.

        The last two are missing if no age is known.
        """
        calls_of_known_age = self.ages.total()
        metrics = {"staleness_known": float(calls_of_known_age)}
        if calls_of_known_age:
            total = sum(age * calls for age, calls in self.ages.items())
            metrics["staleness_mean"] = total / calls_of_known_age
            metrics["staleness_max"] = float(max(self.ages))
        return metrics


class Staleness:
    """Tells how many steps a call's version is behind the head, and whether these are too many.

    The age is unknown if the version is not recorded or of another lineage. Of a version that was
    given up, the steps that the head has not count as well as those that it has.
    """

    def __init__(self, settings: Settings, versions: Versions, distances: Distances) -> None:
        self._most = settings.max_staleness
        self._versions, self._distances = versions, distances

    def of(self, version: str | None) -> int | None:
        """Return the age in steps, or None if it is unknown."""
        step = self._versions.step_of(version)
        return None if step is None else self._distances.of(step)

    def too_many(self, steps: int | None) -> bool:
        """Tell whether a call of that age is left out."""
        return self._most is not None and steps is not None and steps > self._most


def staleness_at(tx: Connection, context: Context, head: int) -> Staleness:
    """Return the ages of calls, counted from this step of the context's lineage."""
    name = context.lineage.name
    versions = Versions(name, steps.steps_of_versions(tx, name))
    return Staleness(context.settings, versions, Distances(steps.parents(tx, name), head))


@dataclass(slots=True)
class _WindowSamples:
    """The samples written for one window; `rewritten`: a trace changed after it was scored.

    `lowest` is the lowest score of the window. `rewards` is by trajectory id, `of_samples` has the
    reward of each sample.
    """

    source: RewardSource
    lowest: float = 0.0
    rewards: dict[str, float] = field(default_factory=dict)
    of_samples: list[float] = field(default_factory=list)
    funnel: Counter[str] = field(default_factory=Counter)
    ages: Counter[int] = field(default_factory=Counter)
    attached: int = 0
    rewritten: bool = False


# A trajectory's reward, and where its samples count.
_Reward = tuple[float, _WindowSamples]


async def collect(
    context: Context,
    windows: Sequence[Window],
    staleness: Staleness,
    path: Path,
    on_row: Callable[[], None] = lambda: None,
    *,
    exams: bool = False,
) -> StepSamples:
    """Write the samples of every window that still has signal to `path`, one JSON line each.

    Trajectories for exams alone are left out; with `exams` they are written too. Whether a window
    has signal, and which are left out, does not depend on them.

    It writes nothing into the database: what becomes of a window that is left out is the caller's
    to say. `on_row` is called with each trace; an error that it raises is passed on.

    Raises:
        ServerUnavailable, Retryable, Final: As `TraceReader.read` does.
    """
    samples = StepSamples()
    with path.open("wb") as file:
        async with open_reader(context.database, context.settings) as reader:
            collector = _Collector(context, staleness, reader, file, exams)
            for window in windows:
                start = file.tell()
                written = await collector.collect(window, on_row)
                reason = no_signal(written.of_samples, context.settings.min_reward_spread)
                if not written.rewritten and reason is None:
                    samples.windows.append(window)
                    samples.rewards.update(written.rewards)
                    samples.funnels[window.window_id] = written.funnel
                    samples.ages.update(written.ages)
                    samples.sources[window.window_id] = written.source
                    samples.attached[window.window_id] = written.attached
                    continue
                file.truncate(start)
                file.seek(start)
                why = None if written.rewritten else reason
                samples.left_out.append(LeftOut(window, why, written.funnel))
    return samples


class _Collector:
    """Reads windows and writes their samples, one trajectory at a time."""

    def __init__(
        self,
        context: Context,
        staleness: Staleness,
        reader: TraceReader,
        file: BinaryIO,
        exams: bool,
    ) -> None:
        self._context, self._staleness = context, staleness
        self._reader, self._file, self._exams = reader, file, exams
        self._attached: set[str] = set()  # trajectories that a server was asked about

    async def collect(self, window: Window, on_row: Callable[[], None]) -> _WindowSamples:
        scorer = window.scorer or self._context.settings.scoring
        source = Source(self._context.lineage.name, scorer, window.window_id)
        with self._context.database.transaction() as tx:
            scored = scores.read(tx, source)
            asked = logprobs.asked(tx, source.model_name, window.window_id)
        self._attached = {each.trajectory_id for each in asked}
        lowest = min((score.score for score in scored.values()), default=0.0)
        written = _WindowSamples(_reward_source(scorer, scored.values()), lowest)
        examined = _WindowSamples(written.source, lowest)  # of those that never train
        batch, rewards = Batch(), list[_Reward]()
        async with aclosing(self._reader.read(window.window_id)) as rows:
            async for raw in rows:
                on_row()
                score = scored.pop(raw.trajectory_id, None)
                if score is None:
                    continue  # it came late, or was set aside
                exam_only = score.exam_only or raw.evaluation
                # A row with `isEvaluation` is in no count, unless it got that after it was scored.
                written.funnel["gone"] += raw.evaluation and not score.exam_only
                written.funnel["exam_only"] += score.exam_only and not raw.evaluation
                trace = _unchanged(raw, score) if self._exams or not exam_only else None
                if trace is None:
                    if exam_only:
                        continue
                    written.rewritten = True
                    return written
                rewards.append((score.score, examined if exam_only else written))
                if batch.add(raw, trace):
                    self._write_all(window, batch, rewards)
                    batch, rewards = Batch(), []
        self._write_all(window, batch, rewards)
        written.rewards.update(examined.rewards)
        written.funnel["gone"] += sum(not score.exam_only for score in scored.values())
        return written

    def _write_all(self, window: Window, batch: Batch, rewards: Sequence[_Reward]) -> None:
        traces = complete(self._context.database, batch.traces, with_tokens=True)
        for trace, (reward, written) in zip(traces, rewards, strict=True):
            self._write(window, trace, reward, written)

    def _write(self, window: Window, trace: Trace, reward: float, written: _WindowSamples) -> None:
        trajectory_id = trace.outcome.trajectory_id
        calls = self._fresh(zip(trace.calls, trace.versions, strict=True), written)
        if calls and trajectory_id in self._attached:
            recorded = calls
            calls = self._with_attached(trajectory_id, calls)
            pairs_of_calls = zip(recorded, calls, strict=True)
            written.attached += sum(old.logprobs != new.logprobs for old, new in pairs_of_calls)
        versions = [bad.version for bad in trace.outcome.badly]
        pairs = zip(trace.badly, versions, strict=True)
        # Of unknown age are the calls of other models: what they did badly is left out.
        own = [
            (call, version) for call, version in pairs if self._staleness.of(version) is not None
        ]
        badly = self._fresh(own, written)
        for reward_of, some in ((reward, calls), (written.lowest, badly)):
            if some:
                sample = Sample(window.window_id, trajectory_id, reward_of, some)
                self._file.write(msgspec.json.encode(sample) + b"\n")
                written.of_samples.append(reward_of)
                written.rewards.setdefault(trajectory_id, reward_of)
        written.funnel["without_calls"] += not (calls or badly)

    def _fresh(
        self, calls: Iterable[tuple[Call, str | None]], written: _WindowSamples
    ) -> list[Call]:
        """Return the calls, each with its version, that are not too old, and count them."""
        ages = [(call, self._staleness.of(version)) for call, version in calls]
        kept = [(call, age) for call, age in ages if not self._staleness.too_many(age)]
        written.ages.update(age for _, age in kept if age is not None)
        written.funnel["stale"] += len(ages) - len(kept)
        written.funnel["sent"] += len(kept)
        return [call for call, _ in kept]

    def _with_attached(self, trajectory_id: str, calls: list[Call]) -> list[Call]:
        """Return the calls with log-probabilities: the recorded ones, else those of a server."""
        with self._context.database.transaction() as tx:
            attached = logprobs.read(tx, self._context.lineage.name, trajectory_id)
        return [
            call
            if call.logprobs
            else msgspec.structs.replace(call, logprobs=attached.get(logprobs.hash_of(call)))
            for call in calls
        ]


def _unchanged(raw: RawTrace, score: StoredScore) -> Trace | None:
    """Return the decoded trace, or None if it changed after it was scored."""
    try:
        trace = decode(raw)
    except Unusable:
        return None
    return trace if trace.outcome.content_hash == score.content_hash else None


def _reward_source(scorer: str, scored: Iterable[StoredScore]) -> RewardSource:
    """Say whose the scores are: all of a window's were written at once, by one judge if any."""
    judged = next((score for score in scored if score.judge_model), None)
    if judged is None:
        return RewardSource(scorer, None, None)
    return RewardSource(scorer, judged.judge_model, judged.rubric_hash)
