"""Promotions: every change of the step that a lineage's name answers with."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum


class PromotionKind(StrEnum):
    """What moved it; a pause and a resumption of automatic promotion move nothing."""

    AUTOMATIC = "automatic"
    PROMOTE = "promote"
    ROLLBACK = "rollback"
    APP = "app"
    RESET = "reset"
    PAUSE = "pause"
    RESUME = "resume"


@dataclass(frozen=True, slots=True)
class Promotion:
    """A row of `rl.promotions`: `holder` is who did it."""

    kind: PromotionKind
    from_step: int
    to_step: int
    holder: str
    why: str
    at: datetime

    def __post_init__(self) -> None:
        object.__setattr__(self, "kind", PromotionKind(self.kind))


@dataclass(frozen=True, slots=True)
class Pause:
    """Since when no new step of a lineage is promoted by itself, by whom, and why."""

    since: datetime
    holder: str
    why: str

    def __str__(self) -> str:
        return f"since {self.since:%Y-%m-%d %H:%M} UTC, by {self.holder}: {self.why}"
