"""Sends the messages that wake the stages, and never more than somebody could need.

Before sending, the queue's length is asked for, and beyond a bound nothing is sent: the sweep rings
again later.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from celery import current_app

from babylon_tasks.pipeline import SCORE_BATCH
from babylon_tasks.settings import load_settings
from workers import queues


def score(window_ids: Sequence[str]) -> None:
    """Wake scorers for these windows."""
    chunks = [window_ids[i : i + SCORE_BATCH] for i in range(0, len(window_ids), SCORE_BATCH)]
    _send("babylon.score", "cpu", [[list(chunk)] for chunk in chunks])


def train() -> None:
    """Wake a GPU worker for this deployment's model."""
    _send("babylon.train", "gpu", [[load_settings().model_name]])


def publish() -> None:
    """Wake the publisher."""
    _send("babylon.publish", "cpu", [[]])


def _send(task: str, queue: str, messages: Sequence[list[Any]]) -> None:
    """Send messages, at most until the queue holds enough.

    Raises:
        ServerUnavailable: Redis does not answer.
    """
    if not messages:
        return
    with queues.redis_client() as client:
        room = max(0, queues.ENOUGH[queue] - queues.waiting(client, queue))
        for args in messages[:room]:
            current_app.send_task(task, args=args, queue=queue, retry=False)
