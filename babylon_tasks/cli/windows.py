"""`babylon windows list | enqueue | show | retry`."""

from __future__ import annotations

import time
from dataclasses import asdict

import click
from rich.table import Table

from babylon_tasks.cli.common import (
    as_json,
    of_lineage,
    print_json,
    ready_context,
    wide_console,
)
from babylon_tasks.cli.scores_table import scores_table
from babylon_tasks.cli.screen import colour_wanted, write
from babylon_tasks.cli.window_screen import sections
from babylon_tasks.cockpit.story import no_windows, read_story
from babylon_tasks.errors import ServerUnavailable, UserError
from babylon_tasks.records.windows import parse_window_id
from babylon_tasks.scoring.registry import SCORERS
from babylon_tasks.settings import load_settings
from babylon_tasks.store import windows as window_rows


@click.group()
def windows() -> None:
    """List windows and make them due."""


@windows.command("list")
@of_lineage
@as_json
def list_windows(lineage: str | None, as_json: bool) -> None:
    """List the windows of the last LOOKBACK_HOURS, newest first.

    Example: babylon windows list --json
    """
    context = ready_context(load_settings(), lineage)
    with context.database.transaction() as tx:
        started = time.perf_counter()
        listed = window_rows.listing(tx, context.lineage.name, context.settings)
        query_seconds = time.perf_counter() - started
    if as_json:
        print_json({"query_seconds": query_seconds, "windows": [asdict(w) for w in listed]})
        return
    if not listed:
        raise no_windows(context, listed)
    table = Table("window", "agents", "trajectories", "late", "state", "step", "reason")
    for window in listed:
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
@click.option(
    "--scoring",
    type=click.Choice(SCORERS),
    help="Scorer of the named windows, instead of SCORING; a scored window is scored again.",
)
@of_lineage
@as_json
def enqueue(
    window_ids: tuple[str, ...], scoring: str | None, lineage: str | None, as_json: bool
) -> None:
    """Make the named windows due, or else all that are ready, and wake the workers.

    Example: babylon windows enqueue 2025-01-15T10:00 --scoring ruler
    """
    if scoring and not window_ids:
        raise UserError("--scoring is for windows that are named")
    from babylon_tasks import pipeline  # late: to list windows needs no stage

    settings = load_settings()
    settings.redis()
    context = ready_context(settings, lineage)
    context.lineage.require_not_retired()
    if window_ids:
        rows = [pipeline.enqueue(context, window_id, scoring) for window_id in window_ids]
        due = [row.window_id for row in rows if row.state == "due"]
        ended = {row.window_id: str(row.state) for row in rows if row.state != "due"}
    else:
        due, ended = pipeline.produce(context), {}
    wake_scorers(due)
    if as_json:
        print_json({"due": due, "not_due": ended})
        return
    for window_id in due:
        click.echo(f"{window_id} is due")
    for window_id, state in ended.items():
        click.echo(f"{window_id} is {state} already")
    if not due and not ended:
        click.echo("nothing new is due: `babylon windows list` shows every window")
    if scoring and ended:
        raise UserError("a window that was trained is not scored again")


@windows.command()
@click.argument("window_id")
@click.option("--scores", is_flag=True, help="Also show each trajectory's score by each scorer.")
@of_lineage
@as_json
def show(window_id: str, scores: bool, lineage: str | None, as_json: bool) -> None:
    """Show one window: its way, every attempt, what was left out, its scores, and its step.

    Example: babylon windows show 2025-01-15T10:00 --scores
    """
    parse_window_id(window_id)
    story = read_story(ready_context(load_settings(), lineage), window_id, scores)
    if as_json:
        document = {
            **story.row,
            "rows": story.rows,
            "attempts": [asdict(attempt) for attempt in story.attempts],
            "step_state": story.step_state,
            "served_step": story.serves.step if story.serves else 0,
        }
        if scores:
            document["by_scorer"] = [asdict(comparison) for comparison in story.compared]
        print_json(document)
        return
    click.echo(write(sections(story), colour_wanted()))
    if scores:
        wide_console().print(scores_table(story.compared))


@windows.command()
@click.argument("window_ids", nargs=-1, metavar="[WINDOW_ID]...")
@click.option("--failed", is_flag=True, help="Take every window that failed.")
@click.option(
    "--step",
    "steps",
    multiple=True,
    metavar="STEP",
    help="Take the windows of a step or version that was given up, or of a run of them, such as "
    "5-14; may be given several times.",
)
@of_lineage
@as_json
def retry(
    window_ids: tuple[str, ...],
    failed: bool,
    steps: tuple[str, ...],
    lineage: str | None,
    as_json: bool,
) -> None:
    """Make failed or skipped windows due again, count their attempts anew, and wake the workers.

    With --step, make those due again that steps trained which `babylon models reset` gave up.

    Example: babylon windows retry 2025-01-15T10:00
    """
    if sum(map(bool, (window_ids, failed, steps))) != 1:
        raise UserError(
            "name the windows to try again, or all of them with --failed, or those of a step that "
            "was given up with --step"
        )
    from babylon_tasks import pipeline

    for window_id in window_ids:
        parse_window_id(window_id)
    settings = load_settings()
    settings.redis()
    context = ready_context(settings, lineage)
    context.lineage.require_not_retired()
    if steps:
        due = pipeline.retry_steps(context, steps)
    else:
        due = pipeline.retry(context, window_ids or None)
    refused = sorted(set(window_ids) - set(due))
    wake_scorers(due)
    if as_json:
        print_json({"due": due, "refused": refused})
    else:
        _print_retried(due, bool(steps))
    if refused:
        raise UserError(
            f"not tried again: {', '.join(refused)} (neither failed nor skipped; "
            "`babylon windows show` says more)"
        )


def _print_retried(due: list[str], of_steps: bool) -> None:
    for window_id in due:
        click.echo(f"{window_id} is due")
    if not due:
        click.echo("no window is left to try again" if of_steps else "no window has failed")


def wake_scorers(due: list[str]) -> None:
    """Ring for windows that are due; where Redis is away, say that beat's sweep will."""
    if due:
        from babylon_tasks.celery import app
        from workers import doorbells

        app.set_current()
        try:
            doorbells.score(len(due))
        except ServerUnavailable as error:
            click.echo(
                f"{error} The windows are due, and beat's sweep will ring for them.", err=True
            )
