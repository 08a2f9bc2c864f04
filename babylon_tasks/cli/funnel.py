"""Tables of `babylon windows show`: what was left out of a window, and its scores side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.table import Table

from babylon_tasks.scoring.filters import STAGES
from babylon_tasks.store.scores import Comparison

_LONGEST_ID = 24


def funnel_table(rows: Mapping[str, int], funnel: Mapping[str, int]) -> Table:
    """From the window's rows, as they are now, to the tokens that were trained."""
    table = Table("stage", "count", "left out on the way to the next")
    left_out = {reason: count for reason, count in rows.items() if reason != "trajectories"}
    table.add_row("rows", str(rows["trajectories"]), _counts(left_out))
    for stage, reasons in STAGES.items():
        count = funnel.get(stage)
        shown = "not yet" if count is None else f"{count:,}"
        table.add_row(stage, shown, _counts({each: funnel.get(each, 0) for each in reasons}))
    return table


def scores_table(compared: Sequence[Comparison]) -> Table:
    """A line a trajectory, a column a scorer."""
    scorers = sorted({scorer for each in compared for scorer in each.scores})
    table = Table("agent", "trajectory", *scorers)
    for each in compared:
        table.add_row(
            _short(each.agent_id),
            _short(each.trajectory_id),
            *(f"{each.scores[s]:.3f}" if s in each.scores else "" for s in scorers),
        )
    return table


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in counts.items() if count)


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST_ID else f"{text[: _LONGEST_ID - 1]}…"
