"""Reads the way from a step to its root in the tree of `rl.steps`."""

from __future__ import annotations

from dataclasses import dataclass

from psycopg.rows import class_row

from babylon_tasks.store.database import Connection
from babylon_tasks.store.queries import load

_SQL = load("step_paths")


@dataclass(frozen=True, slots=True)
class PathStep:
    """A step on the way, with what it was trained on; `model_name` is that of its row."""

    model_name: str
    step: int
    version: str
    window_ids: list[str]
    trajectories: int
    trainable_tokens: int


def read(connection: Connection, model_name: str, step: int) -> list[PathStep]:
    """Return a step, its parent, and so on to the first step; empty for the base model."""
    with connection.cursor(row_factory=class_row(PathStep)) as cursor:
        return cursor.execute(
            _SQL["path_of_step"], {"model_name": model_name, "step": step}
        ).fetchall()
