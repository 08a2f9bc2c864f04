"""Reads `rl.steps.recipe`."""

from __future__ import annotations

from babylon_tasks.records.recipes import Recipe, read_recipe
from babylon_tasks.store.database import Connection
from babylon_tasks.store.queries import load
from babylon_tasks.store.steps import Step

_SQL = load("recipes")


def read(connection: Connection, step: Step) -> Recipe | None:
    """Return the recipe of a step; None if release 0.1.0 made it.

    Raises:
        UserError: It was written by a newer release.
    """
    row = connection.execute(
        _SQL["read_recipe"], {"model_name": step.model_name, "step": step.step}
    ).fetchone()
    return read_recipe(row["recipe"]) if row else None
