"""The story of one window, and why there is no window to train."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from babylon_tasks.cockpit.versions import state_of
from babylon_tasks.errors import UserError
from babylon_tasks.records.windows import WindowListing
from babylon_tasks.store import attempts, heads, steps
from babylon_tasks.store import scores as score_rows
from babylon_tasks.store import windows as window_rows
from babylon_tasks.store.attempts import Attempt
from babylon_tasks.store.scores import Comparison
from babylon_tasks.store.steps import Step
from babylon_tasks.work.context import Context


@dataclass(frozen=True, slots=True)
class Story:
    """All that the database knows about one window."""

    row: dict[str, Any]  # its row in rl.windows, with single values from other tables
    step: Step | None  # that trained it, which may have been given up
    step_state: str | None  # where that stands, as `versions.states`
    serves: Step | None  # the lineage's served step; None: the base model
    rows: dict[str, int]  # number of its trajectories now, and of those left out, by reason
    attempts: list[Attempt]
    compared: list[Comparison]  # each trajectory's scores by each scorer, if asked for


def read_story(context: Context, window_id: str, with_scores: bool) -> Story:
    """Read one window's story.

    Raises:
        UserError: The window has no row.
    """
    name = context.lineage.name
    with context.database.transaction() as tx:
        row = window_rows.story(tx, name, window_id)
        trained = row["trained_step"] if row else None
        step = steps.read(tx, name, trained) if trained is not None else None
        head = heads.read(tx, name)
        serves = steps.read(tx, name, head.published_step) if head else None
        step_state = state_of(tx, name, step) if step else None
        tried = attempts.read(tx, name, window_id)
        rows = window_rows.count_excluded(tx, context.settings, window_id)
        compared = score_rows.compare(tx, name, window_id) if with_scores else []
    if row is None:
        raise UserError(
            f"window {window_id} has no row for {name}: `babylon windows list` "
            f"shows those there are, `babylon windows enqueue {window_id}` makes it due"
        )
    return Story(row, step, step_state, serves, rows, tried, compared)


def no_windows(context: Context, listed: Sequence[WindowListing]) -> UserError:
    """Make the error that says, in one line, why there is nothing to train."""
    settings = context.settings
    with context.database.transaction() as tx:
        trajectories = window_rows.count_trajectories(tx)
    by_state: dict[str, int] = {}
    for window in listed:
        by_state[window.state] = by_state.get(window.state, 0) + 1
    words = {
        "few_agents": f"too few agents (MIN_AGENTS_PER_WINDOW={settings.min_agents_per_window})",
        "open": "not complete",
        "settling": f"not settled (SETTLE_SECONDS={settings.settle_seconds})",
        "trained": "already trained",
        "skipped": "skipped",
        "failed": "failed",
    }
    why = ", ".join(f"{count} {words[state]}" for state, count in by_state.items())
    return UserError(
        f"no windows found: {trajectories} trajectories in the database, {len(listed)} windows in "
        f"the last {settings.lookback_hours} hours (LOOKBACK_HOURS)" + (f": {why}" if why else "")
    )
