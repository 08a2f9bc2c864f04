"""How much of work is done, and how long the rest will take by the pace that it has had."""

from __future__ import annotations

# A part of some work: the shares of the whole, 0 to 1, where it begins and ends.
Span = tuple[float, float]

LEAST_SECONDS = 1.0  # of work, before anything is said of the rest


def share_of_whole(span: Span, share: float) -> float:
    """Return the share of the whole work when this share of the part in `span` is done."""
    begins, ends = span
    return begins + (ends - begins) * share


def time_left(seconds: float, share: float) -> float | None:
    """Return the seconds that are left when `seconds` did this share (0 to 1) of the work.

    None until there is something to judge by.
    """
    if seconds < LEAST_SECONDS or share <= 0:
        return None
    return seconds * (1 - min(share, 1.0)) / share
