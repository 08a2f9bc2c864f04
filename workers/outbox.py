"""What a pool process has still to say to Redis: events for Flower, and states of results."""

from __future__ import annotations

import functools
import logging
import threading
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from operator import itemgetter
from typing import Any

from celery import Task
from celery.app.task import get_actual_ignore_result

from workers.broker import publish_event

log = logging.getLogger(__name__)

_PROGRESS_SECONDS = 1.0  # progress is not sent more often
_AGAIN_SECONDS = 1.0  # between two tries to send what must not be left out
GIVE_UP_SECONDS = 600.0  # of what nobody took
_REPEAT_SECONDS = 5.0  # between two tries to find who hears how a task ended
_ENDS = ("task-succeeded", "task-retried")
MOST = 200  # that wait for Redis, or for Flower; the oldest go first


class Sender:
    """What a thread needs to speak for a task; made where the task runs, since it knows none."""

    def __init__(self, task: Task[Any, Any]) -> None:
        self.id = task.request.id
        self._hostname = task.request.hostname
        self._events = task.app.events
        self._backend = task.backend  # a thread would make one of its own
        self._keeps_result = not get_actual_ignore_result(task, task.request)

    def send(self, message: Message) -> bool:
        """Send an event, then the state of the result; return whether anybody received the event.

        Raises:
            Exception: Redis does not answer; whatever the client of it raises.
        """
        with self._events.default_dispatcher(hostname=self._hostname) as dispatcher:
            fields = {"uuid": self.id, "timestamp": message.at, **message.fields}
            is_heard = publish_event(dispatcher, message.event, fields)
        if message.state is not None and self._keeps_result:
            self._backend.store_result(self.id, message.value, message.state)
        return is_heard


@dataclass(frozen=True)
class Message:
    """An event with its fields, and the state of the task's result, for a task that has one.

    Of `progress` only the newest is sent.
    """

    sender: Sender
    event: str
    fields: Mapping[str, Any]
    state: str | None = None
    value: Any = None
    progress: bool = False
    at: float = field(default_factory=time.time)


class Outbox:
    """Sends messages in their order, from a thread of its own.

    Redis may be away or frozen for minutes. The work must not wait for it, nor the lease that the
    work's signs of life renew. Progress that could not be sent in time is left out; the rest is
    tried again, for a while also when its task is over. How a task ended is said again until
    somebody hears it: after an outage Flower comes back later than we do.
    """

    def __init__(self) -> None:
        self._waiting: deque[Message] = deque(maxlen=MOST)
        self._unheard: deque[Message] = deque(maxlen=MOST)
        self._repeat_at = 0.0  # when the oldest of these may be sent again
        self._sending: Message | None = None
        self._changed = threading.Condition()
        self._progress_at = 0.0  # when the next one may be sent
        threading.Thread(target=self._run, daemon=True).start()

    def put(self, message: Message) -> None:
        """Hand over a message; returns at once."""
        with self._changed:
            last = self._waiting[-1] if self._waiting else None
            if last is not None and last.progress and last.sender is message.sender:
                self._waiting.pop()
            self._waiting.append(message)
            self._changed.notify_all()

    def flush(self, seconds: float) -> None:
        """Leave out the progress that waits, and wait until the rest is sent, or for so long."""
        with self._changed:
            if self._waiting and self._waiting[-1].progress:
                self._waiting.pop()
                self._changed.notify_all()
            self._changed.wait_for(lambda: not self._waiting and not self._sending, seconds)

    def _run(self) -> None:
        while True:
            message = self._next()
            is_heard = True
            try:
                is_heard = message.sender.send(message)
                sent = True
            except Exception as error:  # noqa: BLE001 - only a display depends on it
                log.debug("%s is not shown yet: %s", message.event, error)
                sent = message.progress or time.time() - message.at > GIVE_UP_SECONDS
            with self._changed:
                self._sending = None
                if not sent and len(self._waiting) < MOST:
                    self._waiting.appendleft(message)
                if not is_heard:
                    self._keep(message)
                self._changed.notify_all()
            if not sent:
                time.sleep(_AGAIN_SECONDS)

    def _keep(self, message: Message) -> None:
        """Keep how a task ended, which nobody heard; its result is stored."""
        if message.event in _ENDS and time.time() - message.at <= GIVE_UP_SECONDS:
            self._unheard.append(replace(message, state=None))
            self._repeat_at = time.monotonic() + _REPEAT_SECONDS

    def _next(self) -> Message:
        """Wait for a message that may be sent now, and take it."""
        with self._changed:
            while True:
                # Again: it may be left out.
                self._changed.wait_for(lambda: bool(self._waiting or self._unheard))
                now = time.monotonic()
                queue, at = self._first()
                if now >= at:
                    break
                self._changed.wait(at - now)
            self._sending = queue.popleft()
            if self._sending.progress:
                self._progress_at = time.monotonic() + _PROGRESS_SECONDS
            return self._sending

    def _first(self) -> tuple[deque[Message], float]:
        """Return what has the next message, and when that may be sent."""
        queues = []
        if self._waiting:
            at = self._progress_at if self._waiting[0].progress else 0.0
            queues.append((self._waiting, at))
        if self._unheard:
            queues.append((self._unheard, self._repeat_at))
        return min(queues, key=itemgetter(1))


@functools.cache
def this_outbox() -> Outbox:
    """Return the one of this process, made when it is first needed: after the fork."""
    return Outbox()
