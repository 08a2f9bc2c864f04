"""The reasons why a window is not due, each in one line."""

from __future__ import annotations

from babylon_tasks.records.windows import Window, due_at
from babylon_tasks.store import windows as window_rows
from babylon_tasks.store.database import Connection, now
from babylon_tasks.work.context import Context


def why_not_due(tx: Connection, context: Context, window_id: str) -> str | None:
    """Return why a window without a row cannot become due, or None if it can.

    Raises:
        UserError: The text is no window id.
    """
    settings = context.settings
    due = due_at(window_id, settings.settle_seconds)
    if now(tx) < due:
        return (
            f"window {window_id} is not complete: it ends and settles at "
            f"{due:%Y-%m-%d %H:%M} UTC (SETTLE_SECONDS={settings.settle_seconds})"
        )
    counts = window_rows.count(tx, settings, window_id)
    if counts.agents >= settings.min_agents_per_window:
        return None
    rows = window_rows.count_excluded(tx, settings, window_id)
    if not rows["trajectories"]:
        return (
            f"no trajectories in window {window_id}: "
            "`babylon windows list` shows the windows there are"
        )
    return (
        f"window {window_id} has {counts.agents} agents, needs {settings.min_agents_per_window} "
        f"(MIN_AGENTS_PER_WINDOW); of its {rows['trajectories']} trajectories "
        f"{rows['not_training_data']} are not training data, {rows['evaluation']} are evaluation, "
        f"{rows['excluded']} are of excluded scenarios, {rows['other_agents']} of other agents"
    )


def story(window: Window) -> str:
    """Return a window's state and its reason."""
    return f"{window.state}: {window.reason or window.last_error or 'no reason given'}"


def given_up(window: Window) -> str:
    """Return why a trained window is of no use: its step is not on the way to the head."""
    return (
        f"window {window.window_id} was trained by step {window.trained_step}, which was given up: "
        f"`babylon windows retry --step {window.trained_step}` makes it due again"
    )
