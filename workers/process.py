"""What a pool process keeps from one task to the next."""

from __future__ import annotations

import functools
import time

from celery import current_task

from babylon_tasks.serving.remembered import forget_old_calls
from babylon_tasks.settings import load_settings
from babylon_tasks.work.context import this_holder
from babylon_tasks.work.fleet import Fleet
from workers.gpu import slots
from workers.gpu.client import TrainerProcess
from workers.unable import Unable
from workers.watch.step_log import StepLogger

_FORGET_SECONDS = 60.0


class PoolProcess:
    """This process's identity, its connection to Postgres, and what it starts when a task needs it.

    Raises:
        UserError: DATABASE_URL is missing, or a setting is out of range.
    """

    def __init__(self) -> None:
        request = current_task.request if current_task else None
        worker = (request and request.hostname) or ""
        self.fleet = Fleet.of_deployment(load_settings(), this_holder(), worker)
        self.unable = Unable()
        self._trainer: TrainerProcess | None = None
        self._forget_at = 0.0

    def forget_old_calls(self) -> None:
        """Keep what the endpoint remembers within its bounds, once a minute.

        Raises:
            ServerUnavailable: Postgres does not answer.
        """
        now = time.monotonic()
        if now >= self._forget_at:
            self._forget_at = now + _FORGET_SECONDS
            forget_old_calls(self.fleet.database, self.fleet.settings)

    @property
    def trainer(self) -> TrainerProcess:
        """The trainer on this pool process's GPU; its process starts at the first step."""
        if self._trainer is None:
            self._trainer = slots.own_trainer()
        return self._trainer

    @functools.cached_property
    def step_logger(self) -> StepLogger:
        """What logs this process's steps to W&B."""
        return StepLogger(self.fleet.settings)

    def close(self) -> None:
        """End the trainer process, if there is one."""
        if self._trainer is not None:
            self._trainer.close()


@functools.cache
def this_process() -> PoolProcess:
    """Return the one of this process, made at its first task: after the fork.

    Raises:
        UserError: See `PoolProcess`; the next task tries again.
    """
    return PoolProcess()


def close() -> None:
    """End what this process has started, if a task has run in it."""
    if this_process.cache_info().currsize:
        this_process().close()
