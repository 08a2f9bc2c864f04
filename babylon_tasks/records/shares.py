"""A share: a second version that answers so many percent of a lineage's agents."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True)
class Share:
    """In force from the start of a window until the next share starts; 0 percent ends it."""

    starts_at: datetime
    step: int
    percent: float

    @property
    def is_open(self) -> bool:
        """Whether any agent can be in it."""
        return self.percent > 0


def share_at(shares: Iterable[Share], moment: datetime) -> Share | None:
    """Return the share in force at a moment: the newest that has started; None if it has ended."""
    started = [share for share in shares if share.starts_at <= moment]
    newest = max(started, key=lambda share: share.starts_at, default=None)
    return newest if newest and newest.is_open else None
