"""Remembers the endpoint's answers in Postgres, without ever being in the way.

Answers are queued in memory, and a thread of its own writes them. While Postgres is slow or away
the queue fills, and what does not fit is dropped and counted. How many answers an agent got from
which version is added up in memory meanwhile: it comes late then, but is not lost.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import TypeVar

import psycopg

from babylon_tasks.errors import BabylonError
from babylon_tasks.records.captured import CapturedCall, FailedCall
from babylon_tasks.records.windows import window_id_at
from babylon_tasks.settings import Settings
from babylon_tasks.store import calls
from babylon_tasks.store.calls import Answers, Assigned
from babylon_tasks.store.database import Connection, Database
from babylon_tasks.text import one_line

log = logging.getLogger(__name__)

_ANSWER_SECONDS = 3.0  # for Postgres
_FLUSH_SECONDS = 0.2
_WAIT_SECONDS = (1.0, 15.0)  # after a fault: at first, and at most
_TELL_SECONDS = 5.0  # between two writes into the app's table
_COUNT_SECONDS = 60.0  # between two counts of each version's agents, which reads all steps
_SAY_SECONDS = 60.0
_CLOSE_SECONDS = 5.0
_ROWS_AT_ONCE = 2000
_MOST_ROWS = 50_000  # in memory
_MOST_BYTES = 64_000_000
_MOST_AGENTS = 100_000  # of which answers are added up in memory
_MOST_AGENT_LETTERS = 200  # of a name; what is longer is cut

_T = TypeVar("_T")


@dataclass(slots=True)
class CaptureCounts:
    """What became of the answers since the start; `dropped` is by the reason."""

    captured: int = 0
    dropped: Counter[str] = field(default_factory=Counter)


class Capture:
    """The memory of one endpoint process; `add` may be called from any thread.

    Without CAPTURE_CALLS it stores no tokens, and counts all the same.

    Raises:
        UserError: DATABASE_URL is missing or no URL.
    """

    def __init__(self, settings: Settings) -> None:
        self.counts = CaptureCounts()
        self._keeps = settings.capture_calls
        self._database = Database(settings.postgres(), _ANSWER_SECONDS)
        self._lock = threading.Lock()  # held for microseconds only
        self._queue: deque[CapturedCall] = deque()
        self._bytes = 0
        self._assigned: dict[Assigned, Answers] = {}
        self._inferences: Counter[tuple[str, int]] = Counter()
        self._closing = threading.Event()
        self._tell_at = self._count_at = 0.0
        self._say_at: dict[str, float] = {}
        self._thread: threading.Thread | None = None  # from the first answer on

    @property
    def queued(self) -> int:
        """Answers that wait to be written."""
        return len(self._queue)

    def add(self, call: CapturedCall) -> None:
        """Take an answer. It never waits, and never raises."""
        try:
            agent = stored_agent(call.agent)
            if agent != call.agent:
                call = replace(call, agent=agent)
            why_not = call.why_not_kept() if self._keeps else None
            with self._lock:
                self._start()
                self._inferences[call.lineage, call.step] += 1
                if agent:
                    malformed, pinned = int(call.malformed), int(call.pinned)
                    answers = Answers(1, call.at, call.at, malformed=malformed, pinned=pinned)
                    self._assign(call, agent, answers)
                if self._keeps:
                    why_not = why_not or self._enqueue(call)
                if why_not:
                    self.counts.dropped[why_not] += 1
        except Exception:
            log.exception("an answer cannot be remembered")
            self.counts.dropped["fault"] += 1

    def add_failed(self, call: FailedCall) -> None:
        """Count a request that its version failed, for its agent. It never waits, never raises."""
        try:
            agent = stored_agent(call.agent)
            with self._lock:
                self._start()
                if agent:
                    self._assign(call, agent, Answers(0, call.at, call.at, failed=1))
        except Exception:
            log.exception("a failed request cannot be remembered")
            self.counts.dropped["fault"] += 1

    def close(self) -> None:
        """Write what waits, for a few seconds at most; the rest is dropped and counted."""
        self._closing.set()
        if self._thread is not None:
            self._thread.join(_CLOSE_SECONDS)
        if left := self.queued:
            self.counts.dropped["closed"] += left
            log.warning("%d answers are not remembered: Postgres took too long", left)

    def _enqueue(self, call: CapturedCall) -> str | None:
        """Queue an answer, or return why not; the caller has the lock."""
        size = _size(call)
        if len(self._queue) >= _MOST_ROWS or self._bytes + size > _MOST_BYTES:
            return "queue_full"
        self._queue.append(call)
        self._bytes += size
        return None

    def _start(self) -> None:
        """Start the thread with the first answer; the caller has the lock."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="capture", daemon=True)
            self._thread.start()

    def _assign(self, call: CapturedCall | FailedCall, agent: str, answers: Answers) -> None:
        """Count answers for their agent; the caller has the lock."""
        key = Assigned(call.lineage, window_id_at(call.at), agent, call.step)
        if key in self._assigned or len(self._assigned) < _MOST_AGENTS:
            self._merge({key: answers})
        else:
            self.counts.dropped["too_many_agents"] += 1

    def _merge(self, assigned: Mapping[Assigned, Answers]) -> None:
        for key, answers in assigned.items():
            if known := self._assigned.get(key):
                known.add(answers)
            else:
                self._assigned[key] = answers

    def _run(self) -> None:
        wait_seconds = _FLUSH_SECONDS
        while True:
            closing = self._closing.wait(wait_seconds)
            try:
                while self._write_calls():
                    pass
                self._write_assigned()
                self._tell_app(at_once=closing)
                wait_seconds = _FLUSH_SECONDS
            except BabylonError as error:
                self._say(str(error))
                least, most = _WAIT_SECONDS
                wait_seconds = min(max(least, 2 * wait_seconds), most)
            except Exception:
                log.exception("what the endpoint remembers cannot be written")
                wait_seconds = _WAIT_SECONDS[1]
            if closing:
                self._database.close()
                return

    def _write_calls(self) -> bool:
        """Write some of the queued answers; tell whether more wait.

        Raises:
            BabylonError: Postgres is away or too slow; they stay in the queue.
        """
        with self._lock:
            some = list(itertools.islice(self._queue, _ROWS_AT_ONCE))
        if not some:
            return False
        for part, written in self._parts(calls.add, some):
            for _ in part:
                self._queue.popleft()
            size = sum(map(_size, part))
            with self._lock:
                self._bytes -= size
                if written:
                    self.counts.captured += len(part)
                else:
                    self.counts.dropped["refused"] += len(part)
        return self.queued > 0

    def _write_assigned(self) -> None:
        """Write how many answers each agent got.

        Raises:
            BabylonError: Postgres is away or too slow; they are added up further.
        """
        with self._lock:
            assigned, self._assigned = self._assigned, {}
        if not assigned:
            return
        try:

            def add(tx: Connection, keys: Sequence[Assigned]) -> None:
                calls.add_assignments(tx, {key: assigned[key] for key in keys})

            for part, written in self._parts(add, [*assigned]):
                answers = sum(assigned.pop(key).count for key in part)
                if not written:
                    self.counts.dropped["agent_refused"] += answers
        except BabylonError:
            with self._lock:
                self._merge(assigned)
            raise

    def _parts(
        self, write: Callable[[Connection, Sequence[_T]], None], rows: Sequence[_T]
    ) -> Iterator[tuple[Sequence[_T], bool]]:
        """Write rows, and yield them as they are done: written, or each that Postgres refuses.

        Raises:
            BabylonError: Postgres is away or too slow; what was not yielded is not written.
        """
        written = self._written(lambda tx: write(tx, rows))
        if written or len(rows) == 1:
            yield rows, written
            return
        half = len(rows) // 2
        yield from self._parts(write, rows[:half])
        yield from self._parts(write, rows[half:])

    def _written(self, write: Callable[[Connection], None]) -> bool:
        """Write in one transaction; False if Postgres refuses it, as it would each time.

        Raises:
            BabylonError: Postgres is away or too slow.
        """
        try:
            with self._database.transaction() as tx:
                write(tx)
        except psycopg.Error as error:
            self._say(f"Postgres refuses it: {one_line(str(error))}")
            return False
        return True

    def _tell_app(self, *, at_once: bool) -> None:
        """Add to the app's counters; what it has locked is for the next time.

        Its table may lack a column, or we a right: nothing else waits for that.
        """
        now = time.monotonic()
        if now < self._tell_at and not at_once:
            return
        self._tell_at = now + _TELL_SECONDS
        with self._lock:
            answers, self._inferences = self._inferences, Counter()
        try:
            if answers:
                answers = self._add_inferences(answers)
            if now >= self._count_at or at_once:
                self._count_at = now + _COUNT_SECONDS
                self._count_agents()
        except (BabylonError, psycopg.Error) as error:
            self._say(one_line(str(error)), "trained_models")
        with self._lock:
            self._inferences.update(answers)

    def _add_inferences(self, answers: Counter[tuple[str, int]]) -> Counter[tuple[str, int]]:
        """Return those of which the app has the rows locked."""
        with self._database.transaction() as tx:
            locked = calls.add_inferences(tx, answers)
        return Counter({key: answers[key] for key in locked})

    def _count_agents(self) -> None:
        now = datetime.now(UTC)
        windows = [window_id_at(now), window_id_at(now - timedelta(hours=1))]
        with self._database.transaction() as tx:
            calls.count_agents(tx, windows)

    def _say(self, what: str, about: str = "what the endpoint remembers") -> None:
        """Log a fault, but not each time; what is about one thing hides no other."""
        now = time.monotonic()
        if now >= self._say_at.get(about, 0.0):
            self._say_at[about] = now + _SAY_SECONDS
            log.warning("%s: %s; %d answers wait", about, what, self.queued)


def stored_agent(agent: str | None) -> str | None:
    """Return an agent's name as Postgres can store and index it."""
    if not agent:
        return None
    short = agent[:_MOST_AGENT_LETTERS].replace("\0", "\ufffd")
    return short.encode("utf-8", "replace").decode()


def _size(call: CapturedCall) -> int:
    """Return about how many bytes of memory an answer takes."""
    return 1000 + 64 * len(call.token_ids)
