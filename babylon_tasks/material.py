"""What a step trains on: the calls of scored trajectories, as they were when they were scored."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path

import msgspec

from babylon_tasks import filters
from babylon_tasks.keeper import Keeper
from babylon_tasks.settings import Settings
from babylon_tasks.store import attempts, leases, requests, scores
from babylon_tasks.store import windows as window_rows
from babylon_tasks.store.attempts import Ending
from babylon_tasks.store.leases import Lease
from babylon_tasks.store.scores import StoredScore
from babylon_tasks.store.traces import TraceReader, open_reader
from babylon_tasks.traces import Unusable, decode
from babylon_tasks.training import Sample
from babylon_tasks.windows import State, Window
from babylon_tasks.worker import Worker


@dataclass(frozen=True, slots=True)
class Material:
    """What a step will train on: the windows that are left, and rewards by trajectory id.

    `funnels` counts what was left out of each window since it was scored.
    """

    windows: list[Window]
    rewards: dict[str, float]
    funnels: dict[str, Counter[str]]


class TooOld:
    """Whether a call was answered by a version too many steps behind the head.

    A version that is none of this lineage, or not recorded, has no known age.
    """

    def __init__(
        self, settings: Settings, head_step: int, steps_of_versions: dict[str, int]
    ) -> None:
        self._most, self._head_step = settings.max_staleness, head_step
        self._steps = steps_of_versions
        self._prefix = f"{settings.model_name}-"

    def __call__(self, version: str | None) -> bool:
        if self._most is None or version is None:
            return False
        step = self._steps.get(version.removeprefix(self._prefix))
        return step is not None and self._head_step - step > self._most


async def collect(
    worker: Worker,
    keeper: Keeper,
    lease: Lease,
    windows: Sequence[Window],
    too_old: TooOld,
    path: Path,
) -> Material:
    """Write the samples of every window that still has signal, a trajectory at a time."""
    settings = worker.settings
    material = Material([], {}, {})
    with path.open("wb") as file:
        async with open_reader(settings) as reader:
            for window in windows:
                with worker.database.transaction() as tx:
                    known = scores.read(
                        tx,
                        model_name=settings.model_name,
                        scorer=window.scorer or settings.scoring,
                        window_id=window.window_id,
                    )
                start = file.tell()
                funnel: Counter[str] = Counter()
                own, stale = await _collect_window(
                    reader, keeper, window, known, too_old, funnel, file.write
                )
                reason = filters.no_signal(list(own.values()), settings.min_reward_spread)
                if not stale and reason is None:
                    material.windows.append(window)
                    material.rewards.update(own)
                    material.funnels[window.window_id] = funnel
                    continue
                file.truncate(start)
                file.seek(start)
                _set_aside(worker, lease, window, funnel, None if stale else reason)
    return material


async def _collect_window(
    reader: TraceReader,
    keeper: Keeper,
    window: Window,
    known: dict[str, StoredScore],
    too_old: TooOld,
    funnel: Counter[str],
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
            pairs = zip(trace.calls, trace.versions, strict=True)
            calls = [call for call, version in pairs if not too_old(version)]
            funnel["stale"] += len(trace.calls) - len(calls)
            if calls:
                sample = Sample(window.window_id, raw.trajectory_id, score.score, calls)
                write(msgspec.json.encode(sample) + b"\n")
                own[raw.trajectory_id] = score.score
            else:
                funnel["without_calls"] += 1
            funnel["sent"] += len(calls)
    funnel["gone"] = len(known)
    return own, False


def _set_aside(
    worker: Worker, lease: Lease, window: Window, funnel: Counter[str], reason: str | None
) -> None:
    """Skip a window that has no signal left, or have a rewritten one (no reason) scored again."""
    settings = worker.settings
    name, tokens, ids = settings.model_name, [lease.token], [window.window_id]
    with worker.database.transaction() as tx:
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
            holder=worker.holder,
            reason=reason,
            funnel={name: count for name, count in funnel.items() if name != "sent"},
        )
        if ended and window.batch_id:
            requests.fail(tx, window.batch_id, f"window {window.window_id} is skipped: {reason}")
