"""Flower's first page: what runs now, who works, what waits and what serves.

It shows what `babylon status` shows. Postgres and Redis are read in a thread each, at most once a
second however many browsers ask, so neither can hold up Flower's event loop; one that is away is
said, and the rest is shown.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

from flower.views import BaseHandler
from tornado.web import authenticated

from babylon_tasks.cockpit.overview import overview
from babylon_tasks.cockpit.status import queue_lengths
from babylon_tasks.errors import BabylonError
from babylon_tasks.settings import Settings
from babylon_tasks.store.database import Database
from babylon_tasks.text import one_line
from babylon_tasks.work.context import this_holder
from babylon_tasks.work.fleet import Fleet
from workers.watch import now_text

log = logging.getLogger(__name__)

_FRESH_SECONDS = 1.0
_PATIENCE_SECONDS = 3.0  # of a page, with a server
_READ_SECONDS = 5.0  # of a transaction


class Answer(NamedTuple):
    """What a server said, or why it said nothing."""

    data: Any
    why_not: str | None = None


class Source:
    """A server, read in a thread of its own; all who ask within a second share one answer."""

    def __init__(self, name: str, read: Callable[[], Any]) -> None:
        self._name, self._read = name, read
        self._executor = ThreadPoolExecutor(1, thread_name_prefix=f"now-{name}")
        self._asked_at = -_FRESH_SECONDS
        self._newest: Future[Answer] | None = None

    async def ask(self) -> Answer:
        """Return the newest answer; it never waits for long."""
        old = time.monotonic() - self._asked_at >= _FRESH_SECONDS
        if self._newest is None or (old and self._newest.done()):
            self._newest = self._executor.submit(self._answer)
            self._asked_at = time.monotonic()
        waiting = asyncio.shield(asyncio.wrap_future(self._newest))
        try:
            return await asyncio.wait_for(waiting, _PATIENCE_SECONDS)
        except TimeoutError:
            silent = time.monotonic() - self._asked_at
            return Answer(None, f"{self._name} has not answered for {silent:.0f} s")

    def _answer(self) -> Answer:
        try:
            return Answer(self._read())
        except BabylonError as error:
            return Answer(None, str(error))
        except Exception as error:
            log.exception("the page Now cannot read %s", self._name)
            return Answer(None, f"{self._name}: {type(error).__name__}, see Flower's log")


def first_page(settings: Settings) -> type[Any]:
    """Make the handler of the first page."""
    fleet = Fleet(Database(settings.postgres(), _READ_SECONDS), settings, this_holder())
    postgres = Source("Postgres", lambda: _printable(overview(fleet.context())))
    redis = Source("Redis", lambda: queue_lengths(settings))

    class NowView(BaseHandler):  # type: ignore[misc] # Flower has no types
        """The page, or with `?parts=1` only what changes in it."""

        @authenticated
        async def get(self) -> None:
            """Show what runs now."""
            figures, queues = await asyncio.gather(postgres.ask(), redis.ask())
            parts = self.get_argument("parts", default=False, type=bool)
            self.set_header("Cache-Control", "no-store")
            self.render(
                "now_parts.html" if parts else "now.html",
                now=figures.data,
                queues=queues.data,
                away=[each.why_not for each in (figures, queues) if each.why_not],
                text=now_text,
            )

    return NowView


def _printable(value: Any) -> Any:
    """Return data whose texts are single lines of printable letters."""
    if isinstance(value, str):
        return one_line(value)
    if isinstance(value, dict):
        return {_printable(key): _printable(each) for key, each in value.items()}
    return [_printable(each) for each in value] if isinstance(value, list) else value
