"""Text of unknown origin as one line that any log, table or terminal can show."""

from __future__ import annotations


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
