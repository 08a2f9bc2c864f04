"""One attempt at scoring the windows of a claim: read, score, commit each."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import aclosing

from babylon_tasks import failures, scoring
from babylon_tasks.errors import LeaseLost, ServerUnavailable, StaleClaim
from babylon_tasks.keeper import Keeper
from babylon_tasks.settings import Settings
from babylon_tasks.store import attempts, leases, requests, scores
from babylon_tasks.store import windows as window_rows
from babylon_tasks.store.attempts import Ending
from babylon_tasks.store.leases import Lease
from babylon_tasks.store.traces import TraceReader, open_reader
from babylon_tasks.store.windows import Counts
from babylon_tasks.traces import Outcome, Unusable, decode
from babylon_tasks.windows import State, Window
from babylon_tasks.worker import Worker

log = logging.getLogger(__name__)


async def score_claimed(worker: Worker, keeper: Keeper, claimed: dict[str, Lease]) -> list[str]:
    with worker.database.transaction() as tx:
        windows = window_rows.read(tx, worker.settings.model_name, list(claimed))
    moved: list[str] = []
    async with open_reader(worker.settings) as reader:
        for window in windows:
            if window.state != State.DUE:
                continue  # somebody finished it between our look and our lease
            lease = claimed[window.window_id]
            try:
                await _score_window(worker, reader, keeper, window, lease)
                moved.append(window.window_id)
            except (LeaseLost, StaleClaim, ServerUnavailable):
                raise
            except Exception as error:
                log.exception("scoring %s failed", window.window_id)
                failures.count_failure(worker, window, lease, error)
    return moved


async def _score_window(
    worker: Worker, reader: TraceReader, keeper: Keeper, window: Window, lease: Lease
) -> None:
    settings = worker.settings
    outcomes: list[Outcome] = []
    unusable: dict[str, Unusable] = {}
    agents: set[str] = set()
    async with aclosing(reader.read(window.window_id)) as rows:
        async for raw in rows:
            keeper.beat()
            agents.add(raw.agent_id)
            try:
                outcomes.append(decode(raw).outcome)
            except Unusable as verdict:
                unusable[raw.trajectory_id] = verdict
    found = scoring.heuristic(outcomes)
    reason = _why_skip(settings, outcomes, found)
    state = State.SKIPPED if reason else State.SCORED
    with worker.database.transaction() as tx:
        scores.quarantine(tx, window.window_id, unusable)
        scores.write(
            tx,
            found,
            model_name=settings.model_name,
            scorer=settings.scoring,
            window_id=window.window_id,
        )
        moved = window_rows.mark_scored(
            tx,
            window,
            model_name=settings.model_name,
            lease=lease,
            holder=worker.holder,
            scorer=settings.scoring,
            state=state,
            reason=reason,
            counts=Counts(len(agents), len(outcomes) + len(unusable)),
            text_bytes=sum(o.text_bytes for o in outcomes),
        )
        if not moved:
            raise StaleClaim(f"window {window.window_id} was scored by somebody else")
        if reason and window.batch_id:
            requests.fail(tx, window.batch_id, f"window {window.window_id} is skipped: {reason}")
        ending = Ending.SKIPPED if reason else Ending.DONE
        attempts.end(tx, settings.model_name, [lease.token], ending, reason)
        leases.release(tx, [lease])
    keeper.finished(lease)
    log.info(
        "scored %s: %d agents, %d trajectories, %d set aside%s",
        window.window_id,
        len(agents),
        len(outcomes),
        len(unusable),
        f", skipped ({reason})" if reason else "",
    )


def _why_skip(
    settings: Settings, outcomes: Sequence[Outcome], found: Sequence[scoring.Score]
) -> str | None:
    agents = len({o.agent_id for o in outcomes})
    if agents < settings.min_agents_per_window:
        return f"{agents} agents with usable traces, needs {settings.min_agents_per_window}"
    trainable = {o.trajectory_id for o in outcomes if o.text_bytes}
    rewards = [s.score for s in found if s.trajectory_id in trainable]
    return scoring.no_signal(rewards, settings.min_reward_spread)
