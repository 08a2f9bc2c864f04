"""Reads the app's `market_outcomes`."""

from __future__ import annotations

from psycopg.rows import class_row

from babylon_tasks.records.markets import Market
from babylon_tasks.store.database import Connection
from babylon_tasks.store.queries import load

_SQL = load("markets")


def read(connection: Connection, window_id: str) -> list[Market]:
    """Return the window's markets, stocks first."""
    with connection.cursor(row_factory=class_row(Market)) as cursor:
        return cursor.execute(_SQL["select_markets"], {"window_id": window_id}).fetchall()
