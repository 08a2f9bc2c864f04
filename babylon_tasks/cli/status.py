"""`babylon status`."""

from __future__ import annotations

import signal
from typing import Any

import click

from babylon_tasks.cli.common import as_json, of_lineage, print_json, ready_fleet
from babylon_tasks.cli.screen import colour_wanted, write
from babylon_tasks.cli.status_screen import sections
from babylon_tasks.cli.watch import keep_showing
from babylon_tasks.cockpit.overview import overview
from babylon_tasks.cockpit.status import queue_lengths
from babylon_tasks.errors import UserError
from babylon_tasks.settings import Settings, load_settings
from babylon_tasks.work.fleet import Fleet
from babylon_tasks.work.signals import interrupt


@click.command()
@click.option(
    "--watch", is_flag=True, help="Show it again every 2 seconds, in place, until Ctrl-C."
)
@of_lineage
@as_json
def status(watch: bool, lineage: str | None, as_json: bool) -> None:
    """Show what runs now, what waits, who works, which version serves, and what today has cost.

    It reads Postgres and Redis, and asks no worker. Red is what a person must see to. Where Redis
    is away, the rest is shown, and the exit code is 2. docs/watching.md explains each line.

    Example: babylon status --watch
    """
    if watch and as_json:
        raise UserError("--watch is for people: a program calls `babylon status --json` again")
    settings = load_settings()
    if watch:
        signal.signal(signal.SIGTERM, interrupt)
        keep_showing(Reader(settings, lineage).screen)
        return
    data = Reader(settings, lineage).read()
    if as_json:
        print_json(data)
    else:
        click.echo(write(sections(data), colour_wanted()))
    if data["redis_says"]:
        raise UserError(data["redis_says"])


class Reader:
    """Reads what the screen shows, any number of times, over one connection."""

    def __init__(self, settings: Settings, lineage: str | None) -> None:
        self._settings, self._lineage = settings, lineage
        self._fleet: Fleet | None = None

    def read(self) -> dict[str, Any]:
        """Return the figures of `overview`, and the messages that wait, as `queues`.

        `queues` is None where Redis does not tell, and `redis_says` says why.

        Raises:
            UserError: DATABASE_URL is missing or wrong, a migration is, or there is no such
                lineage.
            ServerUnavailable: Postgres does not answer.
        """
        if self._fleet is None:
            self._fleet = ready_fleet(self._settings)
        data = overview(self._fleet.context(self._lineage))
        try:
            return {**data, "queues": queue_lengths(self._settings), "redis_says": None}
        except UserError as error:
            return {**data, "queues": None, "redis_says": str(error)}

    def screen(self) -> str:
        """Return the screen for a person; errors are those of `read`."""
        return write(sections(self.read()), colour_wanted())
