"""Reads a step's samples: the calls of scored trajectories, unchanged since they were scored."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
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
from babylon_tasks.records.windows import State, Window
from babylon_tasks.settings import Settings
from babylon_tasks.store import attempts, leases, logprobs, scores, training_batches, transitions
from babylon_tasks.store.attempts import Ending
from babylon_tasks.store.scores import Source, StoredScore
from babylon_tasks.store.traces import TraceReader, open_reader
from babylon_tasks.store.transitions import WindowEnd
from babylon_tasks.work.context import Context
from babylon_tasks.work.leases import LeaseKeeper


@dataclass(frozen=True, slots=True)
class StepSamples:
    """The windows that a step will train, and the rewards by trajectory id.

    `funnels` counts what was left out of each window after it was scored. `ages` counts the calls
    by age (how many steps their version is behind the head), without calls of unknown age.
    """

    windows: list[Window] = field(default_factory=list)
    rewards: dict[str, float] = field(default_factory=dict)
    funnels: dict[str, Counter[str]] = field(default_factory=dict)
    ages: Counter[int] = field(default_factory=Counter)

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


@dataclass(slots=True)
class _WindowSamples:
    """The samples written for one window; `rewritten`: a trace changed after it was scored."""

    rewards: dict[str, float] = field(default_factory=dict)
    funnel: Counter[str] = field(default_factory=Counter)
    ages: Counter[int] = field(default_factory=Counter)
    rewritten: bool = False


async def collect(
    context: Context,
    keeper: LeaseKeeper,
    windows: Sequence[Window],
    staleness: Staleness,
    path: Path,
) -> StepSamples:
    """Write the samples of every window that still has signal to `path`, one JSON line each.

    A window without signal ends as skipped; a window with a rewritten trace becomes due again.

    Raises:
        LeaseLost: Another worker has taken over.
        ServerUnavailable, Retryable, Final: As `TraceReader.read` does.
    """
    samples = StepSamples()
    with path.open("wb") as file:
        async with open_reader(context.settings) as reader:
            collector = _Collector(context, keeper, staleness, reader, file)
            for window in windows:
                start = file.tell()
                written = await collector.collect(window)
                rewards = list(written.rewards.values())
                reason = no_signal(rewards, context.settings.min_reward_spread)
                if not written.rewritten and reason is None:
                    samples.windows.append(window)
                    samples.rewards.update(written.rewards)
                    samples.funnels[window.window_id] = written.funnel
                    samples.ages.update(written.ages)
                    continue
                file.truncate(start)
                file.seek(start)
                if written.rewritten:
                    _score_again(context, keeper, window)
                elif reason:
                    _skip(context, keeper, window, reason, written.funnel)
    return samples


class _Collector:
    """Reads windows and writes their samples, one trajectory at a time."""

    def __init__(
        self,
        context: Context,
        keeper: LeaseKeeper,
        staleness: Staleness,
        reader: TraceReader,
        file: BinaryIO,
    ) -> None:
        self._context, self._keeper, self._staleness = context, keeper, staleness
        self._reader, self._file = reader, file
        self._attached: set[str] = set()  # trajectories that a server was asked about

    async def collect(self, window: Window) -> _WindowSamples:
        scorer = window.scorer or self._context.settings.scoring
        source = Source(self._context.lineage.name, scorer, window.window_id)
        with self._context.database.transaction() as tx:
            scored = scores.read(tx, source)
            asked = logprobs.asked(tx, source.model_name, window.window_id)
        self._attached = {each.trajectory_id for each in asked}
        written = _WindowSamples()
        async with aclosing(self._reader.read(window.window_id)) as rows:
            async for raw in rows:
                self._keeper.beat()
                score = scored.pop(raw.trajectory_id, None)
                if score is None:
                    continue  # it came late, or was set aside
                trace = _unchanged(raw, score)
                if trace is None:
                    written.rewritten = True
                    return written
                self._write(window, trace, score.score, written)
        written.funnel["gone"] = len(scored)
        return written

    def _write(self, window: Window, trace: Trace, reward: float, written: _WindowSamples) -> None:
        ages = map(self._staleness.of, trace.versions)
        pairs = zip(trace.calls, ages, strict=True)
        kept = [(call, age) for call, age in pairs if not self._staleness.too_many(age)]
        calls = [call for call, _ in kept]
        written.ages.update(age for _, age in kept if age is not None)
        written.funnel["stale"] += len(trace.calls) - len(calls)
        written.funnel["sent"] += len(calls)
        trajectory_id = trace.outcome.trajectory_id
        if not calls:
            written.funnel["without_calls"] += 1
            return
        if trajectory_id in self._attached:
            calls = self._with_attached(trajectory_id, calls)
        sample = Sample(window.window_id, trajectory_id, reward, calls)
        self._file.write(msgspec.json.encode(sample) + b"\n")
        written.rewards[trajectory_id] = reward

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


def _score_again(context: Context, keeper: LeaseKeeper, window: Window) -> None:
    """Make a window with a rewritten trace due again."""
    claim = keeper.claim
    with context.database.transaction() as tx:
        leases.renew(tx, [claim.lease], context.settings.lease_seconds)  # refuses a zombie
        attempts.end(
            tx,
            claim.model_name,
            [claim.lease.token],
            Ending.GIVEN_BACK,
            "a trace was rewritten after it was scored",
            [window.window_id],
        )
        transitions.rescore(tx, claim.model_name, window)


def _skip(
    context: Context, keeper: LeaseKeeper, window: Window, reason: str, funnel: Counter[str]
) -> None:
    """End a window without signal as skipped."""
    claim, ids = keeper.claim, [window.window_id]
    counts = {name: count for name, count in funnel.items() if name != "sent"}
    skipped = WindowEnd(State.SKIPPED, reason=reason, funnel=counts)
    with context.database.transaction() as tx:
        leases.renew(tx, [claim.lease], context.settings.lease_seconds)  # refuses a zombie
        token = claim.lease.token
        attempts.end(tx, claim.model_name, [token], Ending.SKIPPED, reason, ids)
        if transitions.end(tx, claim, window, skipped) and window.batch_id:
            training_batches.fail(
                tx, window.batch_id, f"window {window.window_id} is skipped: {reason}"
            )
