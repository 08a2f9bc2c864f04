"""`babylon models share | shares`."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC

import click
from rich.table import Table

from babylon_tasks.cli.common import as_json, of_lineage, print_json, ready_context, wide_console
from babylon_tasks.cli.promote import with_reason
from babylon_tasks.serving import promote as serving
from babylon_tasks.settings import load_settings
from babylon_tasks.store import shares as share_rows


@click.command()
@click.argument("version_or_step")
@click.option(
    "--percent",
    type=click.FloatRange(0, 100),
    required=True,
    help="Percent of the lineage's agents, to two decimals; 0 ends the share.",
)
@with_reason
@of_lineage
def share(version_or_step: str, percent: float, why: str, lineage: str | None) -> None:
    """Let a second version answer a part of the agents, from the next window on.

    A lineage has one share at a time. Which agents are in it does not change while it grows.

    Example: babylon models share v1.0.14 --percent 10 --why "is it better in a bear market?"
    """
    context = ready_context(load_settings(), lineage)
    percent = round(percent, 2)
    step, starts_at = serving.share(context, version_or_step, percent, why)
    start = f"{starts_at.astimezone(UTC):%Y-%m-%d %H:%M} UTC"
    if percent:
        click.echo(f"step {step} answers {percent:g} % of the agents from {start} on")
    else:
        click.echo(f"no step has a share from {start} on")


@click.command()
@of_lineage
@as_json
def shares(lineage: str | None, as_json: bool) -> None:
    """List the shares of agents that second versions had, have and are to have, newest first.

    Example: babylon models shares --json
    """
    context = ready_context(load_settings(), lineage)
    with context.database.transaction() as tx:
        listed = share_rows.listing(tx, context.lineage.name)
    if as_json:
        print_json([asdict(each) for each in listed])
        return
    table = Table("from (UTC)", "until (UTC)", "step", "percent", "who", "why")
    for each in listed:
        table.add_row(
            f"{each.starts_at.astimezone(UTC):%Y-%m-%d %H:%M}",
            f"{each.ends_at.astimezone(UTC):%Y-%m-%d %H:%M}" if each.ends_at else "",
            str(each.step),
            f"{each.percent:g}",
            each.holder,
            each.why,
        )
    wide_console().print(table)
