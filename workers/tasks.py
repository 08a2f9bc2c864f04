"""Celery tasks: thin, idempotent, mostly without arguments. Each wakes one stage of the pipeline.

Which lineages and windows a task works for, Postgres says: a message names nothing.

A task that raises has failed, for Celery and for Flower, and nothing tries it again by itself:
Postgres says what is still due, and the sweep rings for it.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

from celery import Task, shared_task

from babylon_tasks import pipeline
from babylon_tasks.errors import (
    BabylonError,
    MachineAtFault,
    NotRecorded,
    Retryable,
    ServerUnavailable,
)
from babylon_tasks.pipeline import SCORE_BATCH
from babylon_tasks.store import canaries
from babylon_tasks.words import duration
from workers import doorbells, outcomes, queues
from workers.process import this_process
from workers.row import Row, Unexpected, presentable, row_of
from workers.unable import LEAST_REST_SECONDS

log = logging.getLogger(__name__)

# Celery's own events are off: see `workers/row.py`. Celery fails a task for all of these errors and
# logs no traceback: its own line, of level INFO, is left out, since `_errors_logged` has said it.
_OURS: dict[str, Any] = {
    "bind": True,
    "send_events": False,
    "Request": "workers.request:Request",
    "throws": (BabylonError, Unexpected),
}
# Seconds. Leases see to work that hangs; the limit frees the pool process that hangs with it. A
# step has no limit, since its trainer's signs of life are watched.
_ON_CPU: dict[str, Any] = {**_OURS, "time_limit": 1800}

Bound: TypeAlias = "Task[Any, Any]"


@contextmanager
def _errors_logged(task: str) -> Iterator[None]:
    """Log an error, then let it fail the task.

    One that a person or the next sweep will mend is one line; others have their traceback.
    """
    try:
        yield
    except BabylonError as error:
        log.error("%s: %s", task, error)  # noqa: TRY400 - a line, not a traceback
        raise
    except Exception:
        log.exception("%s failed", task)
        raise


@contextmanager
def _row(task: Bound) -> Iterator[Row]:
    """Give the row of a task that ends with its block, and log what the block raises."""
    with row_of(task) as row, _errors_logged(task.name.removeprefix("babylon.")):
        yield row


@contextmanager
def _ringing(task: str) -> Iterator[None]:
    """Ring for work that follows on what is done; if Redis is away, the sweep rings later."""
    with contextlib.suppress(ServerUnavailable), _errors_logged(task):
        yield


@shared_task(name="babylon.produce", **_ON_CPU)
def produce(self: Bound) -> None:
    """Find windows that are due and the app's requests."""
    with _row(self) as row:
        made = pipeline.produce(*this_process().fleet.active())
        if made:
            row.end(outcomes.due(made), "wait to be scored")
        with _ringing("produce"):
            doorbells.score(len(made))


@shared_task(name="babylon.enqueue", **_ON_CPU)
def enqueue(self: Bound, window_ids: Sequence[str], lineage: str | None = None) -> None:
    """Make the named windows due, for MODEL_NAME or the named lineage."""
    with _row(self) as row:
        row.begin(outcomes.due(window_ids))
        context = this_process().fleet.context(lineage)
        windows = [pipeline.enqueue(context, window_id) for window_id in window_ids]
        row.end(outcomes.due(window_ids), outcomes.of_windows(windows))
        with _ringing("enqueue"):
            doorbells.score(len(windows))


@shared_task(name="babylon.score", **_ON_CPU)
def score(self: Bound) -> None:
    """Score due windows, of the lineage that has waited longest first."""
    with row_of(self) as row:
        if at_fault := this_process().unable.stopped("score"):
            time.sleep(LEAST_REST_SECONDS)  # the next message is for others
            raise MachineAtFault(at_fault)  # it was said when it came up
        with _errors_logged("score"):
            not_done = _score(row)
        if not_done:
            raise not_done  # the log has it already


def _score(row: Row) -> BabylonError | None:
    """Score; return how the work ends if it is not done."""
    fleet, unable = this_process().fleet, this_process().unable
    moved, failed = 0, list[Exception]()
    for context in fleet.in_turn("score", unable.lineages("score")):
        try:
            moved += len(pipeline.score(context, limit=SCORE_BATCH - moved, on_doing=row.tell))
        except ServerUnavailable:
            raise
        except MachineAtFault as error:
            unable.stop("score", context.lineage.name, error)
            failed.insert(0, error)
            if unable.stopped("score"):
                break
        except Exception as error:  # noqa: BLE001 - raised below; other lineages go on
            failed.append(error)
        if moved >= SCORE_BATCH:
            break
    not_done = _conclude(row)
    if moved:
        with _ringing("score"):
            doorbells.train()
            # Claims made at the same moment may pass windows by; do not leave them to the sweep.
            doorbells.score(len(fleet.sweep(SCORE_BATCH).due))
    if failed:
        raise failed[0]
    return not_done


def _conclude(row: Row) -> BabylonError | None:
    """Say what came of the work of a row that committed no step; return why it is not done."""
    if not row.done:
        return None
    with this_process().fleet.database.transaction() as tx:
        title, result, not_done = outcomes.of_work(tx, row.done)
    row.end(title, result)
    return not_done


@shared_task(name="babylon.train", ignore_result=False, **_OURS)
def train(self: Bound) -> dict[str, Any] | None:
    """Train one step over the scored windows that are due, of the lineage that waited longest.

    The result of a step that was committed is what it is; that of others is None.
    """
    with row_of(self) as row:
        if at_fault := this_process().unable.stopped("train"):
            _rest(row, at_fault)
            raise MachineAtFault(at_fault)  # it was said when it came up
        try:
            with _errors_logged("train"):
                trained = _train_step(row)
        except (Retryable, NotRecorded):
            raise  # this machine can train
        except Exception as error:
            _rest(row, str(presentable(error)))
            raise
        if trained:
            _announce_step()
        elif not_done := _conclude(row):
            raise not_done  # the log has it already
        return trained


def _train_step(row: Row) -> dict[str, Any] | None:
    """Train; return the step if one was committed."""
    process = this_process()
    unable = process.unable
    process.fleet.settings.require_training_allowed()
    for context in process.fleet.in_turn("train", unable.lineages()):
        name = context.lineage.name
        _wake_another_gpu(name)
        try:
            report = pipeline.train(context, process.trainer, on_doing=row.tell)
        except (Retryable, NotRecorded):
            raise
        except MachineAtFault as error:
            unable.stop("train", name, error)
            raise
        except Exception:
            unable.failed(name, context.settings.retry_seconds)
            raise
        if report:
            unable.trained(name)
            title, result = outcomes.of_step(name, report)
            row.end(title, "; ".join([result, *_verdicts(row, name)]))
            return {"lineage": name, **outcomes.summary(report)}
    return None


def _verdicts(row: Row, lineage: str) -> list[str]:
    """Say how the exams before a step ended, if Postgres is there: the step is committed."""
    with (
        contextlib.suppress(ServerUnavailable),
        this_process().fleet.database.transaction() as tx,
    ):
        return outcomes.verdicts(tx, lineage, row.done)
    return []


def _wake_another_gpu(lineage: str) -> None:
    """Ring for an idle GPU if other lineages than this one wait: it need not wait for the sweep."""
    process = this_process()
    if process.fleet.waits_for_step({lineage, *process.unable.lineages()}):
        with contextlib.suppress(ServerUnavailable):  # the sweep rings when Redis is back
            doorbells.train()


@_ringing("train")
def _announce_step() -> None:
    this_process().step_logger.step_committed()
    doorbells.publish()
    doorbells.train()


@_errors_logged("train")
def _rest(row: Row, why: str) -> None:
    """Leave the work to others for RETRY_SECONDS, on a machine that cannot train.

    If it failed with one lineage alone, it goes on with the others at once.

    The pool process stays in its task for so long, because one at work takes no message. If it took
    them and dropped them, it might take every one: Redis serves the worker that has waited longest,
    so that two take turns, and at each sweep one gets the canary and the other the doorbell.
    """
    process = this_process()
    fleet = process.fleet
    others_wait = fleet.waits_for_step(process.unable.lineages())
    doorbells.train()  # whoever is idle takes it, not the one that rang
    if others_wait and not process.unable.machine():
        return
    with fleet.database.transaction() as tx:
        # No canary comes through while it rests.
        canaries.note(tx, "gpu", fleet.holder)
    seconds = max(fleet.settings.retry_seconds, LEAST_REST_SECONDS)
    row.say(f"failed: {why}; this machine rests for {duration(seconds)}")
    time.sleep(seconds)


@shared_task(name="babylon.publish", **_ON_CPU)
def publish(self: Bound) -> None:
    """Let the head of each lineage serve."""
    with _row(self) as row:
        titles, results = list[str](), list[str]()
        for context in this_process().fleet.to_publish():
            said: list[str] = []
            versions = pipeline.publish(context, said.append)
            if versions or said:
                what = f"{versions[-1]} serves" if versions else "experiment"
                titles.append(f"{context.lineage.name}: {what}")
                results.append("; ".join(said) or "it is the newest step")
                row.end("; ".join(titles), "; ".join(results))


@shared_task(name="babylon.sweep", **_ON_CPU)
def sweep(self: Bound) -> None:
    """Ring again for whatever Postgres says is due, and forget old answers of the endpoint.

    It is its queue's canary, too.
    """
    with _row(self):
        _note_canary("cpu")
        due = this_process().fleet.sweep(queues.ENOUGH["cpu"] * SCORE_BATCH)
        doorbells.score(len(due.due))
        if due.train:
            doorbells.train()
        if due.publish:
            doorbells.publish()
        this_process().forget_old_calls()


@shared_task(name="babylon.canary", **_ON_CPU)
def canary(self: Bound, queue: str) -> None:
    """Say that messages come through this queue to Postgres."""
    with _row(self):
        _note_canary(queue)


def _note_canary(queue: str) -> None:
    fleet = this_process().fleet
    with fleet.database.transaction() as tx:
        canaries.note(tx, queue, fleet.holder)
