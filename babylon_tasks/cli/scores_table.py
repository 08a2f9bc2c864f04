"""The table of `babylon windows show --scores`."""

from __future__ import annotations

from collections.abc import Sequence

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


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST_ID else f"{text[: _LONGEST_ID - 1]}…"
