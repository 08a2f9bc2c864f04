"""Celery tasks: thin, idempotent, arguments are ids. Each wakes one stage of the pipeline."""

from __future__ import annotations

import functools
import logging
import os
import socket
import time
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, TypeVar

from celery import Task, shared_task

from babylon_tasks import pipeline
from babylon_tasks.errors import BabylonError, NotRecorded, Retryable
from babylon_tasks.pipeline import SCORE_BATCH
from babylon_tasks.settings import load_settings
from babylon_tasks.store import canaries
from babylon_tasks.text import one_line
from babylon_tasks.work.context import Context
from workers import doorbells, queues
from workers.gpu import slots
from workers.progress import ProgressReporter
from workers.watch.step_log import StepLogger

log = logging.getLogger(__name__)
P = ParamSpec("P")
R = TypeVar("R")

# Seconds. Leases see to work that hangs; this frees the pool process that hangs with it. A step has
# none, since its trainer's signs of life are watched.
CPU_LIMITS: dict[str, float] = {"time_limit": 1800}
# Of a machine that cannot train, also with RETRY_SECONDS=0: another one must have the next message.
_LEAST_REST_SECONDS = 1.0


def _expected_errors_in_one_line(run: Callable[P, R]) -> Callable[P, R | None]:
    """An error that a person or the next sweep will mend needs a line, not a traceback."""

    @functools.wraps(run)
    def task(*args: P.args, **kwargs: P.kwargs) -> R | None:
        try:
            return run(*args, **kwargs)
        except BabylonError as error:
            log.error("%s: %s", run.__name__, error)  # noqa: TRY400 - see the name
            return None

    return task


@functools.cache
def context() -> Context:
    """This process's identity and connection, made at its first task (after the fork)."""
    settings = load_settings()
    holder = f"{socket.gethostname()}:{os.getpid()}"
    return Context.of_deployment(settings, holder)


@shared_task(name="babylon.produce", **CPU_LIMITS)
@_expected_errors_in_one_line
def produce() -> None:
    """Find windows that are due and the app's requests."""
    doorbells.score(pipeline.produce(context()))


@shared_task(name="babylon.enqueue", **CPU_LIMITS)
@_expected_errors_in_one_line
def enqueue(window_ids: Sequence[str]) -> None:
    """Make the named windows due."""
    doorbells.score([pipeline.enqueue(context(), window_id).window_id for window_id in window_ids])


@shared_task(name="babylon.score", **CPU_LIMITS)
@_expected_errors_in_one_line
def score(window_ids: Sequence[str]) -> None:
    """Score due windows: at least the named ones, where they still are due."""
    moved = pipeline.score(context(), limit=max(SCORE_BATCH, len(window_ids)))
    if moved:
        doorbells.train()
        # Claims made at the same moment may pass windows by; do not leave them to the sweep.
        doorbells.score(pipeline.sweep(context(), limit=SCORE_BATCH).due)


@functools.cache
def _step_logger() -> StepLogger:
    return StepLogger(context().settings)


@shared_task(name="babylon.train", bind=True, ignore_result=False)
@_expected_errors_in_one_line
def train(self: Task[Any, Any], model_name: str) -> None:
    """Train one step of the model over the scored windows that are due."""
    settings = context().settings
    if model_name != settings.model_name:
        log.error("asked to train %s, this worker trains %s", model_name, settings.model_name)
        return
    try:
        with ProgressReporter(self) as tell:
            trained = pipeline.train(context(), slots.trainer(), on_progress=tell)
    except (Retryable, NotRecorded):
        raise  # this machine can train
    except Exception as error:
        expected = isinstance(error, BabylonError)
        said = str(error) if expected else one_line(f"{type(error).__name__}: {error}", 2000)
        log.error("train: %s", said)  # noqa: TRY400 - now, not when it has rested
        _rest(settings.retry_seconds)
        if expected:
            return
        raise
    if trained:
        _step_logger().step_committed()
        doorbells.publish()
        doorbells.train()


def _rest(seconds: float) -> None:
    """A machine that cannot train leaves the work to others for a while.

    It stays in its task for so long, because a pool process at work takes no message. If it took
    them and dropped them, it might take every one: Redis serves the worker that has waited longest,
    so that two take turns, and at each sweep one gets the canary and the other the doorbell.
    """
    me = context()
    with me.database.transaction() as tx:
        canaries.note(tx, me.settings.model_name, "gpu", me.holder)  # none may come through now
    doorbells.train()  # whoever is idle takes it, not the one that rang
    time.sleep(max(seconds, _LEAST_REST_SECONDS))


@shared_task(name="babylon.publish", **CPU_LIMITS)
@_expected_errors_in_one_line
def publish() -> None:
    """Let the newest step serve."""
    pipeline.publish(context())


@shared_task(name="babylon.sweep", **CPU_LIMITS)
@_expected_errors_in_one_line
def sweep() -> None:
    """Ring again for whatever Postgres says is due."""
    due = pipeline.sweep(context(), limit=queues.ENOUGH["cpu"] * SCORE_BATCH)
    doorbells.score(due.due)
    if due.train:
        doorbells.train()
    if due.publish:
        doorbells.publish()


@shared_task(name="babylon.canary", **CPU_LIMITS)
@_expected_errors_in_one_line
def canary(queue: str) -> None:
    """Say that messages come through this queue to Postgres."""
    me = context()
    with me.database.transaction() as tx:
        canaries.note(tx, me.settings.model_name, queue, me.holder)
