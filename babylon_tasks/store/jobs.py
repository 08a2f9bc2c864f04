"""Reads and writes `rl.jobs`: jobs that were posted to W&B, or were about to be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from psycopg.rows import class_row

from babylon_tasks.records.steps import JobNote
from babylon_tasks.store.database import Connection, jsonb
from babylon_tasks.store.leases import Claim
from babylon_tasks.store.queries import load

_SQL = load("jobs")

# What was sent of each window: its score_rev, and how many of its scored traces no longer exist.
Sent = Mapping[str, Mapping[str, int]]


@dataclass(frozen=True, slots=True)
class Job:
    """The one open job of a model.

    `remote_step` is the step of W&B's model before the job. Without `job_id` it is unknown whether
    the job exists.
    """

    windows: Sent
    remote_step: int
    job_id: str | None
    age_seconds: float


def read_open(connection: Connection, model_name: str) -> Job | None:
    """Return the job that may still run, or None."""
    with connection.cursor(row_factory=class_row(Job)) as cursor:
        return cursor.execute(_SQL["open_job"], {"model_name": model_name}).fetchone()


def follow(connection: Connection, model_name: str, token: int) -> None:
    """Assign the open job, if there is one, to the attempt with this token."""
    connection.execute(_SQL["follow_job"], {"model_name": model_name, "token": token})


def note(connection: Connection, claim: Claim, step: int, sent: Sent, note: JobNote) -> None:
    """Store the trainer's note about its job; the same transaction must renew the lease."""
    name = claim.model_name
    if note.state == "intent":
        connection.execute(
            _SQL["intend_job"],
            {
                "model_name": name,
                "step": step,
                "token": claim.lease.token,
                "windows": jsonb(sent),
                "remote_step": note.remote_step,
            },
        )
    elif note.state == "posted":
        connection.execute(_SQL["post_job"], {"model_name": name, "job_id": note.job_id})
    else:
        connection.execute(
            _SQL["end_job"], {"model_name": name, "state": note.state, "why": note.why}
        )


def finish(connection: Connection, model_name: str, token: int) -> None:
    """Mark the job of this token's committed step, if it had one, as done."""
    connection.execute(_SQL["finish_job"], {"model_name": model_name, "token": token})
