"""A message in the worker's main process, which tells Flower what the pool process cannot."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from typing import Any

from billiard.einfo import ExceptionWithTraceback
from billiard.exceptions import TimeLimitExceeded, WorkerLostError
from celery.worker import request

from babylon_tasks.errors import BabylonError
from babylon_tasks.text import one_line
from workers.broker import publish_event
from workers.outbox import GIVE_UP_SECONDS, MOST
from workers.row import Unexpected

_PASSED_ON = ("task-failed", "task-revoked", "task-rejected")
_AT_ONCE = 20  # the worker does nothing else meanwhile, and Redis may be slow

_unheard: deque[tuple[str, Mapping[str, Any]]] = deque(maxlen=MOST)


def tell_again(eventer: Any) -> None:
    """Tell how some tasks ended that nobody has heard yet, until nobody hears."""
    for event, fields in list(_unheard)[:_AT_ONCE]:
        is_new = time.time() - fields["timestamp"] <= GIVE_UP_SECONDS
        if is_new and not publish_event(eventer, event, fields):
            break
        _unheard.popleft()


class Request(request.Request):  # type: ignore[misc]
    """Passes on, of Celery's own events, that a task failed or was not run.

    The pool process may have died. The rest is for it to tell: see `workers/row.py`.
    """

    _why = ""
    _told = False

    def on_failure(self, exc_info: Any, *args: Any, **kwargs: Any) -> Any:
        """Take what the pool process raised, or that it died."""
        self._why = _sentence(exc_info.exception)
        return super().on_failure(exc_info, *args, **kwargs)

    def on_timeout(self, soft: bool, timeout: float) -> None:
        """Take that the pool process is killed, since it took too long."""
        self._why = _sentence(TimeLimitExceeded(timeout))
        super().on_timeout(soft, timeout)

    def send_event(self, type: str, **fields: Any) -> None:  # noqa: A002 - its name in Celery
        """Send an event, with the one line that says why."""
        if type not in _PASSED_ON or self._told or not (self._eventer and self._eventer.enabled):
            return
        self._told = True  # Celery tells twice of one that took too long
        why = self._why if type == "task-failed" else type.removeprefix("task-")
        fields |= {"name": self.name, "result": why, "exception": why}
        fields.pop("traceback", None)  # the log has it; it may quote a trace
        if self.time_start:  # the pool process may have told nothing
            fields |= {"received": self.time_start, "started": self.time_start}
        fields |= {"uuid": self.id, "timestamp": time.time()}
        if not publish_event(self._eventer, type, fields):
            _unheard.append((type, fields))


def _sentence(error: BaseException) -> str:
    """Say in one line why a task failed, with nothing of a trace."""
    if isinstance(error, ExceptionWithTraceback):  # it came from a pool process
        error = error.exc
    if isinstance(error, BabylonError | Unexpected):
        return one_line(str(error))
    if isinstance(error, TimeLimitExceeded):
        return f"it took longer than its limit of {error.args[0]:g} s and was stopped"
    if isinstance(error, WorkerLostError):
        return one_line(f"its process died: {error}")
    return f"{type(error).__name__}; the worker's log has all of it"
