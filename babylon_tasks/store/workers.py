"""Reads and writes `rl.workers`."""

from __future__ import annotations

import msgspec

from babylon_tasks.records.workers import Worker, WorkerGpu, WorkerNote
from babylon_tasks.store.database import Connection
from babylon_tasks.store.queries import load

_SQL = load("workers")


def note(connection: Connection, note: WorkerNote) -> None:
    """Write what a worker says of itself now; forget those that were lost a day ago."""
    gpus = msgspec.json.encode(note.gpus).decode()
    connection.execute(_SQL["note_worker"], {**msgspec.structs.asdict(note), "gpus": gpus})
    connection.execute(_SQL["forget_lost_workers"])


def forget(connection: Connection, note: WorkerNote) -> None:
    """Remove a worker that stops, unless another process has its name by now."""
    connection.execute(_SQL["forget_worker"], msgspec.structs.asdict(note) | {"gpus": None})


def read(connection: Connection) -> list[Worker]:
    """Return the workers by name, with those that have been silent for up to a day."""
    rows = connection.execute(_SQL["read_workers"]).fetchall()
    return [
        Worker(**{**row, "gpus": msgspec.json.decode(row["gpus"], type=list[WorkerGpu])})
        for row in rows
    ]
