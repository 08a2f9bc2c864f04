"""A share: a second version that answers so many percent of a lineage's agents, and which."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from hashlib import blake2b

from babylon_tasks.records.windows import window_id_at

_POINTS = 10_000  # of a hundredth of a percent each


@dataclass(frozen=True, slots=True)
class Share:
    """In force from the start of a window until the next share starts; 0 percent ends it.

    With `draw` its agents are drawn anew for each window, by this text.
    """

    starts_at: datetime
    step: int
    percent: float
    draw: str | None = None

    def takes(self, lineage: str, agent: str, moment: datetime) -> bool:
        """Tell whether an agent of a lineage is in it at a moment."""
        key = lineage if self.draw is None else f"{self.draw} {window_id_at(moment)}"
        return takes_share(key, agent, self.percent)

    @property
    def is_open(self) -> bool:
        """Whether any agent can be in it."""
        return self.percent > 0


def share_at(shares: Iterable[Share], moment: datetime) -> Share | None:
    """Return the share in force at a moment: the newest that has started; None if it has ended."""
    started = [share for share in shares if share.starts_at <= moment]
    newest = max(started, key=lambda share: share.starts_at, default=None)
    return newest if newest and newest.is_open else None


def takes_share(key: str, agent: str, percent: float) -> bool:
    """Tell whether an agent is among so many percent of the agents.

    It depends on nothing else, so every replica says the same. Who is among 10 % is among 20 %.
    Shares with different keys, such as the names of two lineages, choose independently.
    """
    digest = blake2b(agent.encode("utf-8", "surrogatepass"), digest_size=8, key=_hash_key(key))
    return int.from_bytes(digest.digest()) % _POINTS < round(percent * _POINTS / 100)


def _hash_key(key: str) -> bytes:
    """Return a key of a length that the hash accepts, whatever the text."""
    return blake2b(key.encode("utf-8", "surrogatepass"), digest_size=32).digest()
