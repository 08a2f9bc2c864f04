"""Attaches log-probabilities to the recorded calls of a window, before it counts as scored.

Nothing here holds a window up for long: where the server is away or refuses, it goes on without.
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

log = logging.getLogger(__name__)

_AT_ONCE = 8  # calls asked about at the same time
_TOGETHER = 64  # calls whose answers are stored in one transaction
_IN_A_ROW = 8  # calls without an answer, one after the other: the server is away
_WINDOW_SECONDS = 600.0  # what is not asked about by then goes without
# Of one claim, which a judge may have kept for long: workers end their task after 1800.
_BEGIN_SECONDS = 900.0  # then no other window is begun where they come one after another
_CLAIM_SECONDS = 1500.0  # then all that is left goes without
_TOO_LATE = "it took too long"
_HELD_BYTES = 64_000_000  # texts in memory; the traces are read again for what is beyond


class Attacher:
    """Asks for the windows of one claim, `_AT_ONCE` calls at a time for all of them."""

    def __init__(self, context: Context, server: LogprobServer) -> None:
        self._worker, self._server = context, server
        self._name = context.settings.model_name
        self._slots = asyncio.Semaphore(_AT_ONCE)
        self._made_at = time.monotonic()
        with context.database.transaction() as tx:
            self._versions = Versions(self._name, steps.steps_of_versions(tx, self._name))
        self._absent: set[str] = set()  # names that the server does not have
        self._failed = 0  # in a row
        self._away = False
        self._why = ""  # the last call got no answer

    def has_time(self) -> bool:
        """Tell whether another window may be begun; else it is left to the next claim."""
        return time.monotonic() < self._made_at + _BEGIN_SECONDS

    async def attach(
        self,
        reader: TraceReader,
        reading: asyncio.Lock,
        window_id: str,
        trajectory_ids: Collection[str],
        on_row: Callable[[], None],
    ) -> int:
        """Ask about every call that has none, recorded or stored; return how many stay without.

        `on_row` is called with each trace that is read. Running it again asks about those only.
        """
        # As the loop's clock has it.
        ends_at = min(time.monotonic() + _WINDOW_SECONDS, self._made_at + _CLAIM_SECONDS)
        with self._worker.database.transaction() as tx:
            done = logprobs.asked(tx, self._name, window_id)
        asked = without = 0
        more = True
        while more:
            async with reading:
                pending, more = await self._pending(reader, window_id, trajectory_ids, done, on_row)
            asked += len(pending)
            each = iter(pending.items())
            while together := list(islice(each, _TOGETHER)):
                found = await all_done(self._ask(one, call, ends_at) for one, call in together)
                good = [(one, got) for (one, _), got in zip(together, found, strict=True) if got]
                with self._worker.database.transaction() as tx:
                    logprobs.add(tx, self._name, window_id, good)
                without += len(together) - len(good)
            done |= pending.keys()
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
                    found = await self._server.ask(asked.asked_of, call)
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
            return found

    def _name_of(self, version: str | None) -> str | None:
        """Return the server's name for the model that answered; None where nobody can tell."""
        step = self._versions.step_of(version)
        return self._worker.settings.logprobs_model if step is None else f"{self._name}@{step}"

    async def _pending(
        self,
        reader: TraceReader,
        window_id: str,
        trajectory_ids: Collection[str],
        done: set[Asked],
        on_row: Callable[[], None],
    ) -> tuple[dict[Asked, Call], bool]:
        """Return calls to ask about, and whether there are more than may be held at once."""
        pending: dict[Asked, Call] = {}
        held = 0
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
                    continue  # rewritten since it was scored, which training will notice
                for call, version in zip(trace.calls, trace.versions, strict=True):
                    name = self._name_of(version)
                    if call.logprobs or name is None:
                        continue
                    asked = Asked(raw.trajectory_id, hash_of(call), name)
                    if asked not in done:
                        pending[asked] = call
                        held += len(call.system) + len(call.user) + len(call.response)
        return pending, False


@asynccontextmanager
async def attaching(context: Context) -> AsyncIterator[Attacher | None]:
    """For one claim; None without LOGPROBS_URL."""
    settings = context.settings
    if settings.logprobs_url is None:
        yield None
        return
    async with httpx.AsyncClient(timeout=ANSWER_SECONDS) as client:
        server = LogprobServer(client, settings.logprobs_url, settings.logprobs_api_key)
        yield Attacher(context, server)
