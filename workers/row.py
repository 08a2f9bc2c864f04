"""A row of Flower: a piece of work, told by the pool process that does it.

Celery tells what becomes of messages. Most of ours find nothing to do, and one that trains a step
is not known by its message; so Celery's events are off for our tasks, and the pool process sends
its own, under the message's id, from when there is something to show. Failures come from the main
process (`workers/request.py`), which also sees those of pool processes that died.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
from celery import Task
from celery.exceptions import Retry
from celery.states import RETRY

from babylon_tasks.errors import (
    BabylonError,
    MachineAtFault,
    Retryable,
    ServerRefused,
    ServerUnavailable,
)
from babylon_tasks.records.doing import Doing
from babylon_tasks.text import PLACE, one_line, place_of
from babylon_tasks.work.machine_faults import QUOTES
from workers import outage
from workers.outbox import Message, Sender, this_outbox

_LAST_SECONDS = 2.0  # that the end of a task waits for Redis
_SIGTERM_SLACK_SECONDS = 0.5
_LOG = "the worker's log has all of it"
_STOPPED = "the worker was stopped: the work is given back, and another worker or time does it"


class Unexpected(Exception):
    """An error that nobody raised on purpose, without its text: that may quote a trace."""


class Row:
    """The row of one task; there is none until `begin`."""

    def __init__(self, task: Task[Any, Any]) -> None:
        self._task, self._sender, self._outbox = task, Sender(task), this_outbox()
        self._taken_at, self._begun_at, self._title = time.time(), 0.0, ""
        self._result: str | None = None
        self.done: list[Doing] = []  # what was done: of each piece, by its title, the newest

    @property
    def begun(self) -> bool:
        """Whether there is something to show."""
        return bool(self._begun_at)

    def begin(self, title: str) -> None:
        """Show the row, or change what its work is."""
        self._title = title
        if not self.begun:
            self._begun_at = time.time()
            self._put("task-received")
            self._put("task-started")

    def tell(self, doing: Doing) -> None:
        """Show what is done, and how far it is; returns at once."""
        title = doing.title()
        if self.done and self.done[-1].title() == title:
            self.done.pop()
        self.done.append(doing)
        self.begin(title)
        self._say(doing.progress(), msgspec.to_builtins(doing))

    def say(self, text: str) -> None:
        """Show how far the work is, in a sentence."""
        self.begin(self._title)
        self._say(text, None)

    def end(self, title: str, result: str) -> None:
        """Say what came of the work. It is shown as done when the task is over."""
        self.begin(title)
        self._result = result

    def _say(self, text: str, value: Any) -> None:
        # Celery's State takes a type that it does not know as the task's state. `task-started`
        # would move the start, and count as another one in Flower's metrics.
        self._put("task-STARTED", text, "PROGRESS" if value else None, value, progress=True)

    def succeed(self) -> None:
        """End the row as done, if there is one."""
        if self.begun:
            self._put("task-succeeded", self._result, runtime=time.time() - self._taken_at)
            self._outbox.flush(_LAST_SECONDS)

    def give_back(self, why: str) -> None:
        """End the row as work that is given back: another worker or time does it."""
        self.begin(self._title)
        self._put("task-retried", why, RETRY, Retryable(why), exception=why)
        self._outbox.flush(_LAST_SECONDS)

    def fail(self) -> None:
        """Leave the end of the row to the main process; it has one from now on."""
        self.begin(self._title)
        self._outbox.flush(_LAST_SECONDS)

    def stop(self) -> None:
        """End the row of a process that is stopped.

        One that is stopped for its time limit has failed, and the main process says so.
        """
        limit = (self._task.request.timelimit or [None])[0] or self._task.time_limit
        in_time = limit is None or time.time() - self._taken_at < limit - _SIGTERM_SLACK_SECONDS
        if self.begun and in_time:
            self.give_back(_STOPPED)

    def _put(
        self,
        event: str,
        result: str | None = None,
        state: str | None = None,
        value: Any = None,
        *,
        progress: bool = False,
        **fields: Any,
    ) -> None:
        fields |= {"name": self._task.name, "args": one_line(self._title)}
        # For a Flower that was started since; and Celery moves its own by time zones.
        fields |= {"received": self._begun_at, "started": self._begun_at}
        if result is not None:
            fields["result"] = one_line(result)
        self._outbox.put(Message(self._sender, event, fields, state, value, progress))


@contextmanager
def row_of(task: Task[Any, Any]) -> Iterator[Row]:
    """Give the row of a task, and end it with the block.

    What the block raises becomes what Flower and the result may show: one line for a person. Of an
    outage, the housekeeping of a worker makes one row.

    Raises:
        Retry: The work was given back, or its outage is known; for Celery it has not failed.
        BabylonError, Unexpected: It failed.
    """
    row = Row(task)
    try:
        yield row
    except (SystemExit, KeyboardInterrupt):
        row.stop()
        raise
    except Exception as error:  # noqa: BLE001 - raised again, as it may be shown
        shown = presentable(error)
        is_known = isinstance(error, ServerUnavailable) and outage.note()
        if is_known and not row.begun:
            raise Retry(str(shown), shown) from None
        if isinstance(error, Retryable) and not isinstance(error, ServerRefused):
            row.give_back(str(shown))
            raise Retry(str(shown), shown) from None
        row.fail()
        raise shown from None
    outage.note_end()
    row.succeed()


def presentable(error: Exception) -> Exception:
    """Return an error in one line, with nothing of a trace."""
    if isinstance(error, MachineAtFault):  # its end is the text of another error
        return type(error)(str(error).partition(QUOTES)[0])
    if isinstance(error, BabylonError):
        place = PLACE.search(str(error))
        if place is None:
            return error
        return type(error)(f"{str(error).partition(':')[0]}: {place[1]}; {_LOG}")
    if isinstance(error, OSError):  # a file and what is wrong with it
        return Unexpected(one_line(f"{type(error).__name__}: {error}"))
    return Unexpected(f"{place_of(error)}; {_LOG}")
