"""Shows a screen again and again: in place in a terminal, one below the other elsewhere."""

from __future__ import annotations

import os
import sys
import textwrap
import time
from collections.abc import Callable

import click

from babylon_tasks.cli.screen import COLUMNS, colour_wanted
from babylon_tasks.errors import ServerUnavailable

_SECONDS = 2.0
_BLOCK_SECONDS = 10.0  # where nobody sees it move


def keep_showing(screen: Callable[[], str]) -> None:
    """Show what `screen` returns until Ctrl-C or SIGTERM; an outage is said above the last screen.

    In a terminal it has a screen of its own; the last one stays in the terminal at the end.

    Raises:
        UserError: As `screen` does, but for servers that are away.
    """
    shown = _Shown(screen)
    try:
        if sys.stdout.isatty() and os.environ.get("TERM") != "dumb":
            _in_place(shown)
        while True:
            click.echo(shown.next() + "\n")
            sys.stdout.flush()
            time.sleep(_BLOCK_SECONDS)
    except KeyboardInterrupt:
        if shown.in_place:
            click.echo(shown.last)


class _Shown:
    """The last screen, with a line above it while a server is away."""

    def __init__(self, screen: Callable[[], str]) -> None:
        self._screen = screen
        self.last = ""
        self.in_place = False
        self._good = ""

    def next(self) -> str:
        """Return the screen as it is now."""
        try:
            self._good = self.last = self._screen()
        except ServerUnavailable as error:
            since = "; below is what was seen last" if self._good else ""
            lines = textwrap.wrap(f"{time.strftime('%H:%M:%S')} {error}{since}", COLUMNS)
            said = "\n".join(click.style(x, fg="red") if colour_wanted() else x for x in lines)
            self.last = f"{said}\n{self._good}".rstrip()
        return self.last


def _in_place(shown: _Shown) -> None:
    """Redraw until a signal comes; nothing is wiped first, so nothing flickers."""
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    shown.in_place = True
    console = Console(markup=False, highlight=False)
    with Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            screen = _as_high_as(shown.next(), console.height)
            live.update(Text.from_ansi(screen), refresh=True)
            time.sleep(_SECONDS)


def _as_high_as(screen: str, rows: int) -> str:
    """Return as much of a screen as a terminal of so many rows shows, and say what is missing."""
    lines = screen.splitlines()
    if len(lines) <= rows:
        return screen
    kept = lines[: rows - 1]
    return "\n".join([*kept, f"… and {len(lines) - len(kept)} lines: make the terminal higher"])
