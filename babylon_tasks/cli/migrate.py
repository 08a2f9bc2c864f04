"""`babylon migrate`."""

from __future__ import annotations

import click

from babylon_tasks.cli.common import as_json, print_json
from babylon_tasks.settings import load_settings
from babylon_tasks.store import migrate as migrations


@click.command()
@as_json
def migrate(as_json: bool) -> None:
    """Create or update our tables in DATABASE_URL; safe to repeat, and while the app runs.

    Example: DATABASE_URL=postgresql://… babylon migrate
    """
    applied = migrations.migrate(load_settings().postgres())
    if as_json:
        print_json({"applied": applied})
        return
    for name in applied:
        click.echo(f"applied {name}")
    if not applied:
        click.echo("nothing to do: all migrations are applied")
