"""Loads the named queries of `sql/*.sql`: `-- name --`, comment lines, then the query."""

from __future__ import annotations

import re
from importlib import resources
from typing import LiteralString, cast

_HEADER = re.compile(r"^-- ([a-z0-9_]+) --$", re.MULTILINE)


def load(*files: str) -> dict[str, LiteralString]:
    """Return the queries of each `sql/{file}.sql` by name."""
    folder = resources.files("babylon_tasks.store") / "sql"
    queries: dict[str, LiteralString] = {}
    for file in files:
        parts = _HEADER.split((folder / f"{file}.sql").read_text("utf-8"))[1:]
        # Our own files without any user's text, so as safe as literals in the code.
        queries |= {
            name: cast(LiteralString, body.strip())
            for name, body in zip(parts[::2], parts[1::2], strict=True)
        }
    return queries
