"""Reads and writes `rl.shares`: second versions that answer a part of the agents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from psycopg.rows import class_row

from babylon_tasks.store.database import Connection
from babylon_tasks.store.queries import load

_SQL = load("shares")


@dataclass(frozen=True, slots=True)
class ShareListing:
    """A row of `rl.shares`; `ends_at` is when the next one starts, None if there is none."""

    starts_at: datetime
    ends_at: datetime | None
    step: int
    percent: float
    draw: str | None
    holder: str
    why: str
    at: datetime


def start(
    tx: Connection,
    model_name: str,
    step: int,
    percent: float,
    by: tuple[str, str],
    draw: str | None = None,
) -> datetime:
    """Let a step answer so many percent of the agents from the next window on; return its start.

    One that was to start then is replaced. `by` says who, and why. With `draw` the agents are drawn
    anew for each window, by this text.
    """
    holder, why = by
    values = {"model_name": model_name, "step": step, "percent": percent, "draw": draw}
    row = tx.execute(_SQL["start_share"], {**values, "holder": holder, "why": why}).fetchone()
    assert row is not None
    starts_at: datetime = row["starts_at"]
    return starts_at


def end(
    tx: Connection,
    model_name: str,
    steps: Sequence[int],
    by: tuple[str, str],
    draw: str | None = None,
) -> None:
    """End the shares of these steps, and those of `draw`, at once: those that are to start too.

    `by` is as in `start`.
    """
    holder, why = by
    values = {"model_name": model_name, "steps": list(steps), "draw": draw}
    tx.execute(_SQL["end_shares"], {**values, "holder": holder, "why": why})


def listing(tx: Connection, model_name: str) -> list[ShareListing]:
    """Return the shares of a lineage, newest first."""
    with tx.cursor(row_factory=class_row(ShareListing)) as cursor:
        return cursor.execute(_SQL["list_shares"], {"model_name": model_name}).fetchall()


def in_force(tx: Connection, model_name: str) -> list[ShareListing]:
    """Return the share that counts now, and the one that is to start, as far as there are."""
    with tx.cursor(row_factory=class_row(ShareListing)) as cursor:
        return cursor.execute(_SQL["shares_in_force"], {"model_name": model_name}).fetchall()


def shared_steps(tx: Connection, model_name: str) -> set[int]:
    """Return the steps that have a share now or are to have one; their files stay."""
    rows = tx.execute(_SQL["shared_steps"], {"model_name": model_name}).fetchall()
    return {row["step"] for row in rows}
