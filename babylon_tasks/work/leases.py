"""Renews leases while work makes progress."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any, TypeVar

import msgspec

from babylon_tasks.errors import BabylonError, LeaseLost, ServerUnavailable, StaleClaim
from babylon_tasks.logs import bound, mark
from babylon_tasks.records.doing import Doing
from babylon_tasks.records.lineages import LineageState
from babylon_tasks.records.versions import Head
from babylon_tasks.store import attempts, heads, leases, lineages, training_batches
from babylon_tasks.store.attempts import Ending
from babylon_tasks.store.database import Connection
from babylon_tasks.store.leases import Claim, Lease
from babylon_tasks.text import one_line
from babylon_tasks.work import aio
from babylon_tasks.work.context import Context

log = logging.getLogger(__name__)
T = TypeVar("T")

_AGAIN_SECONDS = 0.25  # between tries to reach Postgres: who was away should come before others
_SAY_SECONDS = 60.0  # between two lines about the same outage
_TELL_SECONDS = 30.0  # between two lines about how far the work is
_GIVE_BACK_SECONDS = 600.0  # then the leases are left to run out


class LeaseKeeper:
    """Renews a set of leases, at most once a heartbeat, when `beat` is called.

    It has no thread: a worker that hangs no longer calls `beat`, so it loses the leases as a dead
    process does. The end of its `with` block gives back the leases that are still held, and ends
    their attempts. After a lost lease it does nothing: the next holder counts the attempt.

    An outage of Postgres is nobody's death. While it lasts nobody can take the leases, so the work
    goes on; when it is over they are renewed even if they ran out, unless others were faster. Then
    the attempts are taken back, and count against no window.
    """

    def __init__(
        self,
        context: Context,
        held: list[Lease],
        on_doing: Callable[[Doing], None] = lambda _: None,
    ) -> None:
        self._context, self._on_doing = context, on_doing
        self._settings = context.settings
        self.held = held
        self._tried_at = time.monotonic()
        self._doing: Doing | None = None
        self._say_at = self._tried_at + _TELL_SECONDS
        self._away = False  # Postgres did not answer since the leases were renewed
        self._was_away = False  # or at any time before
        self._waited_before = context.database.seconds_in_transactions

    @property
    def claim(self) -> Claim:
        """The claim under the one lease that is held."""
        (lease,) = self.held
        return self._context.claim(lease)

    @property
    def met_outage(self) -> bool:
        """Whether Postgres was away at any time: a lease lost then tells of no death."""
        return self._met_outage() or self._was_away

    def beat(self) -> None:
        """Renew if a heartbeat has passed since the last time; do without if Postgres is away.

        Raises:
            LeaseLost: A lease was lost.
        """
        self._log_now_and_then()
        now = time.monotonic()
        if now - self._tried_at < self._settings.heartbeat_seconds or not self.held:
            return
        try:
            with self._context.database.transaction() as tx:
                self._renew(tx)
        except ServerUnavailable as error:
            if not self._away:
                log.warning("cannot renew the lease yet: %s", error)
            self._away = self._was_away = True
        else:
            self._renewed()
        self._tried_at = time.monotonic()

    def tell(self, doing: Doing) -> None:
        """Say what is done with the leases, and how far it is; the next renewal writes it."""
        self._doing = doing = msgspec.structs.replace(doing, worker=self._context.worker)
        self._log_now_and_then()
        self._on_doing(doing)

    def tell_change(self, **changes: Any) -> None:
        """Say what has changed in `doing`."""
        self.tell(msgspec.structs.replace(self.doing, **changes))

    @property
    def doing(self) -> Doing:
        """What was said last."""
        assert self._doing is not None
        return self._doing

    def _log_now_and_then(self) -> None:
        if self._doing is not None and time.monotonic() >= self._say_at:
            self._say_at = time.monotonic() + _TELL_SECONDS
            log.info("%s: %s", self._doing.what(), self._doing.progress())

    async def beating(self, work: Coroutine[Any, Any, T]) -> T:
        """Await the work while the leases are renewed; cancel it if one is lost.

        No progress is checked, so the work must have a time limit for all that it waits for.

        Raises:
            LeaseLost: As `beat` does.
        """
        return await aio.with_ticks(work, self._settings.heartbeat_seconds / 2, self.beat)

    def until_written(self, what: str, write: Callable[[Connection], T]) -> T:
        """Run a transaction; repeat it while Postgres is away.

        If the connection is lost in COMMIT, nobody knows whether it was written, so `write` must be
        safe to run twice. `what` completes the sentence "cannot … yet" in the log. Errors of
        `write` other than ServerUnavailable are passed on.

        Raises:
            LeaseLost: The lease was lost meanwhile.
        """
        say_at, renews = 0.0, False
        while True:
            try:
                with self._context.database.transaction() as tx:
                    renews = self._met_outage()  # with the wait for this connection
                    if renews:
                        self._renew(tx)
                    done = write(tx)
            except ServerUnavailable as error:
                if time.monotonic() >= say_at:
                    log.warning("cannot %s yet: %s", what, error)
                    say_at = time.monotonic() + _SAY_SECONDS
                self._away = self._was_away = True
                time.sleep(_AGAIN_SECONDS)
            except (LeaseLost, StaleClaim):
                # The lease may have run out while the answer was on its way: renewed, it holds.
                if renews or not self._met_outage():
                    raise
            else:
                if renews:
                    self._renewed()
                return done

    def _renew(self, tx: Connection) -> None:
        leases.renew(
            tx,
            self.held,
            self._settings.lease_seconds,
            ran_out_too=self._met_outage(),
            doing=self._doing,
        )

    def _renewed(self) -> None:
        self._away = False
        self._waited_before = self._context.database.seconds_in_transactions

    def _met_outage(self) -> bool:
        """Tell whether Postgres was away since the leases were renewed.

        Over a network that was cut for a while nothing fails: an answer comes late.
        """
        waited = self._context.database.seconds_in_transactions - self._waited_before
        if waited >= self._settings.lease_seconds / 2:
            self._away = self._was_away = True
        return self._away

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
            if self._doing is not None:
                leases.renew(tx, [lease], self._settings.lease_seconds, doing=self._doing)
        self.held = [lease]
        self._tried_at = time.monotonic()
        self._renewed()
        return lease

    def finished(self, lease: Lease) -> None:
        """Forget a lease that a commit has already given back."""
        self.held = [held for held in self.held if held != lease]

    def __enter__(self) -> LeaseKeeper:
        self._fields = bound(lineage=self._context.lineage.name, token=self._token)
        self._fields.__enter__()
        return self

    def _token(self) -> int | None:
        """Return the token of the one lease that is held; of several, their work says it."""
        return self.held[0].token if len(self.held) == 1 else None

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if exc is not None:
            mark(exc)
        try:
            self._end(exc)
        finally:
            self._fields.__exit__(None, None, None)

    def _end(self, exc: BaseException | None) -> None:
        self._was_away = self._met_outage() or self._was_away or isinstance(exc, ServerUnavailable)
        if isinstance(exc, LeaseLost) and not self._was_away:
            return
        stopped = exc is not None and not isinstance(exc, Exception)
        try:
            self._give_back(_why(exc), 0.0 if stopped else _GIVE_BACK_SECONDS)
        except BaseException:
            # A signal to stop may interrupt this, but only once.
            self._give_back(_why(exc), 0.0)
            raise

    def _give_back(self, why: str | None, most_seconds: float) -> None:
        """End the open attempts and release the leases, as soon as Postgres is there."""
        if not self.held:
            return
        name, tokens = self._context.lineage.name, [lease.token for lease in self.held]
        ends_at = time.monotonic() + most_seconds
        while True:
            try:
                with self._context.database.transaction() as tx:
                    attempts.end(tx, name, tokens, Ending.GIVEN_BACK, why)
                    if self._was_away:
                        for batch_id in attempts.take_back(
                            tx, name, tokens, Ending.LOST, attempts.LIVES
                        ):
                            training_batches.reopen(tx, batch_id)
                    leases.release(tx, self.held)
                break
            except ServerUnavailable as error:
                if not self._was_away:
                    log.warning("cannot give the leases back yet: %s", error)
                self._was_away = True
                if time.monotonic() >= ends_at:
                    log.warning("the leases run out by themselves: %s", error)
                    break
                time.sleep(_AGAIN_SECONDS)
        self.held = []


def claim_lineage(tx: Connection, context: Context) -> tuple[Lease, Head] | None:
    """Lease the context's lineage and return its head; None if it is held, or is not active.

    A person who pauses it waits for this transaction, or this one for theirs: they share its row.
    """
    settings, lineage = context.settings, context.lineage
    lease = leases.acquire(tx, f"model/{lineage.name}", context.holder, settings.lease_seconds)
    if lease is None:
        return None
    heads.hold(tx, lineage.name)  # an exam may move it, and it comes before the lineage
    lineages.ensure(tx, settings, context.holder)
    (row,) = lineages.read(tx, [lineage.name])
    if row.state != LineageState.ACTIVE:
        leases.release(tx, [lease])
        return None
    return lease, heads.ensure(tx, lineage)


def _why(exc: BaseException | None) -> str | None:
    if exc is None or isinstance(exc, BabylonError):
        return one_line(str(exc), 2000) if exc else None
    if isinstance(exc, Exception):
        return one_line(f"{type(exc).__name__}: {exc}", 2000)
    return "the worker was stopped"
