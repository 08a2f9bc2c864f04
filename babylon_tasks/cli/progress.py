"""Lines of progress of the running roles, for `babylon up --until-idle` and `babylon demo`."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from babylon_tasks import pipeline
from babylon_tasks.cockpit.status import database_status
from babylon_tasks.local.supervisor import Stack
from babylon_tasks.records.windows import State
from babylon_tasks.work.context import Context
from babylon_tasks.work.fleet import require_still_active

_POLL_SECONDS = 0.5
_SHORT_POLL_SECONDS = 0.1
_SILENCE_SECONDS = 5.0


def progress_until_idle(context: Context, running: Stack) -> Iterator[str]:
    """Yield a line at each change and every few seconds, until nothing is left to do.

    Raises:
        UserError: A role refused to start.
        ServerUnavailable: An embedded server ended.
    """
    shown, shown_at, version = "", 0.0, None
    while True:
        running.keep_running()
        status = database_status(context)
        line = _line(status)
        now = time.monotonic()
        if shown and status["version"] != version:
            step = status["published_step"]
            yield f"step {step} is trained: {status['version']}"
        version = status["version"]
        if line != shown or now - shown_at >= _SILENCE_SECONDS:
            shown, shown_at = line, now
            yield line
        if _is_idle(context, status):
            return
        time.sleep(_POLL_SECONDS)


def wait_until_idle(context: Context, running: Stack) -> None:
    """Return once nothing is left to do; it looks often, since somebody waits for the next hour.

    Raises:
        UserError: A role refused to start.
        ServerUnavailable: An embedded server ended.
    """
    while not _is_idle(context, database_status(context)):
        running.keep_running()
        time.sleep(_SHORT_POLL_SECONDS)


def _is_idle(context: Context, status: dict[str, Any]) -> bool:
    """Tell whether no window is due or scored, and every step that may serve has been published.

    A window that waits for its next attempt is due or scored as well.

    Raises:
        UserError: The lineage is paused: what waits would wait on.
    """
    waiting = status["windows"][State.DUE] or status["windows"][State.SCORED]
    if waiting:
        require_still_active(context)
    return not waiting and not pipeline.sweep(context, 1).publish


def _line(status: dict[str, Any]) -> str:
    counts = status["windows"]
    windows = ", ".join(f"{counts[s]} {s}" for s in State if counts[s]) or "no windows"
    return f"{windows}; step {status['step']}, serving {status['version'] or 'the base model'}"
