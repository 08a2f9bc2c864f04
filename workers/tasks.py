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
from typing import Any

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
from babylon_tasks.text import one_line
from workers import doorbells, queues
from workers.process import this_process
from workers.progress import ProgressReporter
from workers.unable import LEAST_REST_SECONDS

log = logging.getLogger(__name__)

# Errors that a person or the next sweep will mend. Celery fails the task and logs no traceback; its
# own line has level INFO and is left out, `_errors_in_one_line` writes one.
_EXPECTED: dict[str, Any] = {"throws": (BabylonError,)}
# Seconds. Leases see to work that hangs; the limit frees the pool process that hangs with it. A
# step has no limit, since its trainer's signs of life are watched.
_ON_CPU: dict[str, Any] = {**_EXPECTED, "time_limit": 1800}


@contextmanager
def _errors_in_one_line(task: str) -> Iterator[None]:
    """Log an expected error as one line, then let it fail the task."""
    try:
        yield
    except BabylonError as error:
        log.error("%s: %s", task, error)  # noqa: TRY400 - a line, not a traceback
        raise


@shared_task(name="babylon.produce", **_ON_CPU)
@_errors_in_one_line("produce")
def produce() -> None:
    """Find windows that are due and the app's requests."""
    doorbells.score(len(pipeline.produce(*this_process().fleet.active())))


@shared_task(name="babylon.enqueue", **_ON_CPU)
@_errors_in_one_line("enqueue")
def enqueue(window_ids: Sequence[str], lineage: str | None = None) -> None:
    """Make the named windows due, for MODEL_NAME or the named lineage."""
    context = this_process().fleet.context(lineage)
    for window_id in window_ids:
        pipeline.enqueue(context, window_id)
    doorbells.score(len(window_ids))


@shared_task(name="babylon.score", **_ON_CPU)
def score() -> None:
    """Score due windows, of the lineage that has waited longest first."""
    if at_fault := this_process().unable.stopped("score"):
        time.sleep(LEAST_REST_SECONDS)  # the next message is for others
        raise MachineAtFault(at_fault)  # it was said when it came up
    _score()


@_errors_in_one_line("score")
def _score() -> None:
    fleet, unable = this_process().fleet, this_process().unable
    moved, failed = 0, list[Exception]()
    for context in fleet.in_turn("score", unable.lineages("score")):
        try:
            moved += len(pipeline.score(context, limit=SCORE_BATCH - moved))
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
    if moved:
        doorbells.train()
        # Claims made at the same moment may pass windows by; do not leave them to the sweep.
        doorbells.score(len(fleet.sweep(SCORE_BATCH).due))
    if failed:
        raise failed[0]


@shared_task(name="babylon.train", bind=True, ignore_result=False, **_EXPECTED)
def train(self: Task[Any, Any]) -> None:
    """Train one step over the scored windows that are due, of the lineage that waited longest."""
    if at_fault := this_process().unable.stopped("train"):
        _rest()
        raise MachineAtFault(at_fault)  # it was said when it came up
    try:
        with _errors_in_one_line("train"):
            trained = _train_step(self)
    except (Retryable, NotRecorded):
        raise  # this machine can train
    except Exception as error:
        if not isinstance(error, BabylonError):  # Celery's traceback comes when it has rested
            log.error("train: %s", one_line(f"{type(error).__name__}: {error}", 2000))  # noqa: TRY400
        _rest()
        raise
    if trained:
        _announce_step()


def _train_step(task: Task[Any, Any]) -> bool:
    """Train, and say whether a step was committed."""
    process = this_process()
    unable = process.unable
    process.fleet.settings.require_training_allowed()
    with ProgressReporter(task) as progress:
        for context in process.fleet.in_turn("train", unable.lineages()):
            _wake_another_gpu(context.lineage.name)
            try:
                report = pipeline.train(context, process.trainer, on_doing=progress.report)
            except (Retryable, NotRecorded):
                raise
            except MachineAtFault as error:
                unable.stop("train", context.lineage.name, error)
                raise
            except Exception:
                unable.failed(context.lineage.name, context.settings.retry_seconds)
                raise
            if report:
                unable.trained(context.lineage.name)
                return True
    return False


def _wake_another_gpu(lineage: str) -> None:
    """Ring for an idle GPU if other lineages than this one wait: it need not wait for the sweep."""
    process = this_process()
    if process.fleet.waits_for_step({lineage, *process.unable.lineages()}):
        with contextlib.suppress(ServerUnavailable):  # the sweep rings when Redis is back
            doorbells.train()


@_errors_in_one_line("train")
def _announce_step() -> None:
    this_process().step_logger.step_committed()
    doorbells.publish()
    doorbells.train()


@_errors_in_one_line("train")
def _rest() -> None:
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
    time.sleep(max(fleet.settings.retry_seconds, LEAST_REST_SECONDS))


@shared_task(name="babylon.publish", **_ON_CPU)
@_errors_in_one_line("publish")
def publish() -> None:
    """Let the head of each lineage serve."""
    fleet = this_process().fleet
    for context in fleet.to_publish():
        pipeline.publish(context)


@shared_task(name="babylon.sweep", **_ON_CPU)
@_errors_in_one_line("sweep")
def sweep() -> None:
    """Ring again for whatever Postgres says is due, and forget old answers of the endpoint.

    It is its queue's canary, too.
    """
    _note_canary("cpu")
    due = this_process().fleet.sweep(queues.ENOUGH["cpu"] * SCORE_BATCH)
    doorbells.score(len(due.due))
    if due.train:
        doorbells.train()
    if due.publish:
        doorbells.publish()
    this_process().forget_old_calls()


@shared_task(name="babylon.canary", **_ON_CPU)
@_errors_in_one_line("canary")
def canary(queue: str) -> None:
    """Say that messages come through this queue to Postgres."""
    _note_canary(queue)


def _note_canary(queue: str) -> None:
    fleet = this_process().fleet
    with fleet.database.transaction() as tx:
        canaries.note(tx, queue, fleet.holder)
