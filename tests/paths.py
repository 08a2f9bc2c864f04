"""The way from the root of a lineage's tree to its head, read without the SQL that is tested."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from babylon_tasks.work.context import Context
from tests.rows import query

Row = dict[str, Any]


def way(
    steps: Mapping[tuple[str, int], Row], origins: Mapping[str, Row], name: str, step: int
) -> Iterator[Row]:
    """Yield the steps from the head to the root, of whatever lineage they are.

    Raises:
        LookupError: A step on the way has no row.
    """
    while step:
        while (origins[name]["forked_step"] or 0) >= step:
            name = origins[name]["forked_from"]
        row = steps[name, step]
        yield row
        step = step - 1 if row["parent_step"] is None else row["parent_step"]


def lineage_rows(context: Context) -> dict[str, Row]:
    """Return every lineage by name: its origin and its head; MODEL_NAME also without a row."""
    rows = query(
        context,
        """SELECT COALESCE(l.name, h.model_name) AS name, l.forked_from, l.forked_step, h.step
             FROM rl.lineages l FULL JOIN rl.heads h ON h.model_name = l.name
            ORDER BY 1""",
    )
    none = {"name": context.lineage.name, "forked_from": None, "forked_step": None, "step": None}
    return {none["name"]: none} | {row["name"]: row for row in rows}


def path_to_head(context: Context, name: str) -> list[Row]:
    """Return the steps on the way from the root to the lineage's head, through forks.

    Raises:
        LookupError: A step on the way has no row.
    """
    steps = {
        (row["model_name"], row["step"]): row for row in query(context, "SELECT * FROM rl.steps")
    }
    origins = lineage_rows(context)
    return list(way(steps, origins, name, origins[name]["step"] or 0))[::-1]
