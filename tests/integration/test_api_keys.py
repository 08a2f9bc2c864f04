"""Keys of the endpoint on a real Postgres: counted over restarts, revoked, and in an outage."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from babylon_tasks.records.api_keys import ApiKey, hash_of
from babylon_tasks.store import api_keys
from babylon_tasks.store.database import Database
from babylon_tasks.work.context import Context
from tests.rows import query
from workers.serve.backend import ApiError
from workers.serve.http.keys import Keys

KEY = b"bk-of-the-app"
BEARER = b"Bearer " + KEY


def create(context: Context, **limits: int) -> None:
    row = ApiKey("app", hash_of(KEY), created_by="me", **limits)  # type: ignore[arg-type]
    with context.database.transaction() as tx:
        assert api_keys.create(tx, row)
        assert not api_keys.create(tx, row)


def keys_of(context: Context) -> Keys:
    keys = Keys(Database(context.settings.postgres(), 3.0), None, loopback=True)
    keys.require_one("127.0.0.1")
    return keys


async def spend(keys: Keys, tokens: int) -> None:
    async with keys.kept_fresh():
        name, budget = keys.identify(BEARER)
        assert name == "app"
        assert budget is not None
        budget.take_request()
        budget.spend(tokens)


def test_what_is_used_is_counted_over_restarts_and_endpoints(context: Context) -> None:
    create(context, tokens_per_day=100)
    first, second = keys_of(context), keys_of(context)
    asyncio.run(spend(first, 60))
    asyncio.run(spend(second, 40))
    with pytest.raises(ApiError) as refused:
        asyncio.run(spend(keys_of(context), 1))
    assert (refused.value.status, refused.value.code) == (429, "insufficient_quota")
    with context.database.transaction() as tx:
        (row,) = api_keys.read(tx)
    assert (row.requests_today, row.tokens_today, row.created_by) == (2, 100, "me")
    assert row.key_hash == hash_of(KEY)

    query(context, "UPDATE rl.api_key_usage SET day = day - 1 RETURNING 1")  # a day later
    asyncio.run(spend(keys_of(context), 1))


def test_a_revoked_key_is_refused_and_stays_revoked(context: Context) -> None:
    create(context)
    with context.database.transaction() as tx:
        assert api_keys.revoke(tx, "app")
        assert not api_keys.revoke(tx, "other")
        (before,) = api_keys.read(tx)
        assert api_keys.revoke(tx, "app")
        assert api_keys.read(tx) == [before]
    for given in (BEARER, None):
        with pytest.raises(ApiError) as refused:
            keys_of(context).identify(given)
        assert refused.value.status == 401


def test_without_a_key_this_machine_is_let_in(context: Context) -> None:
    assert keys_of(context).identify(None) == (None, None)


def test_what_is_used_while_postgres_is_away_is_written_later(context: Context) -> None:
    create(context)
    keys = keys_of(context)
    url = context.settings.postgres()

    async def in_an_outage() -> None:
        async with keys.kept_fresh():
            keys._database.close()
            keys._database.url = "postgresql://nobody@127.0.0.1:1/none"
            _, budget = keys.identify(BEARER)
            assert budget is not None
            budget.take_request()
            budget.spend(7)
            await keys._refresh()
            assert keys.identify(BEARER)[0] == "app"
            keys._database.url = url

    asyncio.run(in_an_outage())
    with context.database.transaction() as tx:
        assert api_keys.read(tx)[0].tokens_today == 7


def test_a_key_that_was_deleted_keeps_no_other_alive(context: Context) -> None:
    """An operator deletes the row of a key whose use is not written yet, and revokes another."""
    create(context)
    other = ApiKey("other", hash_of(b"bk-other"), created_by="me")
    with context.database.transaction() as tx:
        api_keys.create(tx, other)
    keys = keys_of(context)

    async def refresh() -> None:
        for given in (BEARER, b"Bearer bk-other"):
            _, budget = keys.identify(given)
            assert budget is not None
            budget.spend(7)
        query(context, "DELETE FROM rl.api_keys WHERE name = 'app' RETURNING 1")
        with context.database.transaction() as tx:
            api_keys.revoke(tx, "other")
        await keys._refresh()

    asyncio.run(refresh())
    for given in (BEARER, b"Bearer bk-other"):
        with pytest.raises(ApiError):
            keys.identify(given)
    with context.database.transaction() as tx:
        assert [(row.name, row.tokens_today) for row in api_keys.read(tx)] == [("other", 7)]


def test_a_revoked_key_ends_where_nothing_can_be_written(context: Context) -> None:
    create(context)
    keys = keys_of(context)

    async def refresh() -> None:
        _, budget = keys.identify(BEARER)
        assert budget is not None
        budget.spend(7)
        with context.database.transaction() as tx:
            api_keys.revoke(tx, "app")
            tx.execute("ALTER TABLE rl.api_key_usage ADD CHECK (tokens < 0)")  # none of our errors
        async with keys.kept_fresh():
            while keys._names:
                await asyncio.sleep(0.01)

    asyncio.run(asyncio.wait_for(refresh(), 20))
    with pytest.raises(ApiError):
        keys.identify(BEARER)


def test_whatever_goes_wrong_keys_are_read_again(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    create(context)
    keys, times = keys_of(context), 0
    monkeypatch.setattr("workers.serve.http.keys.REFRESH_SECONDS", 0.01)
    exchange = keys._exchange

    def fail_once(used: Any) -> list[ApiKey]:
        nonlocal times
        times += 1
        if times == 1:
            raise RuntimeError("what nobody thought of")
        return exchange(used)

    monkeypatch.setattr(keys, "_exchange", fail_once)
    with context.database.transaction() as tx:
        api_keys.revoke(tx, "app")

    async def seen() -> None:
        async with keys.kept_fresh():
            while keys._names:
                await asyncio.sleep(0.01)

    asyncio.run(asyncio.wait_for(seen(), 10))
