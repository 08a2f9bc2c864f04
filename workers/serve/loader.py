"""Keeps versions loaded on the backends: few at a time, and none taken away under a request."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from workers.serve.backend import ApiError, Backend, BackendAway, CannotServe, Question, Version

log = logging.getLogger(__name__)

_LOAD_SECONDS = 120.0  # that a request waits for a version that is not loaded yet
_WAIT_SECONDS = 0.05
_ROOM_SECONDS = 2.0  # that a lineage's name waits for a slot that requests use
_LONGEST_PAUSE_SECONDS = 10.0  # after a failure; the first is 1 s, each other twice as long

_Pair = tuple[Backend, Version]


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a version is not loaded on a backend, and when that is tried again (monotonic).

    `broken`: it cannot be. Otherwise the backend is away, or has no slot for it.
    """

    reason: str
    broken: bool
    since: float
    pause_seconds: float
    retry_at: float


class Loader:
    """The backends, what each has loaded, and what requests hold.

    `slots` bounds the adapters that a backend has at once; the base model needs none.
    """

    def __init__(self, backends: Sequence[Backend], slots: int) -> None:
        self.backends = list(backends)
        self._slots = slots
        now = time.monotonic()
        self.away_since: dict[Backend, float] = dict.fromkeys(backends, now)  # of those not alive
        self._told: dict[Backend, str | None] = {}  # what the log has: why one is away
        self._held: Counter[_Pair] = Counter()
        self._used_at: dict[_Pair, float] = {}
        self._loading: dict[_Pair, asyncio.Task[None]] = {}
        self._making_room = {backend: asyncio.Lock() for backend in backends}
        self._going: set[_Pair] = set()  # being unloaded
        self._reserved: set[_Pair] = set()  # slots of adapters that are being loaded
        self.failures: dict[_Pair, Failure] = {}
        self.wanted: set[Version] = set()  # what the names stand for: these go last
        self.kept: set[Version] = set()  # of these, what others may not push out

    # --- what is there ---

    async def look(self) -> None:
        """Look at every backend at once."""
        alive = await asyncio.gather(*(backend.look() for backend in self.backends))
        for backend, lives in zip(self.backends, alive, strict=True):
            if lives:
                self.away_since.pop(backend, None)
            else:
                self.away_since.setdefault(backend, time.monotonic())
            self._tell(backend, None if lives else backend.why_away)

    def _tell(self, backend: Backend, why_away: str | None) -> None:
        """Log what has changed since the last look."""
        if backend in self._told and self._told[backend] == why_away:
            return
        self._told[backend] = why_away
        if why_away is None:
            log.info("%s answers", backend.name)
        else:
            log.warning("%s does not answer as it should: %s", backend.name, why_away)

    def alive(self, backend: Backend) -> bool:
        """Tell whether the backend lived at the last look."""
        return backend not in self.away_since

    def of(self, version: Version) -> list[Backend]:
        """Return the backends whose sort of version this is."""
        return [backend for backend in self.backends if backend.serves(version)]

    def others(self, version: Version, tried: Collection[Backend]) -> bool:
        """Tell whether a backend that is alive was not tried yet."""
        return any(self.alive(each) and each not in tried for each in self.of(version))

    def has(self, backend: Backend, version: Version) -> bool:
        """Tell whether a backend can answer as this version by now."""
        return version in backend.loaded() and (backend, version) not in self._going

    def lacking(self, version: Version) -> list[Backend]:
        """Return the backends that are alive and do not have a version of theirs."""
        return [b for b in self.of(version) if self.alive(b) and not self.has(b, version)]

    def failed(self, backends: Collection[Backend], version: Version) -> bool:
        """Tell whether a version cannot be loaded on any of these backends."""
        failures = [self.failures.get((each, version)) for each in backends]
        return bool(failures) and all(each is not None and each.broken for each in failures)

    # --- for a request ---

    async def backend_for(
        self, version: Version, question: Question, tried: Collection[Backend]
    ) -> Backend:
        """Return the least busy backend that can answer; load the version where none has it.

        Raises:
            ApiError: No backend can answer this, or not now.
        """
        able = [each for each in self.of(version) if each not in tried]
        if not able:
            where = (
                "at W&B: set WANDB_API_KEY"
                if version.inference_name
                else "not there: set VLLM_URLS"
            )
            raise ApiError(
                503, f"no backend here can answer {version.name}; its weights are {where}"
            )
        able[0].check(question)  # backends of one sort can do the same
        living = [each for each in able if self.alive(each)] or able
        try:
            async with asyncio.timeout(_LOAD_SECONDS):
                # It may be unloaded again before this request holds it.
                while not (ready := [each for each in living if self.has(each, version)]):
                    await self._load_on_one_of(living, version)
        except TimeoutError:
            raise BackendAway(f"{version.name} is still being loaded") from None
        return min(ready, key=self._busy)

    async def _load_on_one_of(self, backends: Sequence[Backend], version: Version) -> None:
        """Load a version on the least busy backend; where that fails, on the next.

        Raises:
            ApiError: It fails on all of them; the error is that of the last.
        """
        failed: CannotServe | ApiError | None = None
        for backend in sorted(backends, key=self._busy):
            try:
                return await self.load(backend, version)
            except (CannotServe, ApiError) as error:
                failed = error
        if isinstance(failed, CannotServe):
            raise ApiError(503, f"{version.name} cannot be served: {failed}") from failed
        assert failed is not None
        raise failed

    def hold(self, backend: Backend, version: Version) -> Callable[[], None]:
        """Keep a version on a backend until what this returns is called."""
        pair = backend, version
        self._held[pair] += 1
        self._used_at[pair] = time.monotonic()

        def release() -> None:
            self._held[pair] -= 1
            if not self._held[pair]:
                del self._held[pair]

        return release

    def _busy(self, backend: Backend) -> int:
        return sum(count for (each, _), count in self._held.items() if each is backend)

    # --- loading ---

    async def load(self, backend: Backend, version: Version) -> None:
        """Load a version on a backend, once for all who wait for it.

        Raises:
            CannotServe: It failed, now or a short while ago.
            BackendAway: The backend does not answer.
            ApiError: All slots are in use by requests.
        """
        if self.has(backend, version):
            return
        pair = backend, version
        failed = self.failures.get(pair)
        if failed and time.monotonic() < failed.retry_at:
            raise CannotServe(failed.reason) if failed.broken else BackendAway(failed.reason)
        task = self._loading.get(pair)
        if task is None:
            task = self._loading[pair] = asyncio.create_task(self._load(pair))
            task.add_done_callback(lambda _: self._loading.pop(pair, None))
        await asyncio.shield(task)

    async def _load(self, pair: _Pair) -> None:
        backend, version = pair
        try:
            if version.step:
                await self._wait_for_room(pair)
            await backend.load(version)
        except (CannotServe, ApiError) as error:
            # That a slot is missing, or a server away, says nothing about a version that is loaded
            # only for who asks: the next who asks need not wait for a pause to end.
            if isinstance(error, CannotServe) or version in self.kept:
                self._note_failure(pair, error)
            raise
        finally:
            self._reserved.discard(pair)
        self.failures.pop(pair, None)
        self._used_at[pair] = time.monotonic()
        log.info("%s has %s", backend.name, version.full_name)

    def _note_failure(self, pair: _Pair, error: CannotServe | ApiError) -> None:
        before, reason = self.failures.get(pair), str(error)
        pause = min(2 * before.pause_seconds, _LONGEST_PAUSE_SECONDS) if before else 1.0
        now = time.monotonic()
        since = before.since if before else now
        broken = isinstance(error, CannotServe)
        self.failures[pair] = Failure(reason, broken, since, pause, now + pause)
        if before is None or before.reason != reason:
            log.error("%s cannot serve %s: %s", pair[0].name, pair[1].name, reason)

    async def _wait_for_room(self, pair: _Pair) -> None:
        """Reserve a slot; what a lineage's name stands for waits for one a short while.

        Raises:
            ApiError: Requests use all of them.
        """
        ends_at = time.monotonic() + _ROOM_SECONDS
        while True:
            try:
                async with self._making_room[pair[0]]:
                    return await self._make_room(pair)
            except ApiError:
                if pair[1] not in self.wanted or time.monotonic() >= ends_at:
                    raise
            await asyncio.sleep(_WAIT_SECONDS)

    async def _make_room(self, pair: _Pair) -> None:
        """Unload what was not used for longest until there is a slot; then reserve it.

        What is kept is not unloaded for another version. For itself it takes a slot even from
        requests: another version gets no new ones, and goes when those have ended.

        Raises:
            ApiError: Requests use all of them.
        """
        backend, version = pair
        while True:
            adapters = [each for each in backend.loaded() if each.step]
            coming = [each for each in self._reserved if each[0] is backend]
            if len(adapters) + len(coming) < self._slots:
                self._reserved.add(pair)
                return
            may_go = [each for each in adapters if each not in self.kept]
            free = [each for each in may_go if not self._held[backend, each]]
            if free:
                await self._unload(backend, min(free, key=lambda each: self._worth(backend, each)))
            elif coming:  # it may be free as soon as it is there
                await asyncio.sleep(_WAIT_SECONDS)
            elif may_go and version in self.kept:
                busy = min(may_go, key=lambda each: self._worth(backend, each))
                await self._unload(backend, busy)
            else:
                raise ApiError(
                    503,
                    f"requests use all {self._slots} adapters of {backend.name}: raise "
                    "SERVE_ADAPTERS, or ask for fewer versions at once",
                    headers={"retry-after": "5"},
                )

    def _worth(self, backend: Backend, version: Version) -> tuple[bool, float]:
        return version in self.wanted, self._used_at.get((backend, version), 0.0)

    async def _unload(self, backend: Backend, version: Version) -> None:
        pair = backend, version
        self._going.add(pair)  # from here on no request takes it
        try:
            while self._held[pair]:
                await asyncio.sleep(_WAIT_SECONDS)
            await backend.unload(version)
        finally:
            self._going.discard(pair)
        self._used_at.pop(pair, None)
        log.info("%s forgets %s", backend.name, version.full_name)

    async def close(self) -> None:
        """End what is being loaded, and close the backends."""
        for task in list(self._loading.values()):
            task.cancel()
        await asyncio.gather(*self._loading.values(), return_exceptions=True)
        for backend in self.backends:
            await backend.close()
