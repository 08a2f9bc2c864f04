"""Who works, on which database, by which settings, for which lineage."""

from __future__ import annotations

from dataclasses import dataclass

from babylon_tasks.records.lineages import Lineage
from babylon_tasks.settings import Settings
from babylon_tasks.store.database import Database
from babylon_tasks.store.leases import Claim, Lease


@dataclass(frozen=True, slots=True)
class Context:
    """What every stage is given; `holder` (host and process) is written into leases and rows."""

    database: Database
    settings: Settings
    holder: str
    lineage: Lineage

    @classmethod
    def of_deployment(cls, settings: Settings, holder: str) -> Context:
        """Work for the deployment's own lineage; the connection opens at its first use.

        Raises:
            UserError: DATABASE_URL is missing or no URL.
        """
        return cls(Database(settings.postgres()), settings, holder, Lineage.of_deployment(settings))

    def claim(self, lease: Lease) -> Claim:
        """Return what the store's writers need to know of whoever holds the lease."""
        return Claim(self.lineage.name, self.holder, lease)
