"""The database's own id, and the prefix that it gives to the broker's keys in Redis.

So deployments that share a Redis by mistake cannot take each other's messages.
"""

from __future__ import annotations

import functools

from psycopg.errors import FeatureNotSupported

from babylon_tasks.errors import UserError
from babylon_tasks.store.database import Connection, Database
from babylon_tasks.store.queries import load

_sql = load("identity")

_SECONDS = 5.0  # whoever asks wants to send a message


@functools.cache
def key_prefix(database_url: str) -> str:
    """Return what the names of this database's keys and channels in Redis begin with.

    Postgres is asked once a process; a failure is not remembered.

    Raises:
        ServerUnavailable: Postgres does not answer.
        UserError: Migrations are missing, or the role may not read which were applied.
    """
    return f"babylon:{_database_id(database_url)}:"


def _database_id(url: str) -> str:
    """Return the id; the same for all roles that may use our schema.

    A copy of the server's files has the same id, since Postgres cannot tell it from the original.
    """
    database = Database(url, timeout_seconds=_SECONDS)
    try:
        return _id_of_server(database) or _id_by_migrations(database)
    finally:
        database.close()


def _id_of_server(database: Database) -> str | None:
    """Return the server's identifier and the database's number; None where not all may ask."""
    try:
        with database.transaction() as tx:
            right = tx.execute(_sql["may_everybody_ask"]).fetchone()
            assert right is not None
            return _id(tx, "read_id") if right["allowed"] else None
    except FeatureNotSupported:  # a hosted service whose servers have no such file
        return None


def _id_by_migrations(database: Database) -> str:
    with database.transaction() as tx:
        identity = _id(tx, "read_id_by_migrations")
    if identity is None:
        raise UserError("migrations are not applied: run `babylon migrate`")
    return identity


def _id(connection: Connection, query: str) -> str | None:
    row = connection.execute(_sql[query]).fetchone()
    return str(row["id"]) if row else None
