"""Reads and writes the app's `training_batches`: its requests, and one row for each step."""

from __future__ import annotations

import json
from dataclasses import dataclass

from psycopg.rows import class_row

from babylon_tasks.store.database import Connection
from babylon_tasks.store.queries import load

_SQL = load("training_batches", "transitions")


@dataclass(frozen=True, slots=True)
class Request:
    """A request of the app to train one window; `window_id` is what the app wrote, unchecked."""

    batch_id: str
    window_id: str | None
    version: str
    status: str = "pending"
    error: str | None = None


def pending(connection: Connection) -> list[Request]:
    """Return the requests that have not ended yet, oldest first."""
    with connection.cursor(row_factory=class_row(Request)) as cursor:
        return cursor.execute(_SQL["pending_requests"]).fetchall()


def read(connection: Connection, batch_id: str) -> Request | None:
    """Return a request by its batch id, or None."""
    with connection.cursor(row_factory=class_row(Request)) as cursor:
        return cursor.execute(_SQL["read_request"], {"batch_id": batch_id}).fetchone()


def attach(connection: Connection, model_name: str, window_id: str, batch_id: str) -> bool:
    """Let a window that is not yet trained answer this request; False if it cannot."""
    updated = connection.execute(
        _SQL["attach_request"],
        {"model_name": model_name, "window_id": window_id, "batch_id": batch_id},
    ).rowcount
    return updated == 1


def start(connection: Connection, batch_id: str) -> None:
    """Note in the request that training has begun."""
    connection.execute(_SQL["start_request"], {"batch_id": batch_id})


def insert(
    connection: Connection, batch_id: str, window_id: str | None, base_model: str, version: str
) -> None:
    """Insert a batch for a step without a request."""
    connection.execute(
        _SQL["insert_batch"],
        {
            "batch_id": batch_id,
            "window_id": window_id,
            "base_model": base_model,
            "version": version,
        },
    )


@dataclass(frozen=True, slots=True)
class Completion:
    """The result of a batch: `rewards` by trajectory id, `seconds` of wall time."""

    version: str
    base_model: str
    rewards: dict[str, float]
    loss: float | None
    seconds: float


def complete(connection: Connection, batch_id: str, done: Completion) -> None:
    """End a batch as completed, with its step's version and rewards."""
    connection.execute(
        _SQL["complete_request"],
        {
            "batch_id": batch_id,
            "version": done.version,
            "base_model": done.base_model,
            "trajectory_ids": json.dumps(list(done.rewards)),
            "rewards": json.dumps(list(done.rewards.values())),
            "loss": done.loss,
            "seconds": done.seconds,
        },
    )


def complete_trained(
    connection: Connection, model_name: str, window_id: str, batch_id: str
) -> bool:
    """End a request whose window is trained; False if it is not, or its step was given up."""
    updated = connection.execute(
        _SQL["complete_trained"],
        {"model_name": model_name, "window_id": window_id, "batch_id": batch_id},
    ).rowcount
    return updated == 1


def fail(connection: Connection, batch_id: str, error: str) -> None:
    """End a request as failed, with the reason."""
    connection.execute(_SQL["fail_request"], {"batch_id": batch_id, "error": error})


def reopen(connection: Connection, batch_id: str) -> None:
    """Make a failed request pending again."""
    connection.execute(_SQL["reopen_request"], {"batch_id": batch_id})
