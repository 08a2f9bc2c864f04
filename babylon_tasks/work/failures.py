"""What a failure does to windows: tried again at once, later, by halves, or ended.

Every one of these writes under the lease of the work that failed: a zombie has no say.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from babylon_tasks.errors import Final
from babylon_tasks.records.windows import State, Window
from babylon_tasks.store import attempts, leases, training_batches
from babylon_tasks.store import windows as window_rows
from babylon_tasks.store.attempts import Ending, LostAttempt
from babylon_tasks.store.database import Connection
from babylon_tasks.store.leases import Lease
from babylon_tasks.text import one_line
from babylon_tasks.work.context import Context

log = logging.getLogger(__name__)


def step_failed(
    context: Context, windows: Sequence[Window], lease: Lease, error: Exception, again: bool
) -> None:
    """Note that a step failed: to be tried again at once, by halves, or later."""
    settings = context.settings
    if len(windows) == 1:
        count_failure(context, windows[0], lease, error, at_once=again)
        return
    log.warning(
        "step over %d windows failed, %s: %s",
        len(windows),
        "trying again" if again else "halving",
        error,
    )
    with context.database.transaction() as tx:
        leases.renew(tx, [lease], settings.lease_seconds)
        attempts.end(tx, settings.model_name, [lease.token], Ending.ERROR, _message(error))
        if not again:
            window_rows.split(
                tx,
                windows,
                model_name=settings.model_name,
                may_share=(len(windows) + 1) // 2,
                last_error=_message(error),
                holder=context.holder,
            )


def count_failure(
    context: Context, window: Window, lease: Lease, error: Exception, at_once: bool = False
) -> None:
    """Count an attempt against a window: tried again, at once or later, or ended with the error."""
    settings = context.settings
    tried = window.attempts + 1
    message = _message(error)
    with context.database.transaction() as tx:
        leases.renew(tx, [lease], settings.lease_seconds)
        attempts.end(
            tx,
            settings.model_name,
            [lease.token],
            Ending.ERROR,
            message,
            window_ids=[window.window_id],
        )
        if tried < settings.max_attempts and not isinstance(error, Final):
            log.warning("window %s failed, attempt %d: %s", window.window_id, tried, message)
            window_rows.postpone(
                tx,
                window,
                model_name=settings.model_name,
                attempts=tried,
                last_error=message,
                wait_seconds=0.0 if at_once else settings.retry_seconds * 2 ** (tried - 1),
                holder=context.holder,
            )
            return
        ended = window_rows.end(
            tx,
            window,
            model_name=settings.model_name,
            state=State.FAILED,
            holder=context.holder,
            last_error=message,
            attempts=tried,
        )
        if ended and window.batch_id:
            training_batches.fail(tx, window.batch_id, message)
    log.error("window %s failed: %s", window.window_id, message)


def wait(
    context: Context, window: Window, lease: Lease, error: Exception, wait_seconds: float
) -> None:
    """A judge cannot be asked: no attempt counts; the window is due again in a while."""
    settings = context.settings
    with context.database.transaction() as tx:
        leases.renew(tx, [lease], settings.lease_seconds)
        attempts.end(tx, settings.model_name, [lease.token], Ending.GIVEN_BACK, _message(error))
        _postpone(tx, context, window, error, max(settings.retry_seconds, wait_seconds))


def blame_nobody(
    context: Context, windows: Sequence[Window], lease: Lease, error: Exception
) -> None:
    """This machine is at fault, so no window is counted against; but let it be seen."""
    with context.database.transaction() as tx:
        leases.renew(tx, [lease], context.settings.lease_seconds)
        for window in windows:
            _postpone(tx, context, window, error, 0.0)


def job_goes_on(
    context: Context, windows: Sequence[Window], lease: Lease, error: Exception
) -> None:
    """The step failed and its job at W&B did not: no window is suspected, all stay together."""
    with context.database.transaction() as tx:
        leases.renew(tx, [lease], context.settings.lease_seconds)
        attempts.end(tx, context.settings.model_name, [lease.token], Ending.ERROR, _message(error))
        for window in windows:
            _postpone(tx, context, window, error, 0.0)
    log.warning("a step failed, its job at W&B goes on: %s", error)


def _postpone(
    tx: Connection, context: Context, window: Window, error: Exception, wait_seconds: float
) -> None:
    """Note why the window waits, and count nothing."""
    window_rows.postpone(
        tx,
        window,
        model_name=context.settings.model_name,
        attempts=window.attempts,
        last_error=_message(error),
        wait_seconds=wait_seconds,
        holder=context.holder,
    )


def answer_for(tx: Connection, losses: Sequence[LostAttempt]) -> None:
    """Say what became of windows whose worker died, and end the requests of those that failed."""
    for loss in losses:
        log.warning("window %s is %s: %s", loss.window_id, loss.state, loss.last_error)
        if loss.state == State.FAILED and loss.batch_id:
            training_batches.fail(tx, loss.batch_id, loss.last_error)


def _message(error: Exception) -> str:
    """The error's type and text, as a column can hold it."""
    return one_line(f"{type(error).__name__}: {error}", 2000)
