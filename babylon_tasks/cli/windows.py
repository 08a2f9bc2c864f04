"""`babylon windows list | enqueue`."""

from __future__ import annotations

import time
from dataclasses import asdict

import click
from rich.table import Table

from babylon_tasks import pipeline
from babylon_tasks.cli.common import as_json, print_json, ready_worker, wide_console
from babylon_tasks.errors import UserError
from babylon_tasks.settings import Settings, load_settings
from babylon_tasks.store import windows as window_rows
from babylon_tasks.store.database import Database
from babylon_tasks.windows import WindowListing


@click.group()
def windows() -> None:
    """See windows and make them due."""


@windows.command("list")
@as_json
def list_windows(as_json: bool) -> None:
    """The windows of the last LOOKBACK_HOURS, newest first.

    Example: babylon windows list --json
    """
    settings = load_settings()
    database = ready_worker(settings).database
    started = time.perf_counter()
    with database.transaction() as tx:
        started = time.perf_counter()
        found = window_rows.listing(tx, settings)
        query_seconds = time.perf_counter() - started
    if as_json:
        print_json({"query_seconds": query_seconds, "windows": [asdict(w) for w in found]})
        return
    if not found:
        raise no_windows(database, settings, found)
    table = Table("window", "agents", "trajectories", "late", "state", "step", "reason")
    for window in found:
        step = "" if window.trained_step is None else str(window.trained_step)
        table.add_row(
            window.window_id,
            str(window.agents),
            str(window.trajectories),
            str(window.late),
            window.state,
            step,
            window.reason or "",
        )
    wide_console().print(table)


@windows.command()
@click.argument("window_ids", nargs=-1, metavar="[WINDOW_ID]...")
@as_json
def enqueue(window_ids: tuple[str, ...], as_json: bool) -> None:
    """Make windows due and wake the workers: those named, or all that are due now.

    Example: babylon windows enqueue 2025-01-15T10:00
    """
    settings = load_settings()
    settings.redis()
    worker = ready_worker(settings)
    if window_ids:
        rows = [pipeline.enqueue(worker, window_id) for window_id in window_ids]
        due = [row.window_id for row in rows if row.state == "due"]
        ended = {row.window_id: str(row.state) for row in rows if row.state != "due"}
    else:
        due, ended = pipeline.produce(worker), {}
    if due:
        from babylon_tasks.celery import app
        from workers import doorbells

        app.set_current()
        doorbells.score(due)
    if as_json:
        print_json({"due": due, "not_due": ended})
        return
    for window_id in due:
        click.echo(f"{window_id} is due")
    for window_id, state in ended.items():
        click.echo(f"{window_id} is {state} already")
    if not due and not ended:
        click.echo("nothing new is due: `babylon windows list` shows every window")


def no_windows(database: Database, settings: Settings, found: list[WindowListing]) -> UserError:
    """Why there is nothing to train, in one line."""
    with database.transaction() as tx:
        trajectories = window_rows.count_trajectories(tx)
    by_state: dict[str, int] = {}
    for window in found:
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
        f"no windows found: {trajectories} trajectories in the database, {len(found)} windows in "
        f"the last {settings.lookback_hours} hours (LOOKBACK_HOURS)" + (f": {why}" if why else "")
    )
