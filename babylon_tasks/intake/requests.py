"""The app's requests: each is attached to its window, waits until the hour is over, or ends."""

from __future__ import annotations

from babylon_tasks.errors import UserError
from babylon_tasks.intake.refusals import given_up, story, why_not_due
from babylon_tasks.records.windows import State, Window, due_at
from babylon_tasks.store import training_batches, transitions
from babylon_tasks.store import windows as window_rows
from babylon_tasks.store.database import Connection, now
from babylon_tasks.store.training_batches import Request
from babylon_tasks.work.context import Context


def take(tx: Connection, context: Context, request: Request) -> list[str]:
    """Attach a request to its window, leave it for later, or end it.

    Returns the id of the window that this made due, if any, in a list.
    """
    name, settings = context.lineage.name, context.settings
    try:
        window_id = (request.window_id or "").strip()
        due = due_at(window_id, settings.settle_seconds)
    except UserError as error:
        training_batches.fail(tx, request.batch_id, f"scenarioId must name a window: {error}")
        return []
    made: list[str] = []
    windows = window_rows.read(tx, name, [window_id])
    if not windows:
        if now(tx) < due:
            return []
        why_not = why_not_due(tx, context, window_id)
        if why_not:
            training_batches.fail(tx, request.batch_id, why_not)
            return []
        counts = window_rows.count(tx, settings, window_id)
        transitions.enqueue(tx, name, window_id, counts)
        made = [window_id]
        windows = window_rows.read(tx, name, [window_id])
    answer(tx, name, request.batch_id, windows[0])
    return made


def answer(tx: Connection, model_name: str, batch_id: str, window: Window) -> None:
    """Attach a request to its window; if the window has ended, end the request likewise."""
    if window.state == State.TRAINED:
        if not training_batches.complete_trained(tx, model_name, window.window_id, batch_id):
            training_batches.fail(tx, batch_id, given_up(window))
    elif window.state in (State.SKIPPED, State.FAILED):
        training_batches.fail(tx, batch_id, f"window {window.window_id} is {story(window)}")
    else:
        training_batches.attach(tx, model_name, window.window_id, batch_id)
