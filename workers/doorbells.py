"""Sends the messages that wake the stages, and never more than somebody could need.

A message says «look»; one that waits already says it as well as two. So before sending, the
queue's length is asked for, and beyond a bound nothing is sent: the sweep rings again later.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from celery import current_app
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from babylon_tasks.errors import ServerUnavailable
from babylon_tasks.pipeline import SCORE_BATCH
from babylon_tasks.settings import load_settings
from babylon_tasks.store.database import server_name

log = logging.getLogger(__name__)

# Waiting messages a queue; each score message moves up to SCORE_BATCH windows.
MAX_QUEUED = 64
_MAX_QUEUED_TRAIN = 2


def score(window_ids: Sequence[str]) -> None:
    """Wake scorers for these windows."""
    chunks = [window_ids[i : i + SCORE_BATCH] for i in range(0, len(window_ids), SCORE_BATCH)]
    _send("babylon.score", "cpu", [[list(chunk)] for chunk in chunks], MAX_QUEUED)


def train() -> None:
    """Wake a GPU worker for this deployment's model."""
    _send("babylon.train", "gpu", [[load_settings().model_name]], _MAX_QUEUED_TRAIN)


def publish() -> None:
    """Wake the publisher."""
    _send("babylon.publish", "cpu", [[]], MAX_QUEUED)


def enqueue(window_ids: Sequence[str]) -> None:
    """Ask the producer to make these windows due."""
    _send("babylon.enqueue", "cpu", [[list(window_ids)]], MAX_QUEUED)


def _send(task: str, queue: str, messages: Sequence[list[Any]], max_queued: int) -> None:
    """Send messages, at most until the queue holds `max_queued`.

    Raises:
        ServerUnavailable: Redis does not answer.
    """
    if not messages:
        return
    try:
        with current_app.connection_for_write() as connection:
            connection.ensure_connection(max_retries=1, interval_start=0.2, timeout=5)
            waiting = connection.default_channel.client.llen(queue)
        for args in messages[: max(0, max_queued - waiting)]:
            current_app.send_task(task, args=args, queue=queue, retry=False)
    except (OperationalError, RedisError, OSError) as error:
        raise ServerUnavailable(
            f"cannot reach {server_name('Redis', load_settings().redis())}: is it running, and is "
            "REDIS_URL right?"
        ) from error
