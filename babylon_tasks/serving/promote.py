"""Stage 5, serving: the step that trains next becomes the one that serves."""

from __future__ import annotations

import logging

from babylon_tasks.store import heads
from babylon_tasks.work.context import Context

log = logging.getLogger(__name__)


def publish(context: Context) -> list[str]:
    """Let the step that trains next serve; return the versions that became ready.

    Raises:
        ServerUnavailable: Postgres does not answer.
    """
    with context.database.transaction() as tx:
        versions = heads.publish(tx, context.lineage.name)
    if versions:
        log.info("%s: ready: %s", context.lineage.name, ", ".join(versions))
    return versions
