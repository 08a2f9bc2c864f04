"""Reads and writes `rl.api_keys` and `rl.api_key_usage`."""

from __future__ import annotations

from psycopg.rows import class_row

from babylon_tasks.records.api_keys import ApiKey
from babylon_tasks.store.database import Connection
from babylon_tasks.store.queries import load

_SQL = load("api_keys")


def create(connection: Connection, key: ApiKey) -> bool:
    """Write a new key's row; False if the name was ever taken."""
    return (
        connection.execute(
            _SQL["create_api_key"],
            {
                "name": key.name,
                "key_hash": key.key_hash,
                "requests_per_minute": key.requests_per_minute,
                "tokens_per_day": key.tokens_per_day,
                "created_by": key.created_by,
            },
        ).rowcount
        == 1
    )


def read(connection: Connection) -> list[ApiKey]:
    """Return all keys by name, revoked ones too, with their use of today."""
    with connection.cursor(row_factory=class_row(ApiKey)) as cursor:
        return cursor.execute(_SQL["read_api_keys"]).fetchall()


def revoke(connection: Connection, name: str) -> bool:
    """Revoke a key, again as well; False if there is none of that name."""
    return connection.execute(_SQL["revoke_api_key"], {"name": name}).rowcount == 1


def add_use(connection: Connection, name: str, requests: int, tokens: int) -> None:
    """Add to what a key has used today, by the database's clock; nothing if its row is gone."""
    connection.execute(
        _SQL["add_api_key_use"], {"name": name, "requests": requests, "tokens": tokens}
    )
