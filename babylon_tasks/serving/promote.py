"""Stage 5, serving: the newest committed step becomes the one that serves."""

from __future__ import annotations

import logging

from babylon_tasks.store import steps
from babylon_tasks.work.context import Context

log = logging.getLogger(__name__)


def publish(context: Context) -> list[str]:
    """Let the newest step serve; return the versions that became ready.

    Raises:
        ServerUnavailable: Postgres does not answer.
    """
    with context.database.transaction() as tx:
        versions = steps.publish(tx, context.lineage.name)
    if versions:
        log.info("ready: %s", ", ".join(versions))
    return versions
