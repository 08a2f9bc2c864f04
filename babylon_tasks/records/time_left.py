"""How long work will still take, by the pace that it has had."""

from __future__ import annotations

LEAST_SECONDS = 1.0  # of work, before anything is said of the rest


def time_left(seconds: float, share: float) -> float | None:
    """Return the seconds that are left when `seconds` did this share (0 to 1) of the work.

    None until there is something to judge by.
    """
    if seconds < LEAST_SECONDS or share <= 0:
        return None
    return seconds * (1 - min(share, 1.0)) / share
