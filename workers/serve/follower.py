"""Follows the rows: reads Postgres every second, and moves a name once its version is loaded."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta

from babylon_tasks.errors import BabylonError
from babylon_tasks.records.shares import Share
from babylon_tasks.records.windows import window_id_at
from babylon_tasks.text import first_line
from workers.serve.backend import ApiError, Backend, CannotServe, Version
from workers.serve.directory import Directory, Entry
from workers.serve.loader import Loader

log = logging.getLogger(__name__)

_LOOK_SECONDS = 1.0
_ALL_SECONDS = 2.0  # that a name waits for slower backends, once one has its version
_SAY_SECONDS = 60.0
_SHARE_EARLY = timedelta(seconds=60)  # before it begins, its version is loaded

Read = Callable[[Directory], Directory]  # makes the next directory from the one before


class Follower:
    """What the names stand for, as far as backends have it loaded.

    `rows` is what Postgres said last, `directory` what is answered: a name goes on with the version
    that it had until the new one is loaded and proven.

    Args:
        read: Reads Postgres; it is called in a thread, one call at a time.
        loader: Loads the versions.
        own: The lineage that is loaded before anybody asks for it; others, once they are asked.
        slots: As the loader's; one is left for a version that is asked by its number.
    """

    def __init__(self, read: Read, loader: Loader, own: str, slots: int) -> None:
        self._read, self._loader, self._slots = read, loader, slots
        self.own, self.began_at = own, time.monotonic()
        self.rows = self.directory = Directory()
        self.read_at: float | None = None  # monotonic
        self.away: str | None = None  # why Postgres cannot be read now
        self.moves = 0
        self._say_at = 0.0
        self._asked_at: dict[str, float] = {own: 0.0}
        self._first_at: dict[Version, float] = {}  # when a name's next version was first loaded
        self._answered: dict[str, Version] = {}  # the last loaded version of each name
        self._without_share: dict[str, str] = {}  # the window in which a lineage's share failed
        # Its own thread: others may keep those of the loop busy.
        self._reading = ThreadPoolExecutor(1, thread_name_prefix="rows")
        self._loads: set[asyncio.Task[None]] = set()
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Look once, then go on looking until `close`."""
        await self._loader.look()
        await self.follow()
        self._tasks = [
            asyncio.create_task(self._forever(self._loader.look)),
            asyncio.create_task(self._forever(self.follow)),
        ]

    def resolve(self, model: str, agent: str | None) -> Version:
        """Return the version that a name stands for.

        Raises:
            ApiError: There is none, or Postgres was never read.
        """
        if self.read_at is None:
            raise ApiError(
                503, "the endpoint has not read its database yet", headers={"retry-after": "1"}
            )
        version = self.directory.find(model, agent)
        self._asked_at[version.lineage] = time.monotonic()
        return version

    async def _forever(self, look: Callable[[], Coroutine[None, None, None]]) -> None:
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            try:
                await look()
            except Exception:
                log.exception("the endpoint goes on with what it has")

    async def follow(self) -> None:
        """Read Postgres once, and move the names whose versions are loaded."""
        await self._read_rows()
        self._move_names()

    async def _read_rows(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            self.rows = await loop.run_in_executor(self._reading, self._read, self.rows)
        except Exception as error:  # noqa: BLE001 - whatever it is, the names stay as they were
            self.away = str(error) if isinstance(error, BabylonError) else first_line(error)
            if time.monotonic() >= self._say_at:
                self._say_at = time.monotonic() + _SAY_SECONDS
                log.warning("the names stay as they were: %s", self.away)
            return
        if self.away:
            log.info("Postgres answers again")
        self.read_at, self.away, self._say_at = time.monotonic(), None, 0.0

    def _move_names(self) -> None:
        """Let each name stand for what the rows say, if that is loaded; have the rest loaded."""
        early = self._loaded_early()
        entries = {}
        for name, entry in self.rows.entries.items():
            now = self.directory.entries.get(name)
            promoted = self._promoted(entry, now, early)
            if now and now.promoted != promoted:
                self.moves += 1
                was = now.promoted.full_name
                log.info("%s is %s now, and was %s", name, promoted.full_name, was)
            entries[name] = replace(entry, promoted=promoted, shares=self._shares(entry))
            if self._is_loaded(promoted):
                self._answered[name] = promoted
        self.directory = replace(self.rows, entries=entries)
        self._forget_waits(entries)
        self._loader.wanted = {*early, *(entry.promoted for entry in entries.values())}
        of_early = {version.lineage for version in early}
        self._loader.kept = {
            *early, *(entries[name].promoted for name in of_early if name in entries)
        }  # fmt: skip
        for version in early:
            for backend in self._loader.lacking(version):
                self._load(backend, version)

    def _promoted(self, entry: Entry, now: Entry | None, early: list[Version]) -> Version:
        """Return what a lineage's name stands for now.

        One that nobody asked for long moves at once, and who asks has its version loaded.
        """
        promoted, before = entry.promoted, self._answered.get(entry.name)
        broken = self._loader.failed(self._loader.of(promoted), promoted)
        if broken and before:
            return before  # the last one that answered goes on
        if now is None or now.promoted == promoted or promoted not in early:
            return promoted
        return promoted if self._may_move(promoted) else now.promoted

    def _loaded_early(self) -> list[Version]:
        """Return the versions to load before they are asked for, as many as slots allow."""
        others = sorted(self._asked_at, key=lambda name: self._asked_at[name], reverse=True)
        names = dict.fromkeys([self.own, *others])  # without its own it is not ready
        entries = [self.rows.entries[name] for name in names if name in self.rows.entries]
        soon = self.rows.now() + _SHARE_EARLY
        versions = []
        for entry in entries:
            shared = (entry.shared(self.rows.now()), entry.shared(soon))
            versions += [entry.promoted, *(each[0] for each in shared if each)]
        versions = list(dict.fromkeys(versions))
        bases = [version for version in versions if not version.step]
        return bases + [version for version in versions if version.step][: self._slots - 1]

    def _may_move(self, version: Version) -> bool:
        """Tell whether a version is loaded wherever it will be, or somewhere for long enough."""
        if not self._is_loaded(version):
            return False
        lacking = self._loader.lacking(version)
        first_at = self._first_at.setdefault(version, time.monotonic())
        waited = time.monotonic() - first_at
        return not lacking or waited >= _ALL_SECONDS or self._loader.failed(lacking, version)

    def _is_loaded(self, version: Version) -> bool:
        return any(self._loader.has(backend, version) for backend in self._loader.of(version))

    def _forget_waits(self, entries: Mapping[str, Entry]) -> None:
        waiting = {entry.promoted for entry in self.rows.entries.values()}
        self._first_at = {
            version: first_at
            for version, first_at in self._first_at.items()
            if version in waiting and entries[version.lineage].promoted != version
        }

    def _shares(self, entry: Entry) -> tuple[Share, ...]:
        """Return the shares; none for the rest of a window in which one cannot be loaded.

        Its agents have the promoted version then, and do not change back within the window.
        """
        now = self.rows.now()
        shared = entry.shared(now)
        if shared and self._loader.failed(self._loader.of(shared[0]), shared[0]):
            self._without_share[entry.name] = window_id_at(now)
        return () if self._without_share.get(entry.name) == window_id_at(now) else entry.shares

    def _load(self, backend: Backend, version: Version) -> None:
        async def load() -> None:
            # The loader says what failed, and does not try again at once.
            with contextlib.suppress(CannotServe, ApiError):
                await self._loader.load(backend, version)
                self._move_names()

        task = asyncio.create_task(load())
        self._loads.add(task)
        task.add_done_callback(self._loads.discard)

    async def close(self) -> None:
        """Stop looking."""
        for task in (*self._tasks, *self._loads):
            task.cancel()
        await asyncio.gather(*self._tasks, *self._loads, return_exceptions=True)
        self._reading.shutdown(wait=False, cancel_futures=True)
