"""The table that a run of the chaos tests ends with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from tests.chaos.recovery import percentile


@dataclass(slots=True)
class Entry:
    """One fault: how often it was tried, what it cost, and the seconds until work went on."""

    tried: int = 0
    lost: int = 0
    twice: int = 0
    recoveries: list[float] = field(default_factory=list)


@dataclass(slots=True)
class Ledger:
    """Entries by the fault's number and title; other results come below the table."""

    entries: dict[tuple[int, str], Entry] = field(default_factory=dict)
    below: list[str] = field(default_factory=list)

    def add(
        self, number: int, title: str, lost: int, twice: int, recoveries: Sequence[float]
    ) -> None:
        """Add a trial of a fault."""
        entry = self.entries.setdefault((number, title), Entry())
        entry.tried += 1
        entry.lost += lost
        entry.twice += twice
        entry.recoveries.extend(recoveries)

    def table(self) -> str:
        """Write the table as Markdown, as docs/reliability.md has it."""
        lines = [
            "| # | Fault | Tried | Lost | Twice | Recovery p50 s | p99 s |",
            "|--:|---|--:|--:|--:|--:|--:|",
        ]
        for (number, title), entry in sorted(self.entries.items()):
            p50, p99 = (_seconds(percentile(entry.recoveries, share)) for share in (0.5, 0.99))
            lines.append(
                f"| {number} | {title} | {entry.tried} | {entry.lost} | {entry.twice} "
                f"| {p50} | {p99} |"
            )
        return "\n".join([*lines, "", *self.below])


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"
