"""What a step trains on: the calls of scored trajectories, as they were when they were scored."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path

import msgspec

from babylon_tasks.records.steps import Call, Sample
from babylon_tasks.records.traces import Unusable, decode
from babylon_tasks.records.versions import Versions
from babylon_tasks.records.windows import State, Window
from babylon_tasks.scoring import filters
from babylon_tasks.settings import Settings
from babylon_tasks.store import attempts, leases, logprobs, scores, training_batches
from babylon_tasks.store import windows as window_rows
from babylon_tasks.store.attempts import Ending
from babylon_tasks.store.leases import Lease
from babylon_tasks.store.scores import StoredScore
from babylon_tasks.store.traces import TraceReader, open_reader
from babylon_tasks.work.context import Context
from babylon_tasks.work.leases import LeaseKeeper


@dataclass(frozen=True, slots=True)
class StepSamples:
    """What a step will train on: the windows that are left, and rewards by trajectory id.

    `funnels` counts what was left out of each window since it was scored; `ages` the calls by how
    many steps old their version is, those of known age.
    """

    windows: list[Window]
    rewards: dict[str, float]
    funnels: dict[str, Counter[str]]
    ages: Counter[int]

    def staleness(self) -> dict[str, float]:
        """Metrics of the step: calls of known age, and in steps their mean and largest age."""
        known = self.ages.total()
        metrics = {"staleness_known": float(known)}
        if known:
            total = sum(age * calls for age, calls in self.ages.items())
            metrics |= {
                "staleness_mean": total / known, "staleness_max": float(max(self.ages))
            }  # fmt: skip
        return metrics


class Staleness:
    """How many steps behind the head a call's version is, and whether that is too many.

    A version that is none of this lineage, or not recorded, has no known age.
    """

    def __init__(self, settings: Settings, head_step: int, versions: Versions) -> None:
        self._most, self._head_step = settings.max_staleness, head_step
        self._versions = versions

    def of(self, version: str | None) -> int | None:
        """Steps, or None where the age is not known."""
        step = self._versions.step_of(version)
        return None if step is None else self._head_step - step

    def too_many(self, steps: int | None) -> bool:
        """Whether a call of that age is left out."""
        return self._most is not None and steps is not None and steps > self._most


async def collect(
    context: Context,
    keeper: LeaseKeeper,
    lease: Lease,
    windows: Sequence[Window],
    staleness: Staleness,
    path: Path,
) -> StepSamples:
    """Write the samples of every window that still has signal, a trajectory at a time."""
    settings = context.settings
    material = StepSamples([], {}, {}, Counter())
    with path.open("wb") as file:
        async with open_reader(settings) as reader:
            for window in windows:
                with context.database.transaction() as tx:
                    known = scores.read(
                        tx,
                        model_name=settings.model_name,
                        scorer=window.scorer or settings.scoring,
                        window_id=window.window_id,
                    )
                    asked = logprobs.asked(tx, settings.model_name, window.window_id)
                attached = {each.trajectory_id for each in asked}
                start = file.tell()
                funnel: Counter[str] = Counter()
                ages: Counter[int] = Counter()
                own, stale = await _collect_window(
                    context, reader, keeper, window, known, attached, staleness, funnel, ages,
                    file.write,
                )  # fmt: skip
                reason = filters.no_signal(list(own.values()), settings.min_reward_spread)
                if not stale and reason is None:
                    material.windows.append(window)
                    material.rewards.update(own)
                    material.funnels[window.window_id] = funnel
                    material.ages.update(ages)
                    continue
                file.truncate(start)
                file.seek(start)
                _set_aside(context, lease, window, funnel, None if stale else reason)
    return material


async def _collect_window(
    context: Context,
    reader: TraceReader,
    keeper: LeaseKeeper,
    window: Window,
    known: dict[str, StoredScore],
    attached: Collection[str],
    staleness: Staleness,
    funnel: Counter[str],
    ages: Counter[int],
    write: Callable[[bytes], int],
) -> tuple[dict[str, float], bool]:
    """Rewards of the samples written, and whether a trace is not what was judged."""
    own: dict[str, float] = {}
    async with aclosing(reader.read(window.window_id)) as rows:
        async for raw in rows:
            keeper.beat()
            score = known.pop(raw.trajectory_id, None)
            if score is None:
                continue  # it came late, or was set aside
            try:
                trace = decode(raw)
            except Unusable:
                return {}, True
            if trace.outcome.content_hash != score.content_hash:
                return {}, True
            pairs = zip(trace.calls, map(staleness.of, trace.versions), strict=True)
            kept = [(call, age) for call, age in pairs if not staleness.too_many(age)]
            ages.update(age for _, age in kept if age is not None)
            calls = [call for call, _ in kept]
            funnel["stale"] += len(trace.calls) - len(calls)
            if raw.trajectory_id in attached:
                calls = _with_attached(context, raw.trajectory_id, calls)
            if calls:
                sample = Sample(window.window_id, raw.trajectory_id, score.score, calls)
                write(msgspec.json.encode(sample) + b"\n")
                own[raw.trajectory_id] = score.score
            else:
                funnel["without_calls"] += 1
            funnel["sent"] += len(calls)
    funnel["gone"] = len(known)
    return own, False


def _with_attached(context: Context, trajectory_id: str, calls: list[Call]) -> list[Call]:
    """The calls with the log-probabilities that a server gave; recorded ones win."""
    with context.database.transaction() as tx:
        found = logprobs.read(tx, context.settings.model_name, trajectory_id)
    return [
        call
        if call.logprobs
        else msgspec.structs.replace(call, logprobs=found.get(logprobs.hash_of(call)))
        for call in calls
    ]


def _set_aside(
    context: Context, lease: Lease, window: Window, funnel: Counter[str], reason: str | None
) -> None:
    """Skip a window that has no signal left, or have a rewritten one (no reason) scored again."""
    settings = context.settings
    name, tokens, ids = settings.model_name, [lease.token], [window.window_id]
    with context.database.transaction() as tx:
        leases.renew(tx, [lease], settings.lease_seconds)  # a zombie has no say
        if reason is None:
            why = "a trace was rewritten after it was scored"
            attempts.end(tx, name, tokens, Ending.GIVEN_BACK, why, ids)
            window_rows.rescore(tx, name, window)
            return
        attempts.end(tx, name, tokens, Ending.SKIPPED, reason, ids)
        ended = window_rows.end(
            tx,
            window,
            model_name=settings.model_name,
            state=State.SKIPPED,
            holder=context.holder,
            reason=reason,
            funnel={name: count for name, count in funnel.items() if name != "sent"},
        )
        if ended and window.batch_id:
            training_batches.fail(
                tx, window.batch_id, f"window {window.window_id} is skipped: {reason}"
            )
