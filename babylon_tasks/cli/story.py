"""Tables of `babylon windows show`: the attempts, what was left out, the scores side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from rich.table import Table

from babylon_tasks.scoring.filters import EVALUATIONS, FLOORED, REMEMBERED, STAGES
from babylon_tasks.store.attempts import Attempt
from babylon_tasks.store.scores import Comparison

_LONGEST_ID = 24


def attempts_table(attempts: Sequence[Attempt]) -> Table:
    """Make a table with one line for each attempt, oldest first."""
    table = Table("attempt", "token", "who", "began", "seconds", "ended", "error")
    for attempt in attempts:
        ended = attempt.ended_at
        seconds = f"{(ended - attempt.started_at).total_seconds():.1f}" if ended else ""
        table.add_row(
            attempt.stage,
            str(attempt.token),
            attempt.holder,
            cell(attempt.started_at),
            seconds,
            attempt.outcome or "under way",
            attempt.error or "",
        )
    return table


def funnel_table(rows: Mapping[str, int], funnel: Mapping[str, int]) -> Table:
    """Make a table from the window's rows, as they are now, to the tokens that were trained."""
    table = Table("stage", "count", "left out on the way to the next")
    left_out = {reason: count for reason, count in rows.items() if reason != "trajectories"}
    table.add_row("rows", str(rows["trajectories"]), _counts(left_out))
    for stage, reasons in STAGES.items():
        count = funnel.get(stage)
        shown = "not yet" if count is None else f"{count:,}"
        if floored := funnel.get(FLOORED.get(stage, "")):
            shown += f" ({floored:,} done badly)"
        if stage == "scored" and (evaluations := funnel.get(EVALUATIONS)):
            shown += f" (and {evaluations:,} with isEvaluation, for exams)"
        if stage == "calls" and not funnel.keys().isdisjoint(REMEMBERED):
            remembered, not_remembered = (funnel.get(each, 0) for each in REMEMBERED)
            shown += f" (the endpoint remembers {remembered:,}, not {not_remembered:,})"
        table.add_row(stage, shown, _counts({each: funnel.get(each, 0) for each in reasons}))
    return table


def versions_table(by_version: Mapping[str, Mapping[str, int]]) -> Table:
    """Make a table with one line for each of the lineage's versions that acted in the window."""
    table = Table("version", "runs", "calls", "done badly", "share")
    for version, did in by_version.items():
        calls, badly = did["calls"], did["badly"]
        share = f"{badly / calls:.0%}"
        table.add_row(version, str(did["runs"]), f"{calls:,}", f"{badly:,}", share)
    return table


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


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in counts.items() if count)


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST_ID else f"{text[: _LONGEST_ID - 1]}…"
