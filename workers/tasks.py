"""Celery tasks: thin, idempotent, arguments are ids. Each wakes one stage of the pipeline.

A task that raises has failed, for Celery and for Flower, and nothing tries it again by itself:
Postgres says what is still due, and the sweep rings for it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from celery import Task, shared_task

from babylon_tasks import pipeline
from babylon_tasks.errors import BabylonError, NotRecorded, Retryable
from babylon_tasks.pipeline import SCORE_BATCH
from babylon_tasks.store import canaries
from babylon_tasks.text import one_line
from workers import doorbells, queues
from workers.process import this_process
from workers.progress import ProgressReporter

log = logging.getLogger(__name__)

# Errors that a person or the next sweep will mend. Celery fails the task and logs no traceback; its
# own line has level INFO and is left out, `_errors_in_one_line` writes one.
_EXPECTED: dict[str, Any] = {"throws": (BabylonError,)}
# Seconds. Leases see to work that hangs; the limit frees the pool process that hangs with it. A
# step has no limit, since its trainer's signs of life are watched.
_ON_CPU: dict[str, Any] = {**_EXPECTED, "time_limit": 1800}
# Seconds that a machine which cannot train rests at least, also with RETRY_SECONDS=0: another one
# must get the next message.
_LEAST_REST_SECONDS = 1.0


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
    doorbells.score(pipeline.produce(this_process().context))


@shared_task(name="babylon.enqueue", **_ON_CPU)
@_errors_in_one_line("enqueue")
def enqueue(window_ids: Sequence[str]) -> None:
    """Make the named windows due."""
    context = this_process().context
    doorbells.score([pipeline.enqueue(context, window_id).window_id for window_id in window_ids])


@shared_task(name="babylon.score", **_ON_CPU)
@_errors_in_one_line("score")
def score(window_ids: Sequence[str]) -> None:
    """Score due windows: at least the named ones, where they still are due."""
    context = this_process().context
    moved = pipeline.score(context, limit=max(SCORE_BATCH, len(window_ids)))
    if moved:
        doorbells.train()
        # Claims made at the same moment may pass windows by; do not leave them to the sweep.
        doorbells.score(pipeline.sweep(context, limit=SCORE_BATCH).due)


@shared_task(name="babylon.train", bind=True, ignore_result=False, **_EXPECTED)
def train(self: Task[Any, Any], model_name: str) -> None:
    """Train one step of the model over the scored windows that are due."""
    try:
        with _errors_in_one_line("train"):
            trained = _train_step(self, model_name)
    except (Retryable, NotRecorded):
        raise  # this machine can train
    except Exception as error:
        if not isinstance(error, BabylonError):  # Celery's traceback comes when it has rested
            log.error("train: %s", one_line(f"{type(error).__name__}: {error}", 2000))  # noqa: TRY400
        _rest()
        raise
    if trained:
        _announce_step()


def _train_step(task: Task[Any, Any], model_name: str) -> bool:
    """Train, and say whether a step was committed."""
    process = this_process()
    ours = process.context.lineage.name
    if model_name != ours:
        log.error("asked to train %s, this worker trains %s", model_name, ours)
        return False
    with ProgressReporter(task) as progress:
        report = pipeline.train(process.context, process.trainer, on_progress=progress.report)
    return report is not None


@_errors_in_one_line("train")
def _announce_step() -> None:
    this_process().step_logger.step_committed()
    doorbells.publish()
    doorbells.train()


@_errors_in_one_line("train")
def _rest() -> None:
    """Leave the work to others for RETRY_SECONDS, on a machine that cannot train.

    The pool process stays in its task for so long, because one at work takes no message. If it took
    them and dropped them, it might take every one: Redis serves the worker that has waited longest,
    so that two take turns, and at each sweep one gets the canary and the other the doorbell.
    """
    context = this_process().context
    with context.database.transaction() as tx:
        # No canary comes through while it rests.
        canaries.note(tx, context.lineage.name, "gpu", context.holder)
    doorbells.train()  # whoever is idle takes it, not the one that rang
    time.sleep(max(context.settings.retry_seconds, _LEAST_REST_SECONDS))


@shared_task(name="babylon.publish", **_ON_CPU)
@_errors_in_one_line("publish")
def publish() -> None:
    """Let the newest step serve."""
    pipeline.publish(this_process().context)


@shared_task(name="babylon.sweep", **_ON_CPU)
@_errors_in_one_line("sweep")
def sweep() -> None:
    """Ring again for whatever Postgres says is due."""
    due = pipeline.sweep(this_process().context, limit=queues.ENOUGH["cpu"] * SCORE_BATCH)
    doorbells.score(due.due)
    if due.train:
        doorbells.train()
    if due.publish:
        doorbells.publish()


@shared_task(name="babylon.canary", **_ON_CPU)
@_errors_in_one_line("canary")
def canary(queue: str) -> None:
    """Say that messages come through this queue to Postgres."""
    context = this_process().context
    with context.database.transaction() as tx:
        canaries.note(tx, context.lineage.name, queue, context.holder)
