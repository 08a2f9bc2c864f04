"""Beat's scheduler: Celery's, but it sends nothing to a queue that holds enough."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from typing import Any

from celery.beat import Scheduler, SchedulingError

from babylon_tasks.errors import UserError
from babylon_tasks.text import one_line
from workers import queues

log = logging.getLogger(__name__)

_LONG_AGO = datetime(2000, 1, 1, tzinfo=UTC)


class DoorbellScheduler(Scheduler):  # type: ignore[misc]
    """Keeps no file, since intervals need no memory: it may run anywhere, even twice.

    All entries are due at its start: whoever starts it need not wait a minute for the first work,
    nor to know whether messages come through.
    """

    def setup_schedule(self) -> None:
        """Take the schedule from the configuration."""
        super().setup_schedule()
        for entry in self.schedule.values():
            entry.last_run_at = _LONG_AGO

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
