"""Sends the messages that wake the stages, and no more of them than a queue needs.

A message names nothing but its task: whoever takes it looks in Postgres for what is due.
Nothing is sent to a queue that holds enough: the sweep rings again later.
"""

from __future__ import annotations

from celery import current_app

from babylon_tasks.pipeline import SCORE_BATCH
from workers import queues


def score(windows: int) -> None:
    """Wake scorers for so many windows.

    Raises:
        ServerUnavailable: Redis does not answer.
    """
    _send("babylon.score", "cpu", -(-windows // SCORE_BATCH))


def train() -> None:
    """Wake a GPU worker.

    Raises:
        ServerUnavailable: Redis does not answer.
    """
    _send("babylon.train", "gpu", 1)


def publish() -> None:
    """Wake the publisher.

    Raises:
        ServerUnavailable: Redis does not answer.
    """
    _send("babylon.publish", "cpu", 1)


def _send(task: str, queue: str, messages: int) -> None:
    """Send so many messages, or fewer, until the queue holds enough."""
    if not messages:
        return
    with queues.redis_client() as client:
        room = max(0, queues.ENOUGH[queue] - queues.trim_and_count(client, queue))
        for _ in range(min(messages, room)):
            current_app.send_task(task, queue=queue, retry=False)
