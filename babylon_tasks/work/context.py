"""The context of a stage: database, settings, holder and lineage."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass

from babylon_tasks.records.lineages import Lineage
from babylon_tasks.settings import Settings
from babylon_tasks.store.database import Database
from babylon_tasks.store.leases import Claim, Lease


@dataclass(frozen=True, slots=True)
class Context:
    """The arguments that all stages share; `holder` (host and process) is in leases and rows.

    `worker` is the name of the Celery worker that this process is of, "" outside of one.
    """

    database: Database
    settings: Settings
    holder: str
    lineage: Lineage
    worker: str = ""

    @classmethod
    def of_deployment(cls, settings: Settings, holder: str) -> Context:
        """Return the context of the deployment's own lineage; it connects at the first use.

        Raises:
            UserError: DATABASE_URL is missing or no URL.
        """
        return cls(Database(settings.postgres()), settings, holder, Lineage.of_deployment(settings))

    def claim(self, lease: Lease) -> Claim:
        """Return the claim that the store's writers need from the holder of this lease."""
        return Claim(self.lineage.name, self.holder, lease)


def this_holder() -> str:
    """Return what this process is called in leases and rows: its host and its process id."""
    return f"{socket.gethostname()}:{os.getpid()}"
