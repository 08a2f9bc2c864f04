"""Reads and writes `rl.canaries`: the last message that each queue delivered."""

from __future__ import annotations

from dataclasses import dataclass

from psycopg.rows import class_row

from babylon_tasks.store.database import Connection
from babylon_tasks.store.queries import load

_SQL = load("canaries")


@dataclass(frozen=True, slots=True)
class Canary:
    """The newest message that a queue delivered: who took it, and how long ago."""

    queue: str
    holder: str
    age_seconds: float


def note(connection: Connection, queue: str, holder: str) -> None:
    """Note that this queue has just delivered a message."""
    connection.execute(_SQL["note_canary"], {"queue": queue, "holder": holder})


def read(connection: Connection) -> dict[str, Canary]:
    """Return the canaries by queue, without the queues that never delivered a message."""
    with connection.cursor(row_factory=class_row(Canary)) as cursor:
        canaries = cursor.execute(_SQL["canary_ages"]).fetchall()
    return {canary.queue: canary for canary in canaries}
