"""What several commands share."""

from __future__ import annotations

import json
import os
import socket
from typing import Any

import click
from rich.console import Console

from babylon_tasks.settings import Settings
from babylon_tasks.store.migrate import require_applied
from babylon_tasks.work.context import Context

as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON for a program.")


def print_json(value: Any) -> None:
    """One JSON document on standard output."""
    click.echo(json.dumps(value, indent=2, default=str))


def wide_console() -> Console:
    """Tables fit a terminal, and are never cut short in a file or a log.

    Without markup: a judge's error or an agent's name may hold brackets.
    """
    console = Console(markup=False)
    return console if console.is_terminal else Console(width=200, markup=False)


def ready_context(settings: Settings) -> Context:
    """A worker on a database that answers and is migrated.

    Raises:
        UserError: It does not answer, or `babylon migrate` was not run.
    """
    require_applied(settings.postgres())
    return Context.of_deployment(settings, holder=f"{socket.gethostname()}:{os.getpid()}")
