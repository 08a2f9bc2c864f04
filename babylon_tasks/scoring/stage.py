"""Stage 2, scoring: windows go from `due` to `scored` or `skipped`, with rows in rl.scores."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from babylon_tasks.records.doing import Doing
from babylon_tasks.records.scores import JUDGED
from babylon_tasks.scoring.registry import WITHOUT_JUDGE, judged_scorers
from babylon_tasks.scoring.run import scoring_run
from babylon_tasks.scoring.scorer import Scorer
from babylon_tasks.store import attempts, clock, leases, transitions
from babylon_tasks.store import windows as window_rows
from babylon_tasks.store.database import Connection
from babylon_tasks.store.leases import Lease
from babylon_tasks.store.windows import DueQuery
from babylon_tasks.work import aio, failures
from babylon_tasks.work.context import Context
from babylon_tasks.work.leases import LeaseKeeper


def score(
    context: Context,
    only: Sequence[str] | None,
    limit: int,
    on_doing: Callable[[Doing], None],
) -> list[str]:
    """Claim up to `limit` due windows and score them, one commit each; return those moved on.

    Windows that need no judge come first; a judge is asked only if none of them moved on.

    Raises:
        LeaseLost, StaleClaim: Another worker has taken over; nothing was written.
        ServerUnavailable: Postgres does not answer.
    """
    settings, name = context.settings, context.lineage.name
    judged, without_judge = _due(context, JUDGED, only), _due(context, WITHOUT_JUDGE, only)

    def claim(tx: Connection) -> tuple[dict[str, Lease], bool]:
        """Claim windows that need no judge; without any, tell whether others wait for one."""
        leased = transitions.claim_due(
            tx, without_judge, context.holder, limit, settings.lease_seconds
        )
        return leased, not leased and window_rows.wait_for_judge(tx, judged)

    with context.database.transaction() as tx:
        lost = attempts.reap_scores(tx, name, settings.max_attempts)
        failures.answer_for(tx, name, lost)
        claimed, judge_is_due = claim(tx)
        if not claimed and not judge_is_due and clock.obey(tx, settings.lease_seconds):
            claimed, judge_is_due = claim(tx)
    if claimed:
        with LeaseKeeper(context, list(claimed.values()), on_doing) as keeper:
            moved = aio.run(score_claimed(context, keeper, claimed))
        if moved:
            return moved
        with context.database.transaction() as tx:
            judge_is_due = window_rows.wait_for_judge(tx, judged)
    return _score_with_judge(context, judged, limit, on_doing) if judge_is_due else []


def _score_with_judge(
    context: Context, due: DueQuery, limit: int, on_doing: Callable[[Doing], None]
) -> list[str]:
    """Claim due windows for a judge, and the judge with them.

    Only one worker at a time judges for a lineage, with many questions at once. So
    JUDGE_CONCURRENCY holds for all workers together, and a judge that hangs blocks only one pool
    process.
    """
    settings, resource = context.settings, leases.judge_of(context.lineage.name)

    def told(answered: int, asked: int) -> None:
        keeper.tell(
            Doing(
                "judge",
                context.lineage.name,
                sorted(claimed),
                phase="judge",
                done=answered,
                total=asked,
            )
        )

    # It may import for seconds, so it comes before any lease.
    scorers = judged_scorers(context, told)
    with context.database.transaction() as tx:
        lease = leases.acquire(tx, resource, context.holder, settings.lease_seconds)
        if lease is None:
            return []
        claimed = transitions.claim_due(tx, due, context.holder, limit, settings.lease_seconds)
    with LeaseKeeper(context, [lease, *claimed.values()], on_doing) as keeper:
        if claimed:
            told(0, 0)
        return aio.run(judge_claimed(context, keeper, claimed, scorers))


async def score_claimed(
    context: Context, keeper: LeaseKeeper, claimed: Mapping[str, Lease]
) -> list[str]:
    """Score the claimed windows one after another; return those that moved on.

    Raises:
        LeaseLost, StaleClaim: Another worker has taken over.
        ServerUnavailable: Postgres does not answer.
    """
    async with scoring_run(context, keeper, claimed, WITHOUT_JUDGE) as run:
        return await keeper.beating(run.in_turn())


async def judge_claimed(
    context: Context,
    keeper: LeaseKeeper,
    claimed: Mapping[str, Lease],
    scorers: Mapping[str, Scorer],
) -> list[str]:
    """Score the claimed windows with a judge, all at the same time; return those that moved on.

    Raises:
        LeaseLost, StaleClaim: Another worker has taken over.
        ServerUnavailable: Postgres does not answer.
    """
    async with scoring_run(context, keeper, claimed, scorers) as run:
        return await keeper.beating(run.together())


def _due(context: Context, scorers: Iterable[str], only: Sequence[str] | None) -> DueQuery:
    return DueQuery(
        model_name=context.lineage.name,
        scoring=context.settings.scoring,
        scorers=list(scorers),
        only=None if only is None else list(only),
    )
