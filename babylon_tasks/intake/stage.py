"""Stage 1, intake: trajectories in Babylon's table become rows of rl.windows, state `due`."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from babylon_tasks.errors import UserError
from babylon_tasks.intake import requests
from babylon_tasks.intake.refusals import why_not_due
from babylon_tasks.records.windows import State, Window, due_at, parse_window_id
from babylon_tasks.store import heads, training_batches, transitions
from babylon_tasks.store import windows as window_rows
from babylon_tasks.store.database import now
from babylon_tasks.work.context import Context
from babylon_tasks.work.step_names import find_steps

log = logging.getLogger(__name__)


def produce(contexts: Sequence[Context]) -> list[str]:
    """Make windows due for these lineages; return the ids of the due windows, one a lineage.

    The hours are counted once for all of them. The primary lineage takes the app's requests.

    Raises:
        ServerUnavailable: Postgres does not answer.
    """
    if not contexts:
        return []
    settings = {context.lineage.name: context.settings for context in contexts}
    with contexts[0].database.transaction() as tx:
        made = transitions.produce(tx, settings)
    for context in contexts:
        if context.lineage.primary:
            made += [(context.lineage.name, window_id) for window_id in _take_requests(context)]
    for name in settings:
        if windows := [window_id for lineage, window_id in made if lineage == name]:
            log.info("due for %s: %s", name, ", ".join(windows))
    return [window_id for _, window_id in made]


def _take_requests(context: Context) -> list[str]:
    """Take the app's pending requests; return the ids of the windows that this made due."""
    with context.database.transaction() as tx:
        waiting = training_batches.pending(tx)
    made: list[str] = []
    for request in waiting:
        # One transaction each: a malformed request must not undo the windows or stop the others.
        with context.database.transaction() as tx:
            made += requests.take(tx, context, request)
    return made


def enqueue(context: Context, window_id: str, scoring: str | None) -> Window:
    """Make one window due by its id, however old it is, and return its row.

    With `scoring` it is due for that scorer, even if it was scored, skipped or failed before; a
    request that failed with it waits for it again.

    Raises:
        UserError: The id is malformed, or the window has not ended and settled, or has no or too
            few agents.
        ServerUnavailable: Postgres does not answer.
    """
    name = context.lineage.name
    parse_window_id(window_id)
    with context.database.transaction() as tx:
        if not window_rows.read(tx, name, [window_id]):
            why_not = why_not_due(tx, context, window_id)
            if why_not:
                raise UserError(why_not)
            counts = window_rows.count(tx, context.settings, window_id)
            transitions.enqueue(tx, name, window_id, counts)
        if scoring and transitions.score_otherwise(tx, name, window_id, scoring):
            log.info("window %s is due for %s", window_id, scoring)
        (window,) = window_rows.read(tx, name, [window_id])
        if scoring and window.state == State.DUE and window.batch_id:
            training_batches.reopen(tx, window.batch_id)
    return window


def retry(context: Context, window_ids: Sequence[str] | None) -> list[str]:
    """Make failed or skipped windows due again (None: all that failed); return their ids.

    A request that failed with its window waits for it again.

    Raises:
        ServerUnavailable: Postgres does not answer.
    """
    with context.database.transaction() as tx:
        retried = transitions.retry(tx, context.lineage.name, window_ids)
        for batch_id in retried.values():
            if batch_id:
                training_batches.reopen(tx, batch_id)
    return sorted(retried)


def retry_steps(context: Context, names: Sequence[str]) -> list[str]:
    """Make the windows due again that these given-up steps trained; return their ids.

    Each of `names` is a step, a version, or a run of steps such as 5-14.

    Raises:
        UserError: There is no such step, or it is on the way to the head; nothing was written.
        ServerUnavailable: Postgres does not answer.
    """
    name = context.lineage.name
    retried: list[str] = []
    with context.database.transaction() as tx:
        heads.share(tx, name)  # a move of the head at this moment comes before or after
        for step in [step for each in names for step in find_steps(tx, name, each)]:
            if step is None or step.given_up_at is None:
                raise UserError(
                    f"step {step.step if step else 0} is on the way to the head of {name}, and has "
                    "trained its windows: `babylon models reset` gives steps up"
                )
            retried += transitions.retry_step(tx, name, step.step)
    return sorted(retried)


def must_wait(context: Context, window_id: str) -> bool:
    """Tell whether the window has not yet ended and settled, by the database's clock.

    Raises:
        UserError: The text is no window id.
        ServerUnavailable: Postgres does not answer.
    """
    due = due_at(window_id, context.settings.settle_seconds)
    with context.database.transaction() as tx:
        return now(tx) < due


def answer_request(context: Context, batch_id: str, window: Window) -> None:
    """Let this window answer the request; if the window has ended, the request ends at once.

    Raises:
        ServerUnavailable: Postgres does not answer.
    """
    with context.database.transaction() as tx:
        requests.answer(tx, context.lineage.name, batch_id, window)
