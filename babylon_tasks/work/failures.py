"""What a failure does to windows: they are tried again at once, later or by halves, or ended.

Each function writes under the lease of the failed work, so that a zombie changes nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from babylon_tasks.errors import Final
from babylon_tasks.logs import bound
from babylon_tasks.records.windows import State, Window
from babylon_tasks.store import attempts, leases, training_batches, transitions
from babylon_tasks.store.attempts import Ending, LostAttempt
from babylon_tasks.store.database import Connection
from babylon_tasks.store.leases import Claim, Lease
from babylon_tasks.store.transitions import WindowEnd
from babylon_tasks.work.context import Context
from babylon_tasks.work.machine_faults import (
    message_of,
    message_with_place,
    take_back_if_at_fault,
)

log = logging.getLogger(__name__)


def step_failed(
    context: Context, windows: Sequence[Window], lease: Lease, error: Exception, again: bool
) -> None:
    """Note that a step failed; it is tried again at once (`again`), by halves, or later.

    Raises:
        LeaseLost: Another worker has taken over; nothing was written.
        ServerUnavailable: Postgres does not answer.
    """
    if len(windows) == 1:
        count_failure(context, windows[0], lease, error, at_once=again)
        return
    log.warning(
        "a step over %d windows failed, %s: %s",
        len(windows),
        "trying again" if again else "halving",
        error,
    )
    claim = context.claim(lease)
    with context.database.transaction() as tx:
        leases.renew(tx, [lease], context.settings.lease_seconds)
        attempts.end(tx, claim.model_name, [lease.token], Ending.ERROR, message_of(error))
        if not again:
            half = (len(windows) + 1) // 2
            transitions.split(tx, claim, windows, may_share=half, last_error=message_of(error))


def count_failure(
    context: Context, window: Window, lease: Lease, error: Exception, at_once: bool = False
) -> None:
    """Count an attempt against a window: it is tried again, at once or later, or ends as failed.

    Raises:
        MachineAtFault: Other windows failed here in the same way; nothing counts.
        LeaseLost: Another worker has taken over; nothing was written.
        ServerUnavailable: Postgres does not answer.
    """
    settings, claim, message = context.settings, context.claim(lease), message_of(error)
    tried = window.attempts + 1
    fails = tried >= settings.max_attempts or isinstance(error, Final)
    wait_seconds = 0.0 if at_once else settings.retry_seconds * 2 ** (tried - 1)
    with context.database.transaction() as tx:
        leases.renew(tx, [lease], settings.lease_seconds)
        ids = [window.window_id]
        in_full = message_with_place(error)
        attempts.end(tx, claim.model_name, [lease.token], Ending.ERROR, in_full, ids)
        if fails:
            failed = WindowEnd(State.FAILED, last_error=message, attempts=tried)
            if transitions.end(tx, claim, window, failed) and window.batch_id:
                training_batches.fail(tx, window.batch_id, message)
        else:
            transitions.postpone(
                tx,
                claim,
                window,
                attempts=tried,
                last_error=message,
                wait_seconds=wait_seconds,
            )
        at_fault = take_back_if_at_fault(
            tx, claim, window.state, in_full, 2 * settings.retry_seconds
        )
    if at_fault:
        raise at_fault from error
    if fails:
        log.error("window %s failed: %s", window.window_id, message)
    else:
        log.warning(
            "window %s failed, attempt %d: %s",
            window.window_id,
            tried,
            message,
        )


def wait(
    context: Context, window: Window, lease: Lease, error: Exception, wait_seconds: float
) -> None:
    """Let a window wait for a judge that cannot be asked, or a mend by hand; no attempt counts.

    Raises:
        LeaseLost: Another worker has taken over; nothing was written.
        ServerUnavailable: Postgres does not answer.
    """
    settings, claim = context.settings, context.claim(lease)
    with context.database.transaction() as tx:
        leases.renew(tx, [lease], settings.lease_seconds)
        attempts.end(tx, claim.model_name, [lease.token], Ending.GIVEN_BACK, message_of(error))
        _postpone(tx, claim, window, error, max(settings.retry_seconds, wait_seconds))


def blame_nobody(
    context: Context, windows: Sequence[Window], lease: Lease, error: Exception
) -> None:
    """Note in the windows that this machine is at fault, and how; no attempt counts.

    Raises:
        LeaseLost: Another worker has taken over; nothing was written.
        ServerUnavailable: Postgres does not answer.
    """
    with context.database.transaction() as tx:
        leases.renew(tx, [lease], context.settings.lease_seconds)
        for window in windows:
            _postpone(tx, context.claim(lease), window, error, 0.0)


def job_goes_on(
    context: Context, windows: Sequence[Window], lease: Lease, error: Exception
) -> None:
    """Keep windows together: their step failed, but their job at W&B still runs.

    No attempt counts.

    Raises:
        LeaseLost: Another worker has taken over; nothing was written.
        ServerUnavailable: Postgres does not answer.
    """
    claim = context.claim(lease)
    with context.database.transaction() as tx:
        leases.renew(tx, [lease], context.settings.lease_seconds)
        attempts.end(tx, claim.model_name, [lease.token], Ending.ERROR, message_of(error))
        for window in windows:
            _postpone(tx, claim, window, error, 0.0)
    log.warning("a step failed, its job at W&B goes on: %s", error)


def answer_for(tx: Connection, lineage: str, lost: Sequence[LostAttempt]) -> None:
    """Log the new state of windows whose worker died; end the requests of failed windows."""
    for each in lost:
        with bound(lineage=lineage, window=each.window_id):
            log.warning("window %s is %s: %s", each.window_id, each.state, each.last_error)
        if each.state == State.FAILED and each.batch_id:
            training_batches.fail(tx, each.batch_id, each.last_error)


def _postpone(
    tx: Connection, claim: Claim, window: Window, error: Exception, wait_seconds: float
) -> None:
    """Note why the window waits; no attempt counts."""
    transitions.postpone(
        tx,
        claim,
        window,
        attempts=window.attempts,
        last_error=message_of(error),
        wait_seconds=wait_seconds,
    )
