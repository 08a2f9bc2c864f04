"""Reads how far the index is that `babylon migrate` builds."""

from __future__ import annotations

import psycopg

from babylon_tasks.errors import BabylonError
from babylon_tasks.store import postgres
from babylon_tasks.store.migrate import APPLICATION_NAME
from babylon_tasks.store.queries import load

_SQL = load("index_builds")


def under_way(database_url: str) -> str | None:
    """Say which index is built now, in which phase, and how much of it is done; None: none is.

    It has a connection of its own, since the one that builds is busy. Errors are no news: the
    migration itself tells them.
    """
    try:
        with postgres.connect(database_url) as connection:
            row = connection.execute(
                _SQL["index_build"], {"application": APPLICATION_NAME}
            ).fetchone()
    except (psycopg.Error, BabylonError):
        return None
    if row is None:
        return None
    index, table, phase, done, total = row
    share = f" {done / total:.0%}" if total else ""
    return f"{phase}{share}: {index or 'an index'} on {table}"
