"""Settings: leases, retries and periodic work."""

from __future__ import annotations

import re
from typing import Self

from pydantic import Field, field_validator, model_validator

from babylon_tasks.settings.group import DAY, INT32, PER_LINEAGE, Group, listed
from babylon_tasks.settings.lineage import LINEAGE_NAME

QUEUES = ("cpu", "gpu")


class Worker(Group):
    """Leases, retries, periodic work."""

    lineages: str | None = Field(
        None,
        description="A worker serves only these lineages of its database: names, separated by "
        "commas. Without it every active one.",
    )
    lineage_weight: float = Field(
        1,
        gt=0,
        le=1000,
        description="Share of the workers' turns that this lineage gets beside others that wait, "
        "relative to theirs.",
        json_schema_extra=PER_LINEAGE,
    )
    lease_seconds: float = Field(
        30, ge=1, le=DAY, description="Seconds after which a dead worker's work is free."
    )
    heartbeat_seconds: float = Field(
        10,
        gt=0,
        le=DAY,
        description="Seconds between two renewals of a lease; at most half of `LEASE_SECONDS`.",
    )
    sweep_seconds: float = Field(
        15,
        gt=0,
        le=DAY,
        description="Seconds between two sweeps, which send lost messages again, and a quarter of "
        "those between two canaries of the queue `gpu`.",
    )
    produce_seconds: float = Field(
        60, gt=0, le=DAY, description="Seconds between two searches for new windows."
    )
    max_attempts: int = Field(
        3,
        ge=1,
        le=INT32,
        description="Number of attempts; then a window ends as `failed`, and a step whose exam "
        "never ended has failed it. With 1, one killed worker is enough.",
        json_schema_extra=PER_LINEAGE,
    )
    retry_seconds: float = Field(
        30,
        ge=0,
        le=DAY,
        description="Seconds to wait after a failure, doubled with each. A step's first repeat "
        "comes at once.",
        json_schema_extra=PER_LINEAGE,
    )

    @field_validator("lineages")
    @classmethod
    def _names_of_lineages(cls, lineages: str | None) -> str | None:
        if lineages is not None:
            names = listed(lineages)
            if not names or not all(re.match(LINEAGE_NAME, name) for name in names):
                raise ValueError(
                    "give names separated by commas, each of 1 to 64 letters, digits, dots, dashes "
                    "and underscores"
                )
        return lineages

    @model_validator(mode="after")
    def _a_lease_outlives_its_heartbeat(self) -> Self:
        if self.heartbeat_seconds * 2 > self.lease_seconds:
            raise ValueError("HEARTBEAT_SECONDS must be at most half of LEASE_SECONDS")
        return self

    def canary_seconds(self, queue: str) -> float:
        """Return the seconds between two canaries of a queue; on `cpu` each sweep is one."""
        return self.sweep_seconds * (4 if queue == "gpu" else 1)

    def lineage_names(self) -> list[str] | None:
        """Return the lineages that this worker serves, each once; None: every active one."""
        return None if self.lineages is None else list(dict.fromkeys(listed(self.lineages)))
