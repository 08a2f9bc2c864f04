"""Repeats a failed step: once with the same windows, then by halves, until one is committed."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from babylon_tasks.errors import (
    BabylonError,
    Final,
    LeaseLost,
    NotRecorded,
    ServerUnavailable,
    StaleClaim,
    UserError,
)
from babylon_tasks.logs import bound
from babylon_tasks.records.steps import Trainer
from babylon_tasks.records.windows import Window
from babylon_tasks.training.backend import TrainingBackend
from babylon_tasks.training.choice import WindowChoice
from babylon_tasks.training.step import StepAttempt, StepOrder, StepReport
from babylon_tasks.work import failures
from babylon_tasks.work.context import Context
from babylon_tasks.work.leases import LeaseKeeper
from babylon_tasks.work.stopwatch import Stopwatch

log = logging.getLogger(__name__)


class Ladder:
    """Goes from many windows to one, so that an attempt counts only if one fails alone."""

    def __init__(
        self,
        context: Context,
        backend: TrainingBackend,
        trainer: Trainer,
        keeper: LeaseKeeper,
        choice: WindowChoice,
    ) -> None:
        self._context, self._backend, self._trainer = context, backend, trainer
        self._keeper, self._choice = keeper, choice
        self._failed: list[str] = []  # the window ids of the last failed step
        self._unrecorded: dict[str, NotRecorded] = {}

    def climb_down(
        self, windows: Sequence[Window], requested_version: str | None, stopwatch: Stopwatch
    ) -> StepReport | None:
        """Try steps until one is committed; None if no window remains to try now.

        Raises:
            UserError, OSError: Nothing can train here; the windows wait.
            LeaseLost, StaleClaim: Another worker has taken over.
            ServerUnavailable: Postgres does not answer.
            Retryable: A step failed twice, and its job at W&B is still running.
        """
        while windows:
            version = requested_version if self._choice.asked_for(windows) else None
            order = StepOrder(windows, version)
            with bound(windows=_ids(windows)):
                try:
                    if report := self._attempt(order, stopwatch).run():
                        return report
                except NotRecorded as error:
                    self._unrecorded |= dict.fromkeys(_ids(windows), error)
                except (LeaseLost, StaleClaim, ServerUnavailable):
                    raise
                except (UserError, OSError) as error:
                    failures.blame_nobody(self._context, windows, self._keeper.held[0], error)
                    raise
                except Exception as error:  # noqa: BLE001 - `_step_failed` counts, logs or raises it
                    self._step_failed(windows, error)
            stopwatch = Stopwatch()
            with self._context.database.transaction() as tx:
                windows = self._choice.next(tx, self._unrecorded)
        if self._unrecorded:
            raise next(iter(self._unrecorded.values()))
        return None

    def _attempt(self, order: StepOrder, stopwatch: Stopwatch) -> StepAttempt:
        return StepAttempt(
            self._context, self._backend, self._trainer, self._keeper, order, stopwatch
        )

    def _step_failed(self, windows: Sequence[Window], error: Exception) -> None:
        """Note the failure in the windows; raise it if there is nothing else to try."""
        if not isinstance(error, BabylonError):
            log.exception("a step failed")
        failed_again = _ids(windows) == self._failed
        first = windows[0].attempts == 0 and windows[0].may_share is None
        final = isinstance(error, Final)
        running = [] if final else self._backend.still_running(windows)
        lease = self._keeper.held[0]
        if running:
            failures.job_goes_on(self._context, running, lease, error)
            if failed_again:
                raise error
        else:
            again = first and not failed_again and not final
            failures.step_failed(self._context, windows, lease, error, again)
        self._failed = _ids(windows)


def _ids(windows: Sequence[Window]) -> list[str]:
    return [window.window_id for window in windows]
