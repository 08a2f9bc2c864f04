"""Screens of 80 columns: sections of labelled lines, with colour where a terminal shows it."""

from __future__ import annotations

import os
import sys
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import click

from babylon_tasks.text import one_line

COLUMNS = 80
_INDENT = 2
_LABEL = 13  # columns from the indent to the text
_MOST_TEXT = 2000


@dataclass(frozen=True, slots=True)
class Line:
    """A labelled text, which may need several lines; `bad`: a person must do something.

    A `whole` one is never broken, so that a path can be copied, however long it is.
    """

    label: str
    text: str
    bad: bool = False
    whole: bool = False


@dataclass(frozen=True, slots=True)
class Section:
    """A title, and the lines below it."""

    title: str
    lines: Sequence[Line]


def under(title: str, parts: Iterable[tuple[str, Iterable[Line]]]) -> list[Section]:
    """Return the sections below a title; one that has no lines is left out."""
    made = [Section(name, list(lines)) for name, lines in parts]
    return [Section(title, []), *(section for section in made if section.lines)]


def colour_wanted() -> bool:
    """Tell whether standard output is a terminal that may have colour (https://no-color.org)."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR")


def write(sections: Iterable[Section], colour: bool) -> str:
    """Write sections one below the other; titles are bold, and bad lines red."""
    written = []
    for section in sections:
        written.append(click.style(section.title, bold=True) if colour else section.title)
        for line in section.lines:
            written += _wrapped(line, colour)
    return "\n".join(written)


def moment(at: datetime) -> str:
    """Write a time to the minute, in UTC."""
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M} UTC"


def dollars(usd: float) -> str:
    """Write a price; below a cent to a hundredth of one."""
    return f"${usd:.4f}" if 0 < usd < 0.01 else f"${usd:,.2f}"


def _wrapped(line: Line, colour: bool) -> list[str]:
    first = f"{'':{_INDENT}}{line.label:{_LABEL - 1}} "
    rest, text = f"{'':{_INDENT + _LABEL}}", one_line(line.text, _MOST_TEXT)
    texts = [(first + text).rstrip()]
    if not line.whole:
        texts = (
            textwrap.wrap(
                text,
                COLUMNS,
                initial_indent=first,
                subsequent_indent=rest,
                break_on_hyphens=False,
            )
            or texts
        )
    return [click.style(text, fg="red") for text in texts] if colour and line.bad else texts
