"""Logging for every role: one line an event, to standard error."""

from __future__ import annotations

import logging

from babylon_tasks.text import one_line

_MOST_CHARACTERS = 4000


class _OneLine(logging.Formatter):
    """What a message quotes (ids, names, errors) can neither forge a line nor fill a disk."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        record.message = one_line(record.message, _MOST_CHARACTERS)
        return super().formatMessage(record)


def configure_logging(level: str) -> None:
    """Log from `level` up; third parties, and Celery's two lines a task, only warnings."""
    handler = logging.StreamHandler()
    handler.setFormatter(_OneLine("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    for ours in ("babylon_tasks", "workers", "celery"):
        logging.getLogger(ours).setLevel(level)
    if level != "DEBUG":
        for chatty in ("celery.worker.strategy", "celery.app.trace"):
            logging.getLogger(chatty).setLevel(logging.WARNING)
