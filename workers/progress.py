"""Shows where a step stands: in Celery's result backend, and as an event for Flower."""

from __future__ import annotations

import logging
import queue
import threading
from types import TracebackType
from typing import Any

from celery import Task

from babylon_tasks.records.doing import Doing

log = logging.getLogger(__name__)

_LAST_REPORT_SECONDS = 2.0


class ProgressReporter:
    """Reports the newest progress of a task, from a thread of its own.

    Redis may be away or frozen for minutes. The step must not wait for it, nor the lease that the
    step's signs of life renew. What could not be sent in time is left out.
    """

    def __init__(self, task: Task[Any, Any]) -> None:
        # The thread has no current request, and would make a backend of its own.
        self._id = task.request.id
        self._hostname = task.request.hostname
        self._backend = task.backend
        self._events = task.app.events
        self._newest: queue.Queue[Doing | None] = queue.Queue()
        self._thread = threading.Thread(target=self._send_newest, daemon=True)

    def __enter__(self) -> ProgressReporter:
        self._thread.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._newest.put(None)
        self._thread.join(_LAST_REPORT_SECONDS)

    def report(self, progress: Doing) -> None:
        """Hand over the newest progress; returns at once."""
        self._newest.put(progress)

    def _send_newest(self) -> None:
        while True:
            progress = self._newest.get()
            while progress is not None and not self._newest.empty():
                progress = self._newest.get()
            if progress is None:
                return
            try:
                self._send(progress)
            except Exception as error:  # noqa: BLE001 - only a display depends on it
                log.debug("progress is not shown: %s", error)

    def _send(self, progress: Doing) -> None:
        meta = {
            "phase": progress.phase,
            "done": progress.done,
            "total": progress.total,
            "loss": progress.loss,
            "tokens_per_second": progress.tokens_per_second,
        }
        self._backend.store_result(self._id, meta, "PROGRESS")
        shown = " ".join(f"{key}={value}" for key, value in meta.items() if value is not None)
        with self._events.default_dispatcher(hostname=self._hostname) as dispatcher:
            dispatcher.send("task-progress", uuid=self._id, result=shown, retry=False)
