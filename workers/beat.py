"""Beat's scheduler: Celery's, but it sends nothing to a queue that holds enough."""

from __future__ import annotations

import logging
from typing import Any

from celery.beat import Scheduler, SchedulingError

from babylon_tasks.errors import UserError
from babylon_tasks.text import one_line
from workers import queues

log = logging.getLogger(__name__)


class DoorbellScheduler(Scheduler):  # type: ignore[misc]
    """Keeps no file, since intervals need no memory: it may run anywhere, even twice."""

    def apply_entry(self, entry: Any, producer: Any = None) -> None:
        """Send one entry of the schedule; skip it where its queue holds enough or Redis is away."""
        queue = entry.options["queue"]
        try:
            with queues.redis_client() as client:
                if queues.trim_and_count(client, queue) >= queues.ENOUGH_FOR_BEAT[queue]:
                    return
        except UserError as error:
            log.warning("%s: not sent: %s", entry.name, error)
            return
        try:
            self.apply_async(entry, producer=producer, advance=False)
        except SchedulingError as error:
            log.warning("%s: not sent: %s", entry.name, one_line(str(error), 300))
