"""Renews leases while work makes progress."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any, TypeVar

from babylon_tasks.errors import BabylonError, LeaseLost, ServerUnavailable
from babylon_tasks.store import attempts, leases
from babylon_tasks.store.attempts import Ending
from babylon_tasks.store.database import Connection
from babylon_tasks.store.leases import Claim, Lease
from babylon_tasks.text import one_line
from babylon_tasks.work import aio
from babylon_tasks.work.context import Context

log = logging.getLogger(__name__)
T = TypeVar("T")

_AGAIN_SECONDS = 1.0


class LeaseKeeper:
    """Renews a set of leases, at most once a heartbeat, when `beat` is called.

    It has no thread: a worker that hangs no longer calls `beat`, so it loses the leases as a dead
    process does. The end of its `with` block gives back the leases that are still held, and ends
    their attempts. After a lost lease it does nothing: the next holder counts the attempt.
    """

    def __init__(self, context: Context, held: list[Lease]) -> None:
        self._context = context
        self._settings = context.settings
        self.held = held
        self._renewed_at = time.monotonic()

    @property
    def claim(self) -> Claim:
        """The claim under the one lease that is held."""
        (lease,) = self.held
        return self._context.claim(lease)

    def beat(self) -> None:
        """Renew if a heartbeat has passed since the last time.

        Raises:
            LeaseLost: A lease was lost, or Postgres has been away longer than LEASE_SECONDS.
        """
        age = time.monotonic() - self._renewed_at
        if age < self._settings.heartbeat_seconds or not self.held:
            return
        try:
            with self._context.database.transaction() as tx:
                leases.renew(tx, self.held, self._settings.lease_seconds)
        except ServerUnavailable as error:
            if age > self._settings.lease_seconds:
                raise LeaseLost(f"could not renew the lease: {error}") from error
            return
        self._renewed_at = time.monotonic()

    async def beating(self, work: Coroutine[Any, Any, T]) -> T:
        """Await the work while the leases are renewed; cancel it if one is lost.

        No progress is checked, so the work must have a time limit for all that it waits for.

        Raises:
            LeaseLost: As `beat` does.
        """
        return await aio.with_ticks(work, self._settings.heartbeat_seconds / 2, self.beat)

    def until_written(self, what: str, write: Callable[[Connection], T]) -> T:
        """Run a transaction; repeat it while Postgres is away and the lease is alive.

        If the connection is lost in COMMIT, nobody knows whether it was written, so `write` must be
        safe to run twice. `what` completes the sentence "cannot … yet" in the log. Errors of
        `write` other than ServerUnavailable are passed on.

        Raises:
            LeaseLost: Postgres has been away longer than LEASE_SECONDS.
        """
        while True:
            try:
                with self._context.database.transaction() as tx:
                    return write(tx)
            except ServerUnavailable as error:
                log.warning("cannot %s yet: %s", what, error)
                time.sleep(_AGAIN_SECONDS)
                self.beat()

    def renew_token(self, begin: Callable[[Connection, int], None]) -> Lease:
        """Take a new token for the one lease held; `begin` writes in the same transaction.

        Raises:
            LeaseLost: The lease ran out or has another holder.
            ServerUnavailable: Postgres does not answer.
        """
        (lease,) = self.held
        with self._context.database.transaction() as tx:
            lease = leases.next_token(tx, lease, self._settings.lease_seconds)
            begin(tx, lease.token)
        self.held = [lease]
        self._renewed_at = time.monotonic()
        return lease

    def finished(self, lease: Lease) -> None:
        """Forget a lease that a commit has already given back."""
        self.held = [held for held in self.held if held != lease]

    def __enter__(self) -> LeaseKeeper:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if isinstance(exc, LeaseLost):
            return
        try:
            self._give_back(_why(exc))
        except BaseException:
            # A signal to stop may interrupt this, but only once.
            self._give_back(_why(exc))
            raise

    def _give_back(self, why: str | None) -> None:
        if not self.held:
            return
        tokens = [lease.token for lease in self.held]
        try:
            with self._context.database.transaction() as tx:
                attempts.end(tx, self._context.lineage.name, tokens, Ending.GIVEN_BACK, why)
                leases.release(tx, self.held)
        except ServerUnavailable as error:
            log.warning("the leases run out by themselves: %s", error)
        self.held = []


def _why(exc: BaseException | None) -> str | None:
    if exc is None or isinstance(exc, BabylonError):
        return one_line(str(exc), 2000) if exc else None
    if isinstance(exc, Exception):
        return one_line(f"{type(exc).__name__}: {exc}", 2000)
    return "the worker was stopped"
