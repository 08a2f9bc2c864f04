"""`babylon migrate`."""

from __future__ import annotations

import click

from babylon_tasks.cli.common import as_json, print_json
from babylon_tasks.cli.progress_line import progress
from babylon_tasks.settings import load_settings
from babylon_tasks.store import index_builds
from babylon_tasks.store import migrate as migrations


@click.command()
@as_json
def migrate(as_json: bool) -> None:
    """Create or update our tables in DATABASE_URL; safe to repeat, and while the app runs.

    Example: DATABASE_URL=postgresql://… babylon migrate
    """
    url = load_settings().postgres()
    with progress("migrating", quiet=as_json, look=lambda: index_builds.under_way(url)):
        applied = migrations.migrate(url)
    if as_json:
        print_json({"applied": applied})
        return
    # The log has named each when it was done, which may take minutes.
    count = len(applied)
    click.echo(
        f"{count} migration{'s' if count > 1 else ''} applied"
        if applied
        else "nothing to do: all migrations are applied"
    )
