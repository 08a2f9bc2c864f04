"""Tables of `babylon models show`: a step's exam, and what its experiment showed."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from babylon_tasks.cockpit.gate import difference
from babylon_tasks.records.exams import Compared, Figures
from babylon_tasks.records.experiments import ExperimentLook


def exam_table(figures: Figures) -> Table:
    """Make a table with one line for each figure of both versions."""
    columns = ("figure", "served", "candidate", "difference", "95 % interval", "runs", "samples")
    table = Table(*columns, "")
    for name, each in figures.items():
        table.add_row(
            name,
            _number(each.served),
            _number(each.candidate),
            _signed(each.difference),
            _interval(each),
            str(each.runs),
            "" if each.samples is None else f"{each.samples:.3g}",
            "worse" if each.worse else each.left_out or "",
        )
    return table


def looks_table(looks: Sequence[ExperimentLook]) -> Table:
    """Make a table with one line for each window of an experiment, with all up to it."""
    table = Table("window", "runs served", "candidate", "all so far", "decision")
    for look in looks:
        table.add_row(
            look.window_id,
            str(look.evidence.served.runs),
            str(look.evidence.candidate.runs),
            difference(look.standing),
            look.decision,
        )
    return table


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _signed(value: float | None) -> str:
    return "" if value is None else f"{value:+.3g}"


def _interval(each: Compared) -> str:
    if each.low is None or each.high is None:
        return ""
    return f"{each.low:+.3g} to {each.high:+.3g}"
