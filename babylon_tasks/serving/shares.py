"""Which agents take a share: a stable hash of the agent, so that each keeps its version."""

from __future__ import annotations

from hashlib import blake2b

_POINTS = 10_000  # of a hundredth of a percent each


def takes_share(lineage: str, agent: str, percent: float) -> bool:
    """Tell whether an agent is among so many percent of a lineage's agents.

    It depends on nothing else, so every replica says the same. Who is among 10 % is among 20 %.
    Lineages choose independently of each other.
    """
    digest = blake2b(agent.encode("utf-8", "surrogatepass"), digest_size=8, key=_key(lineage))
    return int.from_bytes(digest.digest()) % _POINTS < round(percent * _POINTS / 100)


def _key(lineage: str) -> bytes:
    """Return a key of a length that the hash accepts, whatever the name."""
    return blake2b(lineage.encode("utf-8", "surrogatepass"), digest_size=32).digest()
