"""The queues' lengths in Redis, and how long they may grow.

A message says «look», so one that waits says it as well as two. Celery's own way, `expires`, is
judged by the worker's clock: a worker whose clock is fast would refuse everything.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from celery import current_app
from kombu.exceptions import OperationalError
from redis import Redis
from redis.exceptions import RedisError

from babylon_tasks.errors import ServerUnavailable
from babylon_tasks.settings import load_settings
from babylon_tasks.store.broker import explained
from babylon_tasks.store.identity import key_prefix

log = logging.getLogger(__name__)

# We send no message to a queue that holds so many. A score message moves up to SCORE_BATCH windows;
# one train message is enough, and a second may wait behind a canary.
ENOUGH = {"cpu": 64, "gpu": 3}
# The same for beat. Its sweep must come through when work fills the cpu queue, and its canaries
# must not pile up behind a step that takes hours.
ENOUGH_FOR_BEAT = {"cpu": 72, "gpu": 1}
# Beyond this, with whatever program they were sent, the newest messages are dropped: the sweep will
# say the same.
MOST = 10_000


@contextmanager
def redis_client() -> Iterator[Redis]:
    """Give the broker's client for a while.

    It puts the prefix before a queue's name by itself, but not in every command: see kombu's
    `GlobalKeyPrefixMixin`.

    Raises:
        ServerUnavailable: Redis does not answer, now or while the client is used, or refuses: what
            worked at the role's start may do so again. Or Postgres does not answer, and this
            process does not know its id yet.
    """
    settings = load_settings()
    key_prefix(settings.postgres())
    try:
        with current_app.connection_for_write() as connection:
            connection.ensure_connection(max_retries=1, interval_start=0.2, timeout=5)
            yield connection.default_channel.client
    except (OperationalError, RedisError, OSError) as error:
        raise ServerUnavailable(str(explained(settings.redis(), error))) from error


def count(client: Redis, queue: str) -> int:
    """Count the messages that wait."""
    return int(client.llen(queue))


def trim_and_count(client: Redis, queue: str) -> int:
    """Drop the newest messages beyond MOST, then count those that wait."""
    length = count(client, queue)
    if length > MOST:
        # Messages are pushed on the left and taken from the right. kombu does not prefix this one.
        client.ltrim(key_prefix(load_settings().postgres()) + queue, -MOST, -1)
        log.warning("queue %s held %d messages: dropped the newest", queue, length)
        length = MOST
    return length
