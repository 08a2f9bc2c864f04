"""`babylon train`."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator, Mapping
from dataclasses import replace

import click

from babylon_tasks import pipeline
from babylon_tasks.cli.common import as_json, of_lineage, print_json, ready_context
from babylon_tasks.cli.progress_line import Progress, progress
from babylon_tasks.cockpit.story import no_windows
from babylon_tasks.errors import NotRecorded, UserError
from babylon_tasks.pipeline import SCORE_BATCH
from babylon_tasks.records.steps import Trainer
from babylon_tasks.records.windows import State
from babylon_tasks.settings import Settings, changed, load_settings
from babylon_tasks.store import exams, promotions
from babylon_tasks.store import windows as window_rows
from babylon_tasks.training.step import StepReport
from babylon_tasks.words import loss_text
from babylon_tasks.work.context import Context
from babylon_tasks.work.signals import interrupt


@click.command()
@click.option(
    "--min-agents", "min_agents_per_window", type=int, help="Instead of MIN_AGENTS_PER_WINDOW."
)
@click.option("--lookback-hours", type=int, help="Instead of LOOKBACK_HOURS.")
@click.option(
    "--model", "base_model", help="Instead of BASE_MODEL; a lineage keeps the one it began with."
)
@click.option("--dropout", type=float, help="Instead of DROPOUT.")
@click.option("--max-per-window", type=int, help="Instead of MAX_PER_WINDOW.")
@of_lineage
@as_json
def train(as_json: bool, lineage: str | None, **options: int | float | str | None) -> None:
    """Score, train and publish all that is due for a lineage, in this process, then end.

    It claims windows as the workers do, so workers may run beside it; they score by their own
    settings. It needs no Redis. Where nothing is due it says why, and ends with 0.

    Example: babylon train --min-agents 3 --lookback-hours 48 --max-per-window 8
    """
    given = {name: value for name, value in options.items() if value is not None}
    settings = changed(load_settings(), **given)
    settings.require_training_allowed()
    from workers.gpu import slots
    from workers.lifecycle import check_trainer
    from workers.watch.step_log import log_steps

    check_trainer(settings)
    signal.signal(signal.SIGTERM, interrupt)
    context = _context(settings, lineage, given)
    pipeline.produce(context)
    if why := _nothing_due(context):
        if as_json:
            print_json({"steps": [], "published": [], "left": {}})
        else:
            click.echo(why)
        return
    steps: list[StepReport] = []
    published: list[str] = []
    with (
        contextlib.closing(slots.make_trainer(0)) as trainer,
        progress("claiming what is due", quiet=as_json) as shown,
    ):
        for report, versions in _work_off(context, trainer, shown):
            steps.append(report)
            published += versions
            if not as_json:
                click.echo(
                    f"step {report.step} ({report.version}): {len(report.window_ids)} windows, "
                    f"{report.trajectories} trajectories, loss {loss_text(report.result.loss)}"
                )
    waiting = _count_waiting(context, bool(steps))
    if as_json:
        done = [{"step": report.step, "version": report.version} for report in steps]
        print_json({"steps": done, "published": published, "left": waiting})
    else:
        _print_end(published, waiting)
        if steps:
            _print_waiting(context)
    if steps:
        log_steps(settings)  # last: W&B may let it wait


def _context(settings: Settings, lineage: str | None, given: Mapping[str, object]) -> Context:
    """Return the context in which to train; what was given wins over the lineage's overrides.

    Raises:
        UserError: The lineage rests, is served by other workers only, or has another base model.
    """
    context = ready_context(settings, lineage)
    context.lineage.require_active()
    if context.lineage.own_settings and context.lineage.name != settings.model_name:
        raise UserError(
            f"{context.lineage.name} is trained by the settings of its own workers: set MODEL_NAME "
            f"to it, or take it over with `babylon lineages set {context.lineage.name} KEY=VALUE`"
        )
    if given.get("base_model", context.lineage.base_model) != context.lineage.base_model:
        raise UserError(f"--model: {context.lineage.name} starts from {context.lineage.base_model}")
    return replace(context, settings=changed(context.settings, **given))


def _nothing_due(context: Context) -> str | None:
    """Say why no window is due or scored; None if one is."""
    with context.database.transaction() as tx:
        states = window_rows.count_states(tx, context.lineage.name)
        listed = window_rows.listing(tx, context.lineage.name, context.settings)
    if states[State.DUE] or states[State.SCORED]:
        return None
    return str(no_windows(context, listed))


def _work_off(
    context: Context, trainer: Trainer, shown: Progress
) -> Iterator[tuple[StepReport, list[str]]]:
    """Score, train and publish until nothing moves; yield each step and the versions promoted."""
    due_before: list[str] | None = None
    while True:
        scored = pipeline.score(context, on_doing=shown.tell)
        report = None
        with contextlib.suppress(NotRecorded):  # those windows wait, others may still be due
            report = pipeline.train(context, trainer, on_doing=shown.tell)
        if report:
            yield report, pipeline.publish(context)
        if scored or report:
            continue
        # A failed window waits, others may still be due. If the same are due again, nothing moves.
        due = pipeline.sweep(context, SCORE_BATCH).due
        if not due or due == due_before:
            return
        due_before = due


def _count_waiting(context: Context, trained: bool) -> dict[str, int]:
    """Count the windows that still wait, by state.

    Raises:
        UserError: Windows wait after an error, and nothing was trained.
    """
    with context.database.transaction() as tx:
        states = window_rows.count_states(tx, context.lineage.name)
        why = window_rows.last_error(tx, context.lineage.name)
    waiting = {str(state): states[state] for state in (State.DUE, State.SCORED) if states[state]}
    if waiting and why and not trained:
        raise UserError(f"nothing was trained, windows wait: {why}")
    return waiting


def _print_waiting(context: Context) -> None:
    """Say why the newest step does not serve."""
    name = context.lineage.name
    with context.database.transaction() as tx:
        paused = promotions.current_pause(tx, name)
        waits = exams.awaited(tx, name) if context.settings.publish != "always" else None
    if waits:
        click.echo(f"step {waits.step} is examined on the next window, before it may serve")
    if paused:
        click.echo(f"not promoted: that is paused {paused}")


def _print_end(published: list[str], waiting: dict[str, int]) -> None:
    for version in published:
        click.echo(f"{version} is promoted")
    if waiting:
        counts = ", ".join(f"{count} {state}" for state, count in waiting.items())
        click.echo(f"left: {counts} (held by other workers, or waiting: `babylon windows list`)")
