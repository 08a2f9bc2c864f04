"""Settings: leases, retries and periodic work."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from babylon_tasks.settings.group import DAY, INT32, Group

QUEUES = ("cpu", "gpu")


class Worker(Group):
    """Leases, retries, periodic work."""

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
        10,
        gt=0,
        le=DAY,
        description="Seconds between two sweeps, which send lost messages again.",
    )
    produce_seconds: float = Field(
        60, gt=0, le=DAY, description="Seconds between two searches for new windows."
    )
    max_attempts: int = Field(
        3, ge=1, le=INT32, description="Number of attempts; then a window ends as `failed`."
    )
    retry_seconds: float = Field(
        30,
        ge=0,
        le=DAY,
        description="Seconds to wait after a failure, doubled with each. A step's first repeat "
        "comes at once.",
    )

    @model_validator(mode="after")
    def _a_lease_outlives_its_heartbeat(self) -> Self:
        if self.heartbeat_seconds * 2 > self.lease_seconds:
            raise ValueError("HEARTBEAT_SECONDS must be at most half of LEASE_SECONDS")
        return self
