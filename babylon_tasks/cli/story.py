"""The table of `babylon windows show --scores`, and how a value of a story is written."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from rich.table import Table

from babylon_tasks.store.scores import Comparison

_LONGEST_ID = 24


def scores_table(compared: Sequence[Comparison]) -> Table:
    """Make a table with one line for each trajectory and one column for each scorer."""
    scorers = sorted({scorer for each in compared for scorer in each.scores})
    table = Table("agent", "trajectory", *scorers)
    for each in compared:
        table.add_row(
            _short(each.agent_id),
            _short(each.trajectory_id),
            *(f"{each.scores[s]:.3f}" if s in each.scores else "" for s in scorers),
        )
    return table


def cell(value: object) -> str:
    """Write a value of the story for a person."""
    if isinstance(value, datetime):
        return f"{value.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return ", ".join(f"{key} {cell(each)}" for key, each in value.items() if each is not None)
    if isinstance(value, list):
        return "; ".join(cell(each) for each in value)
    return str(value)


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST_ID else f"{text[: _LONGEST_ID - 1]}…"
