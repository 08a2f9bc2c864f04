"""Reads from `rl.steps` how far steps moved the policy."""

from __future__ import annotations

from psycopg.rows import class_row

from babylon_tasks.records.movement import Movement
from babylon_tasks.store.database import Connection
from babylon_tasks.store.queries import load

_SQL = load("movements")


def newest(connection: Connection, model_name: str, most: int) -> list[Movement]:
    """Return those of the lineage's own newest steps that were not given up, newest first."""
    with connection.cursor(row_factory=class_row(Movement)) as cursor:
        values = {"model_name": model_name, "most": most}
        return cursor.execute(_SQL["newest_movements"], values).fetchall()
