"""Who works, on which database, by which settings."""

from __future__ import annotations

from dataclasses import dataclass

from babylon_tasks.settings import Settings
from babylon_tasks.store.database import Database


@dataclass(frozen=True, slots=True)
class Context:
    """One process's identity: `holder` is written into leases and rows (host, process)."""

    database: Database
    settings: Settings
    holder: str
