"""`babylon models …`: its `list` and `export`; the others are in modules of their own."""

from __future__ import annotations

import signal
from dataclasses import asdict
from datetime import UTC
from pathlib import Path

import click
from rich.table import Table

from babylon_tasks.checkpoints import export
from babylon_tasks.checkpoints import files as checkpoint_files
from babylon_tasks.cli.chat import chat
from babylon_tasks.cli.common import (
    as_json,
    of_lineage,
    print_json,
    ready_context,
    wide_console,
)
from babylon_tasks.cli.diff import diff
from babylon_tasks.cli.models_show import show
from babylon_tasks.cli.progress_line import progress
from babylon_tasks.cli.promote import pause, promote, promotions, resume, rollback
from babylon_tasks.cli.replay import replay
from babylon_tasks.cli.reset import reset
from babylon_tasks.cli.share import share, shares
from babylon_tasks.cockpit import versions
from babylon_tasks.errors import UserError
from babylon_tasks.settings import load_settings
from babylon_tasks.store import heads, steps
from babylon_tasks.store import promotions as promotion_rows
from babylon_tasks.words import loss_text
from babylon_tasks.work.signals import interrupt
from babylon_tasks.work.step_names import find_step


@click.group()
def models() -> None:
    """List, compare, export and ask the versions of a model, and choose which one serves."""


for _command in (
    chat, diff, pause, promote, promotions, replay, reset, resume, rollback, share, shares,
    show,
):  # fmt: skip
    models.add_command(_command)


@models.command("list")
@of_lineage
@as_json
def list_models(lineage: str | None, as_json: bool) -> None:
    """List every version, newest first: the step before it, and whether its files are there.

    The state says which one serves, and of the others how far they came: `awaits exam`, `passed` or
    `failed` it, in an `experiment`, and how that ended if not by a promotion.

    Example: babylon models list --json
    """
    context = ready_context(load_settings(), lineage)
    name = context.lineage.name
    with context.database.transaction() as tx:
        listed = steps.listing(tx, name)
        paused = promotion_rows.current_pause(tx, name)
        states = versions.states(tx, name, listed)
    if as_json:
        print_json([{**asdict(step), "state": states[step.step]} for step in listed])
        return
    if not listed:
        click.echo(f"no step of {name} is committed yet")
        return
    table = Table(
        "step", "after", "version", "state", "committed (UTC)", "trajectories", "loss", "files"
    )
    for step in listed:
        table.add_row(
            str(step.step),
            str(step.parent_step),
            step.version,
            states[step.step],
            f"{step.committed_at.astimezone(UTC):%Y-%m-%d %H:%M}",
            str(step.trajectories),
            "" if step.loss is None else loss_text(step.loss),
            step.checkpoint if step.removed_at is None else "",
        )
    wide_console().print(table)
    if paused:
        click.echo(f"promotion is paused {paused}")


@models.command("export")
@click.argument("version_or_step")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--merged",
    is_flag=True,
    help="Merge the adapter into the base model, and write that with its tokenizer; needs the "
    "extra `train`.",
)
@of_lineage
def export_model(version_or_step: str, folder: Path, merged: bool, lineage: str | None) -> None:
    """Write a version's adapter into a new folder, in the form that PEFT and vLLM load.

    Example: babylon models export v1.0.3 /srv/adapters/v1.0.3
    """
    signal.signal(signal.SIGTERM, interrupt)
    context = ready_context(load_settings(), lineage)
    with context.database.transaction() as tx:
        step = find_step(tx, context.lineage.name, version_or_step)
        head = heads.read(tx, context.lineage.name)
    if step is None:
        raise UserError("step 0 is the base model, which has no adapter to export")
    assert head is not None
    name = f"step {step.step} ({step.version}) of {context.lineage.name}"
    with export.new_folder(folder) as draft, progress(f"fetching {name}") as shown:
        checkpoint = checkpoint_files.open_local(step.files())
        export.require_adapter(checkpoint, name)
        if merged:
            shown.say(f"merging {name} into {head.base_model}")
            _merge(head.base_model, head.base_revision, checkpoint, draft)
        else:
            export.copy_adapter(checkpoint, draft)
    click.echo(f"{name} is in {folder}")


def _merge(base_model: str, revision: str | None, checkpoint: Path, folder: Path) -> None:
    try:
        from workers.trainer.torch.merge import merge_adapter
    except ImportError as error:
        raise UserError(
            f"--merged needs the package {error.name}: pip install 'babylon-tasks[train]'"
        ) from error
    merge_adapter(base_model, checkpoint, folder, revision)
