"""Reads and writes `rl.heads` and `rl.resets`: which step trains next, and which one serves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

from psycopg.rows import class_row

from babylon_tasks.errors import StaleClaim, UserError
from babylon_tasks.records.lineages import Lineage
from babylon_tasks.records.promotions import PromotionKind
from babylon_tasks.records.versions import Head
from babylon_tasks.store import promotions, shares
from babylon_tasks.store.database import Connection
from babylon_tasks.store.leases import Claim
from babylon_tasks.store.queries import load

_SQL = load("heads")


@dataclass(frozen=True, slots=True)
class Reset:
    """A row of `rl.resets`: a move of the head by hand."""

    from_step: int
    to_step: int
    why: str
    holder: str
    at: datetime


@dataclass(frozen=True, slots=True)
class Moved:
    """What a move of the head has changed: steps, each with the windows that it trained.

    `given_up` are not on the way to the head any more, `taken_back` are on it again.
    """

    published_step: int
    given_up: dict[int, list[str]]
    taken_back: dict[int, list[str]]


def ensure(connection: Connection, lineage: Lineage) -> Head:
    """Return the lineage's head; create it at the first call.

    Raises:
        UserError: The lineage started from another base model, or another revision of it.
    """
    name = lineage.name
    connection.execute(_SQL["ensure_head"], {"model_name": name, "base_model": lineage.base_model})
    row = read(connection, name)
    assert row is not None
    for setting, started_from, wanted in (
        ("BASE_MODEL", row.base_model, lineage.base_model),
        ("BASE_MODEL_REVISION", row.base_revision, lineage.base_revision),
    ):
        if started_from and wanted and started_from != wanted:
            raise UserError(
                f"model {name} was started from {started_from}, {setting} is {wanted}: "
                f"set {setting} back, or MODEL_NAME to a new name"
            )
    return row


def read(connection: Connection, model_name: str) -> Head | None:
    """Return the lineage's head, or None before its first claim."""
    with connection.cursor(row_factory=class_row(Head)) as cursor:
        return cursor.execute(_SQL["read_head"], {"model_name": model_name}).fetchone()


def hold(connection: Connection, model_name: str) -> None:
    """Lock the head until the transaction ends: nobody moves it, no step loses its files."""
    connection.execute(_SQL["hold_head"], {"model_name": model_name})


def lock(connection: Connection, claim: Claim) -> Head | None:
    """Lock the head until the transaction ends, and return it; None if the lease was lost."""
    if connection.execute(_SQL["lock_head"], _identity(claim)).fetchone() is None:
        return None
    return read(connection, claim.model_name)


def share(connection: Connection, model_name: str) -> None:
    """Keep the files of this lineage's steps, as far as they are there, until the end of `tx`."""
    connection.execute(_SQL["share_head"], {"model_name": model_name})


class Position(NamedTuple):
    """The step that trains next, and the one that serves."""

    step: int
    published_step: int


def positions(connection: Connection, names: Sequence[str]) -> dict[str, Position]:
    """Return the position of each of these lineages; 0 and 0 before its first claim."""
    rows = connection.execute(_SQL["head_positions"], {"names": list(names)}).fetchall()
    known = {row["model_name"]: Position(row["step"], row["published_step"]) for row in rows}
    return {name: known.get(name, Position(0, 0)) for name in names}


def forked_steps(connection: Connection, model_name: str) -> set[int]:
    """Return the steps that lineages were forked from, except retired ones at rest."""
    rows = connection.execute(_SQL["forked_steps"], {"model_name": model_name}).fetchall()
    return {row["step"] for row in rows}


def move(connection: Connection, claim: Claim, from_step: int, to_step: int, why: str) -> Moved:
    """Move the head, which is locked, to another step; return what this gives up and takes back.

    In the app's table the versions of given-up steps are archived, those of steps on the way to the
    head are not any more. Shares of given-up steps end.

    Raises:
        StaleClaim: The head is not at `from_step`; roll back.
    """
    values = {**_identity(claim), "from_step": from_step, "to_step": to_step}
    rows = connection.execute(_SQL["mark_path"], values).fetchall()
    head = connection.execute(_SQL["move_head"], values).fetchone()
    if head is None:
        raise StaleClaim(f"the head of {claim.model_name} moved meanwhile")
    promotions.move(
        connection,
        claim.model_name,
        head["published_step"],
        PromotionKind.RESET,
        (claim.holder, why),
    )
    given_up = [row["step"] for row in rows if row["given_up"]]
    shares.end(connection, claim.model_name, given_up, (claim.holder, f"reset: {why}"))
    models = {"published_step": head["published_step"], "changed": [row["step"] for row in rows]}
    promotions.hold_versions(connection, claim.model_name, models["changed"])
    connection.execute(_SQL["change_models"], {**values, **models})
    connection.execute(_SQL["insert_reset"], {**values, "why": why, "holder": claim.holder})
    return Moved(
        published_step=head["published_step"],
        given_up={row["step"]: row["window_ids"] for row in rows if row["given_up"]},
        taken_back={row["step"]: row["window_ids"] for row in rows if not row["given_up"]},
    )


def was_reset(connection: Connection, claim: Claim) -> bool:
    """Tell whether the move under this claim was committed."""
    return connection.execute(_SQL["reset_of_token"], _identity(claim)).fetchone() is not None


def advance(connection: Connection, claim: Claim, from_step: int, to_step: int) -> bool:
    """Move the head from a step to one that follows it; False if it moved or the lease was lost."""
    values = {**_identity(claim), "expected_step": from_step, "step": to_step}
    return connection.execute(_SQL["advance_head"], values).rowcount == 1


def resets(connection: Connection, model_name: str) -> list[Reset]:
    """Return the moves of a lineage's head, newest first."""
    with connection.cursor(row_factory=class_row(Reset)) as cursor:
        return cursor.execute(_SQL["list_resets"], {"model_name": model_name}).fetchall()


def _identity(claim: Claim) -> dict[str, str | int]:
    return {"model_name": claim.model_name, "token": claim.lease.token}
