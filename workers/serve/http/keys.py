"""The keys that the endpoint accepts: read from Postgres every few seconds, never for a request."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import ipaddress
import logging
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from pydantic import SecretStr

from babylon_tasks.errors import ServerUnavailable, UserError
from babylon_tasks.records.api_keys import SETTINGS_KEY, ApiKey, hash_of
from babylon_tasks.store import api_keys
from babylon_tasks.store.database import Database
from babylon_tasks.text import first_line
from workers.serve.backend import ApiError
from workers.serve.http.budgets import Budget, Use

log = logging.getLogger(__name__)

REFRESH_SECONDS = 3.0
_LAST_WRITE_SECONDS = 3.0  # at the end
_SAY_SECONDS = 60.0


class Keys:
    """Tells who asks, and counts what each key uses.

    Where there is no key at all, `loopback` lets everybody on this machine ask. A revoked key's row
    still counts: to revoke the last key opens no door. Until Postgres has answered once, only
    SERVE_API_KEY is known, and nobody is let in without.
    """

    def __init__(self, database: Database, settings_key: SecretStr | None, loopback: bool) -> None:
        self._database, self._loopback = database, loopback
        self._budgets: dict[str, Budget] = {}
        self._names: dict[bytes, str] = {}
        self._read = False  # whether Postgres has said what keys there are
        self._exist = False
        self._say_at = 0.0
        self._refreshing = asyncio.Lock()  # the connection is one
        self._settings_key: bytes | None = None
        if settings_key is not None:
            self._settings_key = hash_of(settings_key.get_secret_value().encode())
            self._budgets[SETTINGS_KEY] = Budget(ApiKey(SETTINGS_KEY, self._settings_key))

    def identify(
        self, authorization: bytes | None, host: bytes | None = None
    ) -> tuple[str | None, Budget | None]:
        """Return the name and the budget of the key in this header; None where none is needed.

        Raises:
            ApiError: The key is missing or wrong (401), the keys are not known yet (503), or the
                request has no key and came here by another machine's name (403).
        """
        scheme, _, given = (authorization or b"").strip().partition(b" ")
        if given and scheme.lower() == b"bearer":
            name = self._name_of(hash_of(given.strip()))
            if name is not None:
                return name, self._budgets[name]
        if self._settings_key is None and not self._read:
            raise ApiError(
                503,
                "Postgres does not answer yet: keys are not known",
                headers={"retry-after": "3"},
            )
        if self._loopback and not self._exist and self._settings_key is None:
            if host is not None and not is_loopback(_without_port(host)):
                # A page of the web can have its own name point to this machine.
                raise ApiError(403, "without a key, ask by http://127.0.0.1 or http://localhost")
            return None, None
        raise ApiError(
            401,
            "a key is needed, and it must be one of this server: Authorization: Bearer KEY",
            code="invalid_api_key",
            headers={"www-authenticate": "Bearer"},
        )

    def _name_of(self, given: bytes) -> str | None:
        # Hashes are compared, so how long it takes tells nothing about a key.
        if self._settings_key is not None and hmac.compare_digest(given, self._settings_key):
            return SETTINGS_KEY
        return self._names.get(given)

    def require_one(self, host: str) -> None:
        """Read the keys a first time, and refuse to listen to other machines without one.

        Raises:
            UserError: Others can reach this address, and there is no key; or this role may not
                read the keys.
        """
        try:
            self._take_over(self._exchange({}))
        except ServerUnavailable as error:
            self._say(error)
            return  # nobody is let in before it answers
        if not (self._loopback or self._settings_key or self._names):
            raise UserError(
                f"an endpoint on {host or 'every address'} needs a key: `babylon keys create "
                "NAME`, or SERVE_API_KEY (openssl rand -hex 24); or listen on 127.0.0.1"
            )

    @asynccontextmanager
    async def kept_fresh(self) -> AsyncIterator[None]:
        """Write what was used and read the keys, every few seconds and at the end."""
        task = asyncio.create_task(self._keep_fresh())
        try:
            yield
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._refresh(), _LAST_WRITE_SECONDS)

    async def _keep_fresh(self) -> None:
        while True:
            await asyncio.shield(self._refresh())
            await asyncio.sleep(REFRESH_SECONDS)

    async def _refresh(self) -> None:
        async with self._refreshing:
            await self._read_and_write()

    async def _read_and_write(self) -> None:
        used: dict[str, Use] = {}
        try:
            # First, and alone: a revoked key ends, whether or not anything can be written.
            self._take_over(await asyncio.to_thread(self._exchange, {}))
            for name in self._budgets.keys() - {SETTINGS_KEY}:
                if (use := self._budgets[name].take_use()) != Use():
                    used[name] = use
            if used:
                self._take_over(await asyncio.to_thread(self._exchange, used))
        except Exception as error:  # noqa: BLE001 - rounds go on: a key may be revoked later
            for name, use in used.items():
                self._budgets[name].give_back(use)
            self._say(error)

    def _exchange(self, used: Mapping[str, Use]) -> list[ApiKey]:
        with self._database.transaction() as tx:
            for name, use in sorted(used.items()):
                api_keys.add_use(tx, name, use.requests, use.tokens)
            return api_keys.read(tx)

    def _take_over(self, rows: list[ApiKey]) -> None:
        self._read, self._exist = True, bool(rows)
        active = {row.name: row for row in rows if row.revoked_at is None}
        for name, row in active.items():
            if name in self._budgets:
                self._budgets[name].renew(row)
            else:
                self._budgets[name] = Budget(row)
        # Budgets of revoked keys stay: their last answers still count.
        self._names = {row.key_hash: name for name, row in active.items()}

    def _say(self, error: Exception) -> None:
        now = time.monotonic()
        if now >= self._say_at:
            self._say_at = now + _SAY_SECONDS
            log.warning("keys are as they were: %s", first_line(error))


def _without_port(host: bytes) -> str:
    name = host.decode("latin-1")
    if name.startswith("["):
        return name[1:].partition("]")[0]
    return name.partition(":")[0]


def is_loopback(host: str) -> bool:
    """Tell whether only this machine can reach the address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
