"""Reads and writes `rl.jobs`: what was posted to W&B, or was about to be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from psycopg.rows import class_row

from babylon_tasks.records.steps import JobNote
from babylon_tasks.store.database import Connection, jsonb
from babylon_tasks.store.leases import Claim
from babylon_tasks.store.queries import load

_SQL = load("jobs")

# What of each window was sent: its score_rev, and how many of its scored traces were gone.
Sent = Mapping[str, Mapping[str, int]]


@dataclass(frozen=True, slots=True)
class Job:
    """The one open job of a model.

    `remote_step` is where W&B's model stood before it; without `job_id` it is not known whether
    the job exists.
    """

    windows: Sent
    remote_step: int
    job_id: str | None
    age_seconds: float


def read_open(connection: Connection, model_name: str) -> Job | None:
    """Return the job that may be running, if there is one."""
    with connection.cursor(row_factory=class_row(Job)) as cursor:
        return cursor.execute(_SQL["open_job"], {"model_name": model_name}).fetchone()


def follow(connection: Connection, model_name: str, token: int) -> None:
    """Let the attempt with this token see to the open job from now on, if there is one."""
    connection.execute(_SQL["follow_job"], {"model_name": model_name, "token": token})


def note(connection: Connection, claim: Claim, step: int, sent: Sent, note: JobNote) -> None:
    """Write down what the trainer says about its job; the caller renews the lease with it."""
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
    """Note that the step under this token is committed, and so its job, if it had one, is done."""
    connection.execute(_SQL["finish_job"], {"model_name": model_name, "token": token})
