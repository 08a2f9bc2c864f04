"""Text of unknown origin as one line that any log, table or terminal can show."""

from __future__ import annotations

import re
import traceback
from pathlib import Path

# How a message ends that quotes an error which nobody raised on purpose.
PLACE = re.compile(r" \((\w+ at [\w./-]+:\d+)\)$")

_ROOT = Path(__file__).resolve().parents[1]
_OURS = ("babylon_tasks", "workers")


def one_line(text: str, limit: int = 500) -> str:
    """Return at most `limit` characters on one line, each of them printable.

    Error messages quote the text that they refuse. It may hold NULs (Postgres cannot store them),
    lone surrogates (UTF-8 cannot carry them), escape sequences (a terminal would obey them) and
    line breaks (they would forge a line of the log). All of them become U+FFFD or a space.
    """
    start = text[: 4 * limit]
    words = " ".join(start.split())
    line = "".join(c if c.isprintable() else "\ufffd" for c in words)
    if len(line) > limit or len(start) < len(text):
        return line[: limit - 1] + "…"
    return line


def first_line(error: Exception) -> str:
    """Return the first line of an error's text, or its type's name if the text is empty."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def place_of(error: BaseException) -> str:
    """Return "TYPE at FILE:LINE": where in our code an error came up, or where else."""
    places = []
    for frame in traceback.extract_tb(error.__traceback__):
        file = Path(frame.filename)
        ours = file.is_relative_to(_ROOT) and file.relative_to(_ROOT).parts[0] in _OURS
        places.append((ours, file.relative_to(_ROOT) if ours else file.name, frame.lineno))
    _, file_name, line = next(
        (place for place in reversed(places) if place[0]), places[-1] if places else (False, "?", 0)
    )
    return f"{type(error).__name__} at {file_name}:{line}"
