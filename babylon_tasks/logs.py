"""Logging for every role: one line an event, to standard error."""

from __future__ import annotations

import logging


def configure_logging(level: str) -> None:
    """Log from `level` up; third parties, and Celery's two lines a task, only warnings."""
    logging.basicConfig(
        format="%(asctime)s %(levelname)s %(name)s: %(message)s", level=logging.WARNING, force=True
    )
    for ours in ("babylon_tasks", "workers", "celery"):
        logging.getLogger(ours).setLevel(level)
    if level != "DEBUG":
        for chatty in ("celery.worker.strategy", "celery.app.trace"):
            logging.getLogger(chatty).setLevel(logging.WARNING)
