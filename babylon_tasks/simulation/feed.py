"""Posts of the social feed; they are most of a real trace's bytes."""

from __future__ import annotations

import random
from collections.abc import Sequence

from babylon_tasks.simulation.agents import NAMES
from babylon_tasks.simulation.values import Json, dump

_POSTS = 512


def make_posts(rng: random.Random) -> list[Json]:
    """Make posts with different texts, about 200 bytes each."""
    words = [f"{a}{b}" for a in ("tra", "mo", "vel", "ki", "sen") for b in ("de", "ra", "nt", "lo")]
    return [
        {
            "id": str(rng.getrandbits(60)),
            "author": rng.choice(NAMES),
            "content": " ".join(rng.choices(words, k=22)),
            "engagement": rng.randrange(500),
        }
        for _ in range(_POSTS)
    ]


def grow(rng: random.Random, steps: list[Json], posts: Sequence[Json], steps_bytes: int) -> None:
    """Add posts to each step until the steps as JSON have about `steps_bytes` bytes."""
    missing = steps_bytes - len(dump(steps).encode())
    if missing <= 0:
        return
    post_bytes = len(dump(posts).encode()) / len(posts)
    posts_per_step = max(1, round(missing / post_bytes / len(steps)))
    for step in steps:
        first = rng.randrange(len(posts))
        shown = [posts[(first + n) % len(posts)] for n in range(posts_per_step)]
        step["providerAccesses"].append(
            {"providerName": "SOCIAL_FEED", "data": {"posts": shown}, "purpose": "Feed context"}
        )
