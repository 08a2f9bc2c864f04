"""`babylon train`."""

from __future__ import annotations

import contextlib
import signal

import click

from babylon_tasks import pipeline
from babylon_tasks.cli.common import as_json, print_json, ready_context
from babylon_tasks.cli.windows import no_windows
from babylon_tasks.errors import NotRecorded, UserError
from babylon_tasks.pipeline import SCORE_BATCH
from babylon_tasks.records.windows import State
from babylon_tasks.settings import changed, load_settings
from babylon_tasks.store import windows as window_rows
from babylon_tasks.training.step import loss_text
from babylon_tasks.work.signals import interrupt


@click.command()
@click.option("--min-agents", type=int, help="Instead of MIN_AGENTS_PER_WINDOW.")
@click.option("--lookback-hours", type=int, help="Instead of LOOKBACK_HOURS.")
@click.option("--model", help="Instead of BASE_MODEL; a lineage keeps the one it began with.")
@click.option("--dropout", type=float, help="Instead of DROPOUT.")
@click.option("--max-per-window", type=int, help="Instead of MAX_PER_WINDOW.")
@as_json
def train(
    min_agents: int | None,
    lookback_hours: int | None,
    model: str | None,
    dropout: float | None,
    max_per_window: int | None,
    as_json: bool,
) -> None:
    """Score and train all that is due, in this process, and publish; then end.

    The same claims as the workers', so running workers do no harm; but what they score, they score
    by their own settings. It needs no Redis.

    Example: babylon train --min-agents 3 --lookback-hours 48 --max-per-window 8
    """
    options = {
        "min_agents_per_window": min_agents,
        "lookback_hours": lookback_hours,
        "base_model": model,
        "dropout": dropout,
        "max_per_window": max_per_window,
    }
    given = {name: value for name, value in options.items() if value is not None}
    settings = changed(load_settings(), **given)
    settings.require_training_allowed()
    from workers.gpu import slots
    from workers.lifecycle import check_trainer
    from workers.watch.step_log import log_steps

    check_trainer(settings)
    signal.signal(signal.SIGTERM, interrupt)
    context = ready_context(settings)
    pipeline.produce(context)
    with context.database.transaction() as tx:
        states = window_rows.count_states(tx, settings.model_name)
        found = window_rows.listing(tx, settings.model_name, settings)
    if not states[State.DUE] and not states[State.SCORED]:
        raise no_windows(context.database, settings, found)
    steps, published = [], []
    looked: list[str] | None = None
    trainer = slots.make_trainer(0)
    try:
        while True:
            scored = pipeline.score(context)
            report = None
            with contextlib.suppress(NotRecorded):  # those windows wait, others may be due yet
                report = pipeline.train(context, trainer)
            if report:
                published += pipeline.publish(context)
                steps.append({"step": report.step, "version": report.version})
                if not as_json:
                    click.echo(
                        f"step {report.step} ({report.version}): {len(report.window_ids)} windows, "
                        f"{report.trajectories} trajectories, loss {loss_text(report.result)}"
                    )
            if scored or report:
                continue
            # What failed waits; others may be due yet. The same ones again: nothing moves.
            due = pipeline.sweep(context, SCORE_BATCH).due
            if not due or due == looked:
                break
            looked = due
    finally:
        trainer.close()
    with context.database.transaction() as tx:
        states = window_rows.count_states(tx, settings.model_name)
        why = window_rows.last_error(tx, settings.model_name)
    left = {str(state): states[state] for state in (State.DUE, State.SCORED) if states[state]}
    if left and why and not steps:
        raise UserError(f"nothing was trained, windows wait: {why}")
    if as_json:
        print_json({"steps": steps, "published": published, "left": left})
    else:
        for version in published:
            click.echo(f"{version} is ready")
        if left:
            waiting = ", ".join(f"{count} {state}" for state, count in left.items())
            click.echo(
                f"left: {waiting} (held by other workers, or waiting: `babylon windows list`)"
            )
    if steps:
        log_steps(settings)  # last: W&B may let it wait
