"""The workers of a deployment, as each says of itself."""

from __future__ import annotations

from datetime import datetime

import msgspec

# A worker that has said nothing for so long has died, or cannot reach Postgres.
LOST_SECONDS = 90.0


class WorkerGpu(msgspec.Struct, frozen=True):
    """A GPU that a worker may use; memory in bytes, None where the driver does not say."""

    uuid: str
    name: str
    memory_bytes: int | None = None
    memory_used_bytes: int | None = None


class WorkerNote(msgspec.Struct, frozen=True):
    """What a worker says of itself.

    `slots` counts its pool processes; `trainer` is None for one that takes no training; `lineages`
    is None for one that takes all.
    """

    name: str
    host: str
    pid: int
    queues: list[str]
    slots: int
    trainer: str | None
    lineages: list[str] | None
    gpus: list[WorkerGpu]
    version: str


class Worker(WorkerNote, frozen=True, kw_only=True):
    """A worker, since when it runs, and how many seconds ago it said so."""

    started_at: datetime
    seen_seconds: float

    @property
    def lost(self) -> bool:
        """Whether it has been silent for too long."""
        return self.seen_seconds > LOST_SECONDS
