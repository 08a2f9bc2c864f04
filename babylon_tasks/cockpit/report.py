"""The results of training: one record for each window, and one for the whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from babylon_tasks.cockpit import gate
from babylon_tasks.records.windows import State, WindowReport
from babylon_tasks.store import gates, heads, steps
from babylon_tasks.store import windows as window_rows
from babylon_tasks.work.context import Context


def read_reports(context: Context) -> list[WindowReport]:
    """Read the result of each window of the lineage, oldest first."""
    with context.database.transaction() as tx:
        return window_rows.report(tx, context.lineage.name)


def trained(reports: Sequence[WindowReport]) -> set[str]:
    """Return the ids of the windows that were trained."""
    return {report.window_id for report in reports if report.state == State.TRAINED}


def summarize(context: Context, reports: Sequence[WindowReport]) -> dict[str, Any]:
    """Count the windows, the rows set aside and the steps, and name the version that serves.

    `gate` says what waits to serve, and why the last step did not pass.
    """
    name = context.lineage.name
    with context.database.transaction() as tx:
        head = heads.read(tx, name)
        served = steps.read(tx, name, head.published_step) if head else None
        gated = gates.read(tx, [name])[name]
    return {
        "windows_total": len(reports),
        "windows_trained": len(trained(reports)),
        "windows_skipped": sum(report.state == State.SKIPPED for report in reports),
        "windows_failed": sum(report.state == State.FAILED for report in reports),
        "quarantined": sum(report.quarantined for report in reports),
        "steps": head.step if head else 0,
        "model_version": served.version if served else None,
        "gate": gate.figures(gated, context.settings),
        "windows": [asdict(report) for report in reports],
    }
