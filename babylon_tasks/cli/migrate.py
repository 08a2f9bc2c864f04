"""`babylon migrate`."""

from __future__ import annotations

import click

from babylon_tasks.settings import load_settings
from babylon_tasks.store import migrate as migrations


@click.command()
def migrate() -> None:
    """Create or update our tables in DATABASE_URL; repeatable, safe beside a running app.

    Example: DATABASE_URL=postgresql://… babylon migrate
    """
    applied = migrations.migrate(load_settings().postgres())
    for name in applied:
        click.echo(f"applied {name}")
    if not applied:
        click.echo("nothing to do: all migrations are applied")
