"""Keeps leases alive while work makes progress."""

from __future__ import annotations

import time

from babylon_tasks.errors import LeaseLost, ServerUnavailable
from babylon_tasks.settings import Settings
from babylon_tasks.store import leases
from babylon_tasks.store.database import Database
from babylon_tasks.store.leases import Lease


class Keeper:
    """Renews a set of leases, at most once a heartbeat, when `beat` is called.

    There is no thread behind it: whoever stops calling, because the work hangs, loses the leases
    as a dead process would.
    """

    def __init__(self, database: Database, settings: Settings, held: list[Lease]) -> None:
        self._database = database
        self._settings = settings
        self.held = held
        self._renewed_at = time.monotonic()

    def beat(self) -> None:
        """Renew if a heartbeat has passed since the last time.

        Raises:
            LeaseLost: A lease went, or Postgres has been away for as long as a lease lives.
        """
        age = time.monotonic() - self._renewed_at
        if age < self._settings.heartbeat_seconds or not self.held:
            return
        try:
            with self._database.transaction() as tx:
                leases.renew(tx, self.held, self._settings.lease_seconds)
        except ServerUnavailable as error:
            if age > self._settings.lease_seconds:
                raise LeaseLost(f"could not renew the lease: {error}") from error
            return
        self._renewed_at = time.monotonic()

    def renew_token(self) -> Lease:
        """A fresh token for the one lease held.

        Raises:
            LeaseLost: It ran out or has another holder.
        """
        (lease,) = self.held
        with self._database.transaction() as tx:
            lease = leases.next_token(tx, lease, self._settings.lease_seconds)
        self.held = [lease]
        self._renewed_at = time.monotonic()
        return lease

    def release(self) -> None:
        """Give everything back; unreachable servers let the leases run out by themselves."""
        if self.held:
            try:
                with self._database.transaction() as tx:
                    leases.release(tx, self.held)
            except ServerUnavailable:
                pass
            self.held = []
