"""Writes what becomes of a step's windows that cannot train now."""

from __future__ import annotations

from collections.abc import Sequence

from babylon_tasks.records.windows import State
from babylon_tasks.store import attempts, leases, training_batches, transitions
from babylon_tasks.store.attempts import Ending
from babylon_tasks.store.transitions import WindowEnd
from babylon_tasks.work.context import Context
from babylon_tasks.work.leases import LeaseKeeper
from babylon_tasks.work.samples import LeftOut


def settle(context: Context, keeper: LeaseKeeper, windows: Sequence[LeftOut]) -> None:
    """Skip those without signal; make those with a rewritten trace due again.

    Raises:
        LeaseLost: Another worker has taken over.
        ServerUnavailable: Postgres does not answer.
    """
    for each in windows:
        if each.no_signal is None:
            _score_again(context, keeper, each)
        else:
            _skip(context, keeper, each, each.no_signal)


def _score_again(context: Context, keeper: LeaseKeeper, rewritten: LeftOut) -> None:
    claim, window = keeper.claim, rewritten.window
    with context.database.transaction() as tx:
        leases.renew(tx, [claim.lease], context.settings.lease_seconds)  # refuses a zombie
        attempts.end(
            tx,
            claim.model_name,
            [claim.lease.token],
            Ending.GIVEN_BACK,
            attempts.REWRITTEN,
            [window.window_id],
        )
        transitions.rescore(tx, claim.model_name, window)


def _skip(context: Context, keeper: LeaseKeeper, skipped: LeftOut, reason: str) -> None:
    claim, window = keeper.claim, skipped.window
    counts = {name: count for name, count in skipped.funnel.items() if name != "sent"}
    end = WindowEnd(State.SKIPPED, reason=reason, funnel=counts)
    with context.database.transaction() as tx:
        leases.renew(tx, [claim.lease], context.settings.lease_seconds)  # refuses a zombie
        token, ids = claim.lease.token, [window.window_id]
        attempts.end(tx, claim.model_name, [token], Ending.SKIPPED, reason, ids)
        if transitions.end(tx, claim, window, end) and window.batch_id:
            training_batches.fail(
                tx, window.batch_id, f"window {window.window_id} is skipped: {reason}"
            )
