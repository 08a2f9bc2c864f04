"""A row of Flower's list of tasks, as a person shall see it."""

from __future__ import annotations

import math
import time
from typing import Any

_NEW_SECONDS = 5.0  # until a worker's heartbeat, of every 2 s, has the work that it begins
_FRESH_SECONDS = 10.0  # of its newest event: another worker of the same name may do it


def format_task(task: Any) -> Any:
    """Name a task by what it does: `train babylon-agent: step 13, 6 windows, 48 runs`."""
    task.name = f"{(task.name or '').removeprefix('babylon.')} {task.args or ''}".strip()
    if task.state in ("FAILURE", "RETRY"):
        task.result = task.exception or task.result  # the last progress is no result
    if task.state == "STARTED" and (why := _lost(task)):
        task.state, task.result = "LOST", f"{why}: {task.result}"
    if task.result == "None":
        task.result = ""
    return task


def _lost(task: Any) -> str | None:
    """Return why work that has begun does not go on, as far as Flower has heard; None: it does.

    Redis keeps no event for a Flower that is not connected, and who was killed sends none.
    """
    worker = task.worker
    if not getattr(worker, "alive", True):
        return "its worker is not heard any more, so others go on"
    # Both by the clock of the worker's machine. Workers of an earlier release do not say it.
    new = (task.started or math.inf) > getattr(worker, "said_at", 0.0) - _NEW_SECONDS
    if new or task.uuid in worker.at_work or abs(time.time() - task.timestamp) < _FRESH_SECONDS:
        return None
    return "its worker does it no more, and its end was not heard; `babylon status` says what runs"
