"""What several commands share."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from babylon_tasks.settings import Settings, changed
from babylon_tasks.store.migrate import require_applied
from babylon_tasks.text import one_line
from babylon_tasks.work.context import Context, this_holder
from babylon_tasks.work.fleet import Fleet

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

_MOST_TEXT = 2000  # letters of a cell

as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON for a program.")
of_lineage = click.option(
    "--lineage", metavar="NAME", help="The lineage; without it that of MODEL_NAME."
)


def print_json(value: Any) -> None:
    """Write one JSON document to standard output."""
    click.echo(json.dumps(value, indent=2, default=str))


def wide_console() -> Console:
    """Make a console whose tables fit a terminal, and are never cut short in a file or a log.

    It reads no markup, because a judge's error or an agent's name may hold brackets, and no
    escape sequence of theirs reaches the terminal.
    """
    from rich.console import Console

    class PlainText(Console):
        def render_str(self, text: str, **options: Any) -> Text:
            return super().render_str(one_line(text, _MOST_TEXT), **options)

    console = PlainText(markup=False)
    return console if console.is_terminal else PlainText(width=200, markup=False)


def with_environment(settings: Settings, env: Mapping[str, str]) -> Settings:
    """Return the settings with other values for some of their environment variables.

    Raises:
        UserError: A value is out of range.
    """
    return changed(settings, **{name.lower(): value for name, value in env.items()})


def ready_fleet(settings: Settings) -> Fleet:
    """Make the fleet of a command, on a database that answers and is migrated.

    Raises:
        UserError: DATABASE_URL is missing or wrong, or `babylon migrate` was not run.
        ServerUnavailable: The database does not answer.
    """
    require_applied(settings.postgres())
    return Fleet.of_deployment(settings, this_holder())


def ready_context(settings: Settings, lineage: str | None = None) -> Context:
    """Make the context of a command for a lineage; without a name, for MODEL_NAME.

    Raises:
        UserError: As `ready_fleet`, or there is no such lineage.
        ServerUnavailable: The database does not answer.
    """
    return ready_fleet(settings).context(lineage)
