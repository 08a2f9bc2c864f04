"""How figures are written for people: one way in Flower, in the terminal and in the log."""

from __future__ import annotations

from collections.abc import Sequence

_MOST_NAMED = 3


def counted(number: int, noun: str) -> str:
    """Count things: `1 window`, `6 windows`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def named(ids: Sequence[str]) -> str:
    """Name the first few of many: `2026-11-28T01:00 2026-11-28T02:00 2026-11-28T03:00 …`."""
    return " ".join(ids[:_MOST_NAMED]) + (" …" if len(ids) > _MOST_NAMED else "")


def duration(seconds: float) -> str:
    """Write a time, at least 0: `40 s`, `2 min 5 s`, `34 min`, `3 h 20 min`, `2 days`."""
    whole = max(round(seconds), 0)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        exact = whole < 600 and whole % 60
        return f"{whole // 60} min" + (f" {whole % 60} s" if exact else "")
    if whole < 48 * 3600:
        return f"{whole // 3600} h" + (f" {whole % 3600 // 60} min" if whole % 3600 >= 60 else "")
    return f"{whole // 86400} days"


def size(bytes_: int) -> str:
    """Write a number of bytes: `12.3 GiB`, `840 MiB`, `12 KiB`, `300 bytes`."""
    if bytes_ >= 1 << 30:
        return f"{bytes_ / (1 << 30):,.1f} GiB"
    if bytes_ >= 1 << 20:
        return f"{bytes_ / (1 << 20):.0f} MiB"
    if bytes_ >= 1 << 10:
        return f"{bytes_ / (1 << 10):.0f} KiB"
    return f"{bytes_} bytes"


def loss_text(loss: float | None) -> str:
    """Write the loss of a step: `0.0123`, `-2.5e-05`, `not known`."""
    return "not known" if loss is None else f"{loss + 0:.4g}"  # a loss of -0.0 is 0


def memory(used: int | None, total: int | None) -> str:
    """Write how much of a GPU's memory is used: `60.5 GiB of 139.7 GiB of memory used`."""
    if used is None:
        return "memory not known" if total is None else f"{size(total)} of memory"
    of = "" if total is None else f" of {size(total)}"
    return f"{size(used)}{of} of memory used"
