"""Reads what the endpoint serves: each lineage's position, and the files of its steps."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from psycopg.rows import class_row

from babylon_tasks.records.shares import Share
from babylon_tasks.store.database import Connection
from babylon_tasks.store.queries import load

_SQL = load("serving")


@dataclass(frozen=True, slots=True)
class ServingRow:
    """What one lineage serves now.

    `published_step` is what its name answers with (0: the base model), `step` its newest one.
    `shares` has the share in force and the next one, as far as there are; `share_at` of these with
    the time tells which counts. `steps_seen` is another text as soon as `steps_to_serve` returns
    something else.
    """

    name: str
    base_model: str
    base_revision: str | None
    step: int
    published_step: int
    promotion_paused_at: datetime | None
    shares: tuple[Share, ...]
    steps_seen: str


@dataclass(frozen=True, slots=True)
class StepToServe:
    """A step that can be asked for, until its files are removed; `model_name` made it.

    `inference_name` is the version's name at W&B, if W&B has its weights.
    """

    model_name: str
    step: int
    version: str
    checkpoint: str
    inference_name: str | None
    removed_at: datetime | None


def serving_rows(tx: Connection) -> list[ServingRow]:
    """Return every lineage that is not retired, by name, in one query.

    One that workers of release 0.1.0 made, which has a head alone, is among them.
    """
    return [
        ServingRow(
            name=row["name"],
            base_model=row["base_model"],
            base_revision=row["base_revision"],
            step=row["step"],
            published_step=row["published_step"],
            promotion_paused_at=row["promotion_paused_at"],
            shares=tuple(
                Share(
                    row[f"{which}_starts_at"],
                    row[f"{which}_step"],
                    row[f"{which}_percent"],
                    row[f"{which}_draw"],
                )
                for which in ("share", "next")
                if row[f"{which}_starts_at"] is not None
            ),
            steps_seen=row["steps_seen"],
        )
        for row in tx.execute(_SQL["serving_rows"]).fetchall()
    ]


def steps_to_serve(tx: Connection, model_name: str) -> list[StepToServe]:
    """Return the steps of a lineage by number, with those that it inherited up to its fork.

    Those that were given up are among them, since they can be asked for by their number.
    """
    with tx.cursor(row_factory=class_row(StepToServe)) as cursor:
        return cursor.execute(_SQL["steps_to_serve"], {"model_name": model_name}).fetchall()
