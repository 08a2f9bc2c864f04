"""Reads how much GPU time the steps of a day have used, and at what price."""

from __future__ import annotations

from dataclasses import dataclass

from psycopg.rows import class_row

from babylon_tasks.store.database import Connection
from babylon_tasks.store.queries import load

_SQL = load("gpu_time")


@dataclass(frozen=True, slots=True)
class GpuToday:
    """What all lineages' steps have used since midnight UTC, and how long their exams took.

    `usd` is the price of the steps that have one, None if none has; `unpriced` counts the others.
    `exam_seconds` are by the clock, on whatever the exams ran.
    """

    steps: int
    gpu_seconds: float
    usd: float | None
    unpriced: int
    exams: int
    exam_seconds: float


def today(connection: Connection) -> GpuToday:
    """Return what was used since midnight UTC."""
    with connection.cursor(row_factory=class_row(GpuToday)) as cursor:
        row = cursor.execute(_SQL["gpu_today"]).fetchone()
    assert row is not None
    return row
