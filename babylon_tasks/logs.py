"""Logging for every role: one line an event, to standard error."""

from __future__ import annotations

import functools
import logging
import os
from typing import TYPE_CHECKING, Any

from babylon_tasks.text import one_line

if TYPE_CHECKING:
    from structlog.stdlib import ProcessorFormatter

_MOST_CHARACTERS = 4000
_THIRD_PARTIES_LEVEL = logging.WARNING


def configure_logging(level: str) -> None:
    """Log from `level` up; third parties, and Celery's two lines a task, only warnings."""
    handler = logging.StreamHandler()
    colors = handler.stream.isatty() and not os.environ.get("NO_COLOR")
    handler.setFormatter(_Lines(colors))
    logging.basicConfig(handlers=[handler], level=_THIRD_PARTIES_LEVEL, force=True)
    for ours in ("babylon_tasks", "workers", "celery"):
        logging.getLogger(ours).setLevel(level)
    if level != "DEBUG":
        for chatty in ("celery.worker.strategy", "celery.app.trace"):
            logging.getLogger(chatty).setLevel(_THIRD_PARTIES_LEVEL)


class _Lines(logging.Formatter):
    """Leaves the line to structlog, which is imported with the first one.

    The import takes 0.1 CPU seconds, and most commands log nothing.
    """

    def __init__(self, colors: bool) -> None:
        super().__init__()
        self._colors = colors

    def format(self, record: logging.LogRecord) -> str:
        return _structlog_formatter(self._colors).format(record)


@functools.cache
def _structlog_formatter(colors: bool) -> ProcessorFormatter:
    from structlog.dev import Column, ConsoleRenderer
    from structlog.stdlib import ProcessorFormatter

    level_colors = ConsoleRenderer.get_default_level_styles(colors)
    reset = "\x1b[0m" if colors else ""

    def colored(key: str, value: object) -> str:
        return f"{level_colors.get(str(value).lower(), '')}{value}{reset}"

    def plain(key: str, value: object) -> str:
        return str(value)

    columns = [
        Column("time", plain),
        Column("level", colored),
        Column("logger", plain),
        Column("", plain),  # the event
    ]
    # The tracebacks stay those of `logging`.
    return ProcessorFormatter(
        processors=[_fields, ConsoleRenderer(columns=columns)],
        keep_exc_info=True,
        keep_stack_info=True,
    )


def _fields(_: object, __: str, event: Any) -> dict[str, str]:
    """Return what a line says. What the event quotes can neither forge a line nor fill a disk."""
    record: logging.LogRecord = event["_record"]
    return {
        "time": logging.Formatter().formatTime(record),
        "level": record.levelname,
        "logger": f"{record.name}:",
        "event": one_line(str(event["event"]), _MOST_CHARACTERS),
    }
