"""Sends the messages that wake the stages, and no more of them than a queue needs.

Nothing is sent to a queue that holds enough: the sweep rings again later.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from celery import current_app

from babylon_tasks.pipeline import SCORE_BATCH
from babylon_tasks.settings import load_settings
from workers import queues


def score(window_ids: Sequence[str]) -> None:
    """Wake scorers for these windows.

    Raises:
        ServerUnavailable: Redis does not answer.
    """
    chunks = [window_ids[i : i + SCORE_BATCH] for i in range(0, len(window_ids), SCORE_BATCH)]
    _send("babylon.score", "cpu", [[list(chunk)] for chunk in chunks])


def train() -> None:
    """Wake a GPU worker for this deployment's model.

    Raises:
        ServerUnavailable: Redis does not answer.
    """
    _send("babylon.train", "gpu", [[load_settings().model_name]])


def publish() -> None:
    """Wake the publisher.

    Raises:
        ServerUnavailable: Redis does not answer.
    """
    _send("babylon.publish", "cpu", [[]])


def _send(task: str, queue: str, messages: Sequence[list[Any]]) -> None:
    """Send messages until the queue holds enough."""
    if not messages:
        return
    with queues.redis_client() as client:
        room = max(0, queues.ENOUGH[queue] - queues.trim_and_count(client, queue))
        for args in messages[:room]:
            current_app.send_task(task, args=args, queue=queue, retry=False)
