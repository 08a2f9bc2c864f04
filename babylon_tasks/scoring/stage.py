"""One attempt at scoring the windows of a claim: read, filter, score, commit each."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, TypeVar

from babylon_tasks.errors import (
    JudgeFault,
    JudgePaused,
    JudgeUnavailable,
    LeaseLost,
    ServerUnavailable,
    StaleClaim,
)
from babylon_tasks.records.actions import AgentRun, decode_run
from babylon_tasks.records.scores import Score
from babylon_tasks.records.traces import Outcome, Unusable, decode
from babylon_tasks.records.windows import State, Window
from babylon_tasks.scoring import filters
from babylon_tasks.scoring.judge.rubric import Rubric
from babylon_tasks.scoring.logprobs.attach import Attacher, attaching
from babylon_tasks.scoring.registry import WITHOUT_JUDGE
from babylon_tasks.scoring.scorer import Group, Scorer
from babylon_tasks.settings import Settings
from babylon_tasks.store import attempts, judgments, leases, markets, scores, training_batches
from babylon_tasks.store import windows as window_rows
from babylon_tasks.store.attempts import Ending
from babylon_tasks.store.leases import Lease
from babylon_tasks.store.traces import TraceReader, open_reader
from babylon_tasks.store.windows import Counts
from babylon_tasks.work import failures
from babylon_tasks.work.aio import all_done
from babylon_tasks.work.context import Context
from babylon_tasks.work.leases import LeaseKeeper

log = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Read:
    """A window's traces: those to score, those that cannot be read, and the count of the others."""

    group: Group
    counts: Counts
    unusable: Mapping[str, Unusable]
    funnel: Counter[str]


async def score_claimed(
    context: Context, keeper: LeaseKeeper, claimed: Mapping[str, Lease]
) -> list[str]:
    """Score the claimed windows one after another; return those that moved on."""
    reading = asyncio.Lock()
    async with open_reader(context.settings) as reader, attaching(context) as attacher:

        async def score_all() -> list[str]:
            moved: list[str] = []
            for window in _still_due(context, claimed, WITHOUT_JUDGE):
                if moved and attacher and not attacher.has_time():
                    break  # its lease goes back unused
                lease = claimed[window.window_id]
                scorer = WITHOUT_JUDGE[window.scorer_to_use(context.settings.scoring)]
                if await _score_window(
                    context, reader, keeper, window, lease, scorer, reading, attacher
                ):
                    moved.append(window.window_id)
            return moved

        return await _with_beats(keeper, context.settings, score_all())


async def judge_claimed(
    context: Context,
    keeper: LeaseKeeper,
    claimed: Mapping[str, Lease],
    scorers: Mapping[str, Scorer],
) -> list[str]:
    """Score the claimed windows with a judge, their questions at the same time."""
    reading = asyncio.Lock()  # one connection
    async with open_reader(context.settings) as reader, attaching(context) as attacher:

        async def score_one(window: Window) -> list[str]:
            lease = claimed[window.window_id]
            scorer = scorers[window.scorer_to_use(context.settings.scoring)]
            done = await _score_window(
                context, reader, keeper, window, lease, scorer, reading, attacher
            )
            return [window.window_id] if done else []

        work = all_done(map(score_one, _still_due(context, claimed, scorers)))
        moved = await _with_beats(keeper, context.settings, work)
        return [window_id for each in moved for window_id in each]


async def _with_beats(keeper: LeaseKeeper, settings: Settings, work: Coroutine[Any, Any, T]) -> T:
    """What the work returns; its leases live meanwhile, and it ends where one is lost."""
    beats = asyncio.create_task(_beat(keeper, settings))
    scoring = asyncio.create_task(work)
    try:
        await asyncio.wait((beats, scoring), return_when=asyncio.FIRST_COMPLETED)
        if beats.done():
            beats.result()  # raises: a lease was lost
        return await scoring
    finally:
        beats.cancel()
        scoring.cancel()
        await asyncio.wait((beats, scoring))


async def _beat(keeper: LeaseKeeper, settings: Settings) -> None:
    """A judge, or another server, answers or is given up in bounded time."""
    while True:
        await asyncio.sleep(settings.heartbeat_seconds / 2)
        keeper.beat()


def _still_due(
    context: Context, claimed: Mapping[str, Lease], scorers: Mapping[str, Scorer]
) -> list[Window]:
    """Without those that somebody finished, or wants otherwise, since we claimed them."""
    settings = context.settings
    with context.database.transaction() as tx:
        windows = window_rows.read(tx, settings.model_name, list(claimed))
    return [
        window
        for window in windows
        if window.state == State.DUE and window.scorer_to_use(settings.scoring) in scorers
    ]


async def _score_window(
    context: Context,
    reader: TraceReader,
    keeper: LeaseKeeper,
    window: Window,
    lease: Lease,
    scorer: Scorer,
    reading: asyncio.Lock,
    attacher: Attacher | None,
) -> bool:
    """Whether the window moved on; if not, its row says why."""
    try:
        async with reading:
            read = await read_group(
                context, reader, window.window_id, scorer.sees_runs, keeper.beat
            )
        found = await _score(context, read.group, scorer)
        if attacher and found.why_skip is None:
            read.funnel["unattached"] = await attacher.attach(
                reader,
                reading,
                window.window_id,
                {score.trajectory_id for score in found.scores},
                keeper.beat,
            )
        _commit(context, window, lease, read, found)
        keeper.finished(lease)
    except (LeaseLost, StaleClaim, ServerUnavailable):
        raise
    except JudgeUnavailable as error:
        log.error("window %s waits: %s", window.window_id, error)  # noqa: TRY400 - it says all
        failures.wait(context, window, lease, error, error.wait_seconds)
    except Exception as error:
        if not isinstance(error, JudgeFault):
            log.exception("scoring %s failed", window.window_id)
        failures.count_failure(context, window, lease, error)
    else:
        return True
    return False


async def read_group(
    context: Context,
    reader: TraceReader,
    window_id: str,
    sees_runs: bool,
    on_row: Callable[[], None] = lambda: None,
) -> Read:
    """Read a window and leave out what does not deserve a score."""
    outcomes: list[Outcome] = []
    runs: dict[str, AgentRun] = {}
    unusable: dict[str, Unusable] = {}
    agents: set[str] = set()
    async with aclosing(reader.read(window_id)) as rows:
        async for raw in rows:
            on_row()
            agents.add(raw.agent_id)
            try:
                outcome = decode(raw).outcome
                if sees_runs:
                    runs[raw.trajectory_id] = decode_run(raw)
                outcomes.append(outcome)
            except Unusable as verdict:
                unusable[raw.trajectory_id] = verdict
    kept, funnel = filters.keep(outcomes, context.settings, window_id)
    funnel["trajectories"] = len(outcomes) + len(unusable)
    funnel["unreadable"] = len(unusable)
    funnel["scored"] = len(kept)
    for outcome in kept:
        funnel["calls"] += outcome.calls
        funnel.update(outcome.left_out)
    known = []
    if sees_runs:
        with context.database.transaction() as tx:
            known = markets.read(tx, window_id)
    return Read(
        Group(window_id, kept, runs, known),
        Counts(len(agents), len(outcomes) + len(unusable)),
        unusable,
        funnel,
    )


@dataclass(frozen=True, slots=True)
class _Found:
    """Scores and whose they are, or why there are none to train on.

    `fell_back` is whether a judge was asked before, perhaps paid, and gave none of them.
    """

    scorer: str
    scores: Sequence[Score]
    why_skip: str | None
    rubric: Rubric | None = None
    fell_back: bool = False


async def _score(context: Context, group: Group, scorer: Scorer) -> _Found:
    settings = context.settings
    why_skip = _too_small(settings, group.outcomes)
    if why_skip:
        return _Found(scorer.name, [], why_skip)
    fell_back = False
    try:
        found = await scorer.score(group)
    except (JudgeUnavailable, JudgeFault) as error:
        if settings.judge_fallback == "wait" or isinstance(error, JudgePaused):
            raise
        log.warning("window %s falls back to the heuristic: %s", group.window_id, error)
        scorer, fell_back = WITHOUT_JUDGE["heuristic"], True
        found = await scorer.score(group)
    trainable = {o.trajectory_id for o in group.outcomes if o.text_bytes}
    rewards = [s.score for s in found if s.trajectory_id in trainable]
    why_skip = filters.no_signal(rewards, settings.min_reward_spread)
    return _Found(scorer.name, found, why_skip, scorer.rubric, fell_back)


def _too_small(settings: Settings, outcomes: Sequence[Outcome]) -> str | None:
    """No judge is asked about a group that cannot train."""
    agents = len({o.agent_id for o in outcomes})
    if agents < settings.min_agents_per_window:
        return f"{agents} agents with usable traces, needs {settings.min_agents_per_window}"
    trainable = sum(bool(o.text_bytes) for o in outcomes)
    return None if trainable > 1 else f"{trainable} trainable trajectories, a comparison needs 2"


def _commit(context: Context, window: Window, lease: Lease, read: Read, found: _Found) -> None:
    settings, reason = context.settings, found.why_skip
    judged = any(score.judge_model for score in found.scores)
    paid = judged or found.fell_back
    with context.database.transaction() as tx:
        scores.quarantine(tx, window.window_id, read.unusable)
        scores.write(
            tx,
            found.scores,
            model_name=settings.model_name,
            scorer=found.scorer,
            window_id=window.window_id,
            cost=judgments.cost(tx, settings.model_name, window.window_id) if paid else None,
        )
        moved = window_rows.mark_scored(
            tx,
            window,
            model_name=settings.model_name,
            lease=lease,
            holder=context.holder,
            scorer=found.scorer,
            state=State.SKIPPED if reason else State.SCORED,
            reason=reason,
            counts=read.counts,
            text_bytes=sum(o.text_bytes for o in read.group.outcomes),
            funnel=read.funnel,
        )
        if not moved:
            raise StaleClaim(f"window {window.window_id} was scored by somebody else")
        if settings.primary and (judged or window.score_rev):
            scores.forget_judgments(tx, window.window_id)  # of an earlier round
        if judged and settings.primary and found.rubric:
            scores.tell_app(
                tx,
                model_name=settings.model_name,
                scorer=found.scorer,
                window_id=window.window_id,
                judge_version=f"{found.scorer}-{found.rubric.hash}",
                criteria=found.rubric.as_json(),
            )
        if reason and window.batch_id:
            training_batches.fail(
                tx, window.batch_id, f"window {window.window_id} is skipped: {reason}"
            )
        ending = Ending.SKIPPED if reason else Ending.DONE
        attempts.end(tx, settings.model_name, [lease.token], ending, reason)
        leases.release(tx, [lease])
    log.info(
        "scored %s by %s: %d agents, %d of %d trajectories, %d set aside%s",
        window.window_id,
        found.scorer,
        read.counts.agents,
        len(read.group.outcomes),
        read.counts.trajectories,
        len(read.unusable),
        f", skipped ({reason})" if reason else "",
    )
