"""Moves `rl.heads.published_step`; reads and writes `rl.promotions`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from psycopg.rows import class_row

from babylon_tasks.records.promotions import Pause, Promotion, PromotionKind
from babylon_tasks.store.database import Connection
from babylon_tasks.store.queries import load

_SQL = load("promotions")


@dataclass(frozen=True, slots=True)
class Move:
    """The last change of what a lineage serves: to which step, by whom, why and when."""

    kind: PromotionKind
    step: int
    version: str | None
    holder: str
    why: str
    at: datetime


def publish(tx: Connection, model_name: str, step: int, by: tuple[str, str]) -> list[str]:
    """Let a step serve by itself; return the versions that came to serve or before it.

    The head must be locked; `by` says who, and why. None while automatic promotion is paused.
    """
    holder, why = by
    values = {"model_name": model_name, "step": step, "holder": holder, "why": why}
    rows = tx.execute(_SQL["publish"], values).fetchall()
    return [row["version"] for row in rows if row["version"]]


def hold_versions(tx: Connection, model_name: str, steps: Sequence[int]) -> None:
    """Lock the app's rows of these steps before one is written, with the head locked.

    The app's statements hold their row while they wait for the head: to wait for theirs would be a
    deadlock.

    Raises:
        psycopg.errors.LockNotAvailable: The app has held one for half a second. To the caller of
            the transaction it is a ServerUnavailable.
    """
    tx.execute(_SQL["hold_versions"], {"model_name": model_name, "steps": list(steps)})


def move(
    tx: Connection, model_name: str, to_step: int, kind: PromotionKind, by: tuple[str, str]
) -> None:
    """Let a step serve whose files are there, with the head locked; `by` says who, and why.

    A rollback pauses automatic promotion.
    """
    holder, why = by
    tx.execute(
        _SQL["move"],
        {"model_name": model_name, "to_step": to_step, "kind": kind, "holder": holder, "why": why},
    )


def pause(tx: Connection, model_name: str, holder: str, why: str) -> bool:
    """Stop automatic promotion; False if it was paused already."""
    values = {"model_name": model_name, "holder": holder, "why": why}
    return tx.execute(_SQL["pause"], values).rowcount == 1


def resume(tx: Connection, model_name: str, holder: str, why: str) -> bool:
    """Let new steps be promoted by themselves again; False if they are already."""
    values = {"model_name": model_name, "holder": holder, "why": why}
    return tx.execute(_SQL["resume"], values).rowcount == 1


def current_pause(tx: Connection, model_name: str) -> Pause | None:
    """Return since when automatic promotion is paused, by whom and why; None if it is not."""
    with tx.cursor(row_factory=class_row(Pause)) as cursor:
        return cursor.execute(_SQL["current_pause"], {"model_name": model_name}).fetchone()


def history(tx: Connection, model_name: str) -> list[Promotion]:
    """Return everything that was done to what a lineage serves, newest first."""
    with tx.cursor(row_factory=class_row(Promotion)) as cursor:
        return cursor.execute(_SQL["history"], {"model_name": model_name}).fetchall()


def last_move(tx: Connection, model_name: str) -> Move | None:
    """Return the last change of what a lineage serves; None if it never served anything else."""
    with tx.cursor(row_factory=class_row(Move)) as cursor:
        return cursor.execute(_SQL["last_move"], {"model_name": model_name}).fetchone()


def previous_step(tx: Connection, model_name: str) -> int | None:
    """Return the step that a rollback serves: the last one before the promoted one that can be.

    It served last of the older ones. None if the promoted one is the lineage's first.
    """
    row = tx.execute(_SQL["previous_step"], {"model_name": model_name}).fetchone()
    return None if row is None else row["step"]
