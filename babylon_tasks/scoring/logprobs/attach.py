"""Attaches log-probabilities to the recorded calls of a window, before it becomes `scored`.

It delays no window for long: if the server is away or refuses, the window goes on without them.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import aclosing, asynccontextmanager
from itertools import islice

import httpx

from babylon_tasks.records.recorded_steps import Unusable
from babylon_tasks.records.steps import Call, Logprobs
from babylon_tasks.records.traces import decode
from babylon_tasks.records.versions import Versions
from babylon_tasks.scoring.logprobs.server import ANSWER_SECONDS, LogprobServer, NoAnswer, Refused
from babylon_tasks.store import logprobs, steps
from babylon_tasks.store.logprobs import Asked, hash_of
from babylon_tasks.store.traces import TraceReader
from babylon_tasks.work.aio import all_done
from babylon_tasks.work.context import Context
from babylon_tasks.work.remembered import Batch, complete

log = logging.getLogger(__name__)

_AT_ONCE = 8  # calls asked about at the same time
_BATCH = 64  # calls whose answers are stored in one transaction
_IN_A_ROW = 8  # so many calls in a row without an answer: the server counts as away
_WINDOW_SECONDS = 600.0  # for one window; its other calls get no log-probabilities
# For one claim, which may already have waited long for a judge: workers end a task after 1800.
_BEGIN_SECONDS = 900.0  # after it no other window is begun, if they come one after another
_CLAIM_SECONDS = 1500.0  # after it no other call gets log-probabilities
_TOO_LATE = "it took too long"
_HELD_BYTES = 64_000_000  # of texts in memory; for more the traces are read again


class Attacher:
    """Asks for the windows of one claim, at most `_AT_ONCE` calls at a time in all."""

    def __init__(self, context: Context, server: LogprobServer) -> None:
        self._context, self._server = context, server
        self._name = context.lineage.name
        self._slots = asyncio.Semaphore(_AT_ONCE)
        self._made_at = time.monotonic()
        with context.database.transaction() as tx:
            self._versions = Versions(self._name, steps.steps_of_versions(tx, self._name))
        self._absent: set[str] = set()  # names that the server does not have
        self._failed = 0  # calls in a row without an answer
        self._away = False
        self._why = ""  # why the last such call got no answer

    def has_time(self) -> bool:
        """Tell whether another window may be begun; if not, the next claim takes it."""
        return time.monotonic() < self._made_at + _BEGIN_SECONDS

    async def attach(
        self,
        reader: TraceReader,
        reading: asyncio.Lock,
        window_id: str,
        trajectory_ids: Collection[str],
        on_row: Callable[[], None],
    ) -> int:
        """Get log-probabilities for every call that has none; return how many still have none.

        `on_row` is called once for each trace that is read. A second run asks only about calls that
        still have none.

        Raises:
            ServerUnavailable, Retryable, Final: As `TraceReader.read` does.
        """
        # `timeout_at` takes the event loop's time, which is the monotonic one.
        ends_at = min(time.monotonic() + _WINDOW_SECONDS, self._made_at + _CLAIM_SECONDS)
        with self._context.database.transaction() as tx:
            asked_before = logprobs.asked(tx, self._name, window_id)
        asked = without = 0
        more = True
        while more:
            async with reading:
                pending, more = await self._pending(
                    reader, window_id, trajectory_ids, asked_before, on_row
                )
            asked += len(pending)
            each = iter(pending.items())
            while batch := list(islice(each, _BATCH)):
                answers = await all_done(self._ask(one, call, ends_at) for one, call in batch)
                pairs = zip(batch, answers, strict=True)
                answered = [(one, answer) for (one, _), answer in pairs if answer]
                with self._context.database.transaction() as tx:
                    logprobs.add(tx, self._name, window_id, answered)
                without += len(batch) - len(answered)
            asked_before |= pending.keys()
        if without:
            log.warning(
                "window %s goes on with %d of %d calls without log-probabilities: %s",
                window_id,
                without,
                asked,
                self._why,
            )
        else:
            log.info("window %s: log-probabilities of %d calls attached", window_id, asked)
        return without

    async def _ask(self, asked: Asked, call: Call, ends_at: float) -> Logprobs | None:
        async with self._slots:
            if self._away or asked.asked_of in self._absent:
                return None
            if time.monotonic() > ends_at:
                self._why = _TOO_LATE
                return None
            try:
                async with asyncio.timeout_at(ends_at):
                    answer = await self._server.ask(asked.asked_of, call)
            except TimeoutError:
                self._why = _TOO_LATE
                return None
            except Refused as error:
                self._why = str(error)
                self._away = self._away or error.status in (401, 403)
                if error.status == 404:
                    self._absent.add(asked.asked_of)
                return None
            except NoAnswer as error:
                self._why = str(error)
                self._failed += 1
                self._away = self._away or self._failed >= _IN_A_ROW
                return None
            self._failed = 0
            return answer

    def _name_of(self, version: str | None) -> str | None:
        """Return the server's name for the model that answered; None if it is unknown."""
        step = self._versions.step_of(version)
        return self._context.settings.logprobs_model if step is None else f"{self._name}@{step}"

    async def _pending(
        self,
        reader: TraceReader,
        window_id: str,
        trajectory_ids: Collection[str],
        asked_before: set[Asked],
        on_row: Callable[[], None],
    ) -> tuple[dict[Asked, Call], bool]:
        """Return calls to ask about, and whether there are more than memory may hold."""
        pending: dict[Asked, Call] = {}
        held = 0
        batch = Batch()

        def add_pending() -> int:
            """Add the batch's calls; return how many bytes of texts they have."""
            traces = complete(self._context.database, batch.traces, with_tokens=True)
            added = 0
            for (raw, _), trace in zip(batch.traces, traces, strict=True):
                for call, version in zip(trace.calls, trace.versions, strict=True):
                    name = self._name_of(version)
                    if call.logprobs or name is None:
                        continue
                    asked = Asked(raw.trajectory_id, hash_of(call), name)
                    if asked not in asked_before:
                        pending[asked] = call
                        added += call.prompt_bytes() + len(call.response)
            return added

        async with aclosing(reader.read(window_id)) as rows:
            async for raw in rows:
                on_row()
                if raw.trajectory_id not in trajectory_ids:
                    continue
                if held > _HELD_BYTES:
                    return pending, True
                try:
                    trace = decode(raw)
                except Unusable:
                    continue  # rewritten since it was scored; training will notice it
                if batch.add(raw, trace):
                    held += add_pending()
                    batch = Batch()
        add_pending()
        return pending, False


@asynccontextmanager
async def attaching(context: Context) -> AsyncIterator[Attacher | None]:
    """Yield an `Attacher` for one claim, or None without LOGPROBS_URL.

    Raises:
        ServerUnavailable: Postgres does not answer.
    """
    settings = context.settings
    if settings.logprobs_url is None:
        yield None
        return
    async with httpx.AsyncClient(timeout=ANSWER_SECONDS) as client:
        server = LogprobServer(client, settings.logprobs_url, settings.logprobs_api_key)
        yield Attacher(context, server)
