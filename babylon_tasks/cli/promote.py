"""`babylon models promote | rollback | pause | resume | promotions`."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC

import click
from rich.table import Table

from babylon_tasks.cli.common import as_json, of_lineage, print_json, ready_context, wide_console
from babylon_tasks.cockpit import gate
from babylon_tasks.serving import promote as serving
from babylon_tasks.serving.promote import Served
from babylon_tasks.settings import load_settings
from babylon_tasks.store import gates
from babylon_tasks.store import promotions as promotion_rows
from babylon_tasks.work.context import Context

with_reason = click.option("--why", required=True, help="The reason, which is kept with it.")


@click.command()
@click.argument("version_or_step")
@with_reason
@of_lineage
def promote(version_or_step: str, why: str, lineage: str | None) -> None:
    """Let a newer version serve, by hand, whatever the gate says of it.

    The lineage's name answers with it within seconds, and the app sees it `deployed`. What was
    paused stays so. A running experiment ends.

    Example: babylon models promote v1.0.14 --why "it sells well in the simulation"
    """
    context = ready_context(load_settings(), lineage)
    _say(context, serving.promote(context, version_or_step, why))


@click.command()
@click.argument("version_or_step", required=False)
@with_reason
@of_lineage
def rollback(version_or_step: str | None, why: str, lineage: str | None) -> None:
    """Let an older version serve, without a name the one that served before; pause promotion.

    Step 0 is the base model. Training goes on from the head: `babylon models reset` changes that.
    New steps wait until `babylon models resume`, or `babylon models promote` by hand.

    Example: babylon models rollback --why "it sells everything at once"
    """
    context = ready_context(load_settings(), lineage)
    _say(context, serving.roll_back(context, version_or_step, why))


@click.command()
@with_reason
@of_lineage
def pause(why: str, lineage: str | None) -> None:
    """Promote no new version by itself; they are trained, and wait.

    Example: babylon models pause --why "a demonstration today"
    """
    context = ready_context(load_settings(), lineage)
    _say(context, serving.pause(context, why))


@click.command()
@with_reason
@of_lineage
def resume(why: str, lineage: str | None) -> None:
    """Promote new versions by themselves again, also one that passed the gate meanwhile.

    With PUBLISH=always that is the newest one.

    Example: babylon models resume --why "the feed is repaired"
    """
    context = ready_context(load_settings(), lineage)
    _say(context, serving.resume(context, why))


@click.command()
@of_lineage
@as_json
def promotions(lineage: str | None, as_json: bool) -> None:
    """List every change of the version that serves, newest first: who, when and why.

    Example: babylon models promotions --json
    """
    context = ready_context(load_settings(), lineage)
    with context.database.transaction() as tx:
        history = promotion_rows.history(tx, context.lineage.name)
    if as_json:
        print_json([asdict(each) for each in history])
        return
    table = Table("when (UTC)", "what", "from", "to", "who", "why")
    for each in history:
        table.add_row(
            f"{each.at.astimezone(UTC):%Y-%m-%d %H:%M:%S}",
            each.kind,
            str(each.from_step),
            str(each.to_step),
            each.holder,
            each.why,
        )
    wide_console().print(table)


def _say(context: Context, served: Served) -> None:
    step = f"step {served.step} ({served.version})" if served.version else "the base model"
    before = f"; it was step {served.from_step}" if served.from_step != served.step else ""
    click.echo(f"{context.lineage.name} answers with {step}{before}")
    if served.pause:
        click.echo(f"promotion is paused {served.pause}")
        click.echo("new steps wait until `babylon models resume`")
    elif context.settings.publish != "always":
        with context.database.transaction() as tx:
            gated = gates.read(tx, [context.lineage.name])[context.lineage.name]
        for sentence in gate.waiting(gated, context.settings):
            click.echo(sentence)
    elif served.head != served.step:
        click.echo(f"step {served.head} is promoted next, within seconds if workers run")
