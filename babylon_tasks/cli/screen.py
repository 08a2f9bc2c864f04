"""Screens of 80 columns: sections of labelled lines, with colour where a terminal shows it."""

from __future__ import annotations

import os
import sys
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from unicodedata import east_asian_width

import click

from babylon_tasks.text import one_line

COLUMNS = 80
_INDENT = 2
_LABEL = 13  # columns from the indent to the text
_MOST_LABEL = 60  # letters; a lineage's name may be one
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
        title = one_line(section.title, COLUMNS)
        written.append(click.style(title, bold=True) if colour else title)
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
    label = one_line(line.label, _MOST_LABEL)
    first = f"{'':{_INDENT}}{label:{_LABEL - 1}} "
    rest, text = f"{'':{_INDENT + _LABEL}}", one_line(line.text, _MOST_TEXT)
    texts = [(first + text).rstrip()]
    if not line.whole:
        texts = _wrapped_text(text, first, rest) or texts
    return [click.style(text, fg="red") for text in texts] if colour and line.bad else texts


def _wrapped_text(text: str, first: str, rest: str) -> list[str]:
    """Break a text into lines of at most COLUMNS columns; a wide letter takes two of them."""
    # textwrap counts letters. A break between a letter and its NUL makes one line a column longer.
    spaced = "".join(f"\0{c}" if east_asian_width(c) in "WF" else c for c in text)
    columns = COLUMNS - 1 if len(spaced) > len(text) else COLUMNS
    lines = textwrap.wrap(
        spaced, columns, initial_indent=first, subsequent_indent=rest, break_on_hyphens=False
    )
    return [line.replace("\0", "") for line in lines]
