"""A line of progress on standard error, for a command that takes longer than two seconds.

At a terminal it is one line that moves, and is gone at the end; elsewhere a plain line now and
then. A program that reads `--json` gets none.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click

from babylon_tasks.records.doing import Doing
from babylon_tasks.words import duration

_SILENCE_SECONDS = 2.0  # what is over by then says nothing
_LINE_SECONDS = 10.0
_REDRAW_SECONDS = 0.2

Look = Callable[[], str | None]


class Progress:
    """What is done now; any thread may say it, and another one shows it."""

    def __init__(self, text: str, look: Look) -> None:
        self._now = (text, 0, 0)
        self._look = look
        self._began = time.monotonic()

    def say(self, text: str, done: int = 0, total: int = 0) -> None:
        """Say what is done, and if it is known, how much of how much."""
        self._now = (text, done, total)

    def tell(self, doing: Doing) -> None:
        """Say how far a stage of the pipeline is."""
        self.say(f"{doing.progress()}: {doing.title()}")

    def line(self) -> str:
        """Write it in one line, after the time since the begin."""
        text, done, total = self._now
        of = f" ({done:,} of {total:,})" if total else ""
        return f"{duration(time.monotonic() - self._began)}  {self._look() or text + of}"


@contextmanager
def progress(text: str, *, quiet: bool = False, look: Look = lambda: None) -> Iterator[Progress]:
    """Show what is done in the block, once it has lasted two seconds; with `quiet` nothing.

    `text` says what it begins with. `look` is asked before each line, from another thread: what it
    returns is shown instead.
    """
    made = Progress(text, look)
    if quiet:
        yield made
        return
    ended = threading.Event()
    show = _in_place if sys.stderr.isatty() else _lines
    thread = threading.Thread(target=show, args=(made, ended), daemon=True)
    thread.start()
    try:
        yield made
    finally:
        ended.set()
        thread.join()


def _lines(made: Progress, ended: threading.Event) -> None:
    wait = _SILENCE_SECONDS
    while not ended.wait(wait):
        click.echo(made.line(), err=True)
        wait = _LINE_SECONDS


def _in_place(made: Progress, ended: threading.Event) -> None:
    if ended.wait(_SILENCE_SECONDS):
        return
    from rich.console import Console
    from rich.live import Live
    from rich.spinner import Spinner
    from rich.table import Table

    console = Console(stderr=True, markup=False, highlight=False)

    def row(spinner: Spinner) -> Table:
        grid = Table.grid(padding=(0, 1))
        grid.add_column(no_wrap=True)
        grid.add_column(no_wrap=True, overflow="ellipsis")
        grid.add_row(spinner, made.line())
        return grid

    spinner = Spinner("dots")
    with (
        Live(
            row(spinner), console=console, transient=True, redirect_stdout=sys.stdout.isatty()
        ) as live,
        _logging_above(),
    ):
        while not ended.wait(_REDRAW_SECONDS):
            live.update(row(spinner))


@contextmanager
def _logging_above() -> Iterator[None]:
    """Let lines of the log stand above the line of progress, as `rich` lets those of `print`."""
    handlers = [
        handler
        for handler in logging.root.handlers
        if isinstance(handler, logging.StreamHandler) and handler.stream is sys.__stderr__
    ]
    with contextlib.ExitStack() as stack:
        for handler in handlers:
            stack.callback(handler.setStream, handler.setStream(sys.stderr) or sys.__stderr__)
        yield
