"""Leases: the right to write until a time of the database's clock, with a growing token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import msgspec
from psycopg.rows import class_row

from babylon_tasks.errors import LeaseLost
from babylon_tasks.records.doing import Doing
from babylon_tasks.store.database import Connection
from babylon_tasks.store.queries import load

_SQL = load("leases")


@dataclass(frozen=True, slots=True)
class Lease:
    """A claim on a resource: `model/{name}`, `judge/{model}` or `window/{model}/{window id}`."""

    resource: str
    token: int


@dataclass(frozen=True, slots=True)
class Claim:
    """The identity of a writer: its model, its holder name and its lease."""

    model_name: str
    holder: str
    lease: Lease


@dataclass(frozen=True, slots=True)
class LiveLease:
    """A lease that somebody holds; it runs out after `seconds` if nobody renews it."""

    resource: str
    holder: str
    token: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Running:
    """A lease that somebody holds, since when, and what they do, if they have said it."""

    resource: str
    holder: str
    token: int
    since: datetime
    doing: Doing | None


def judge_of(model_name: str) -> str:
    """Return the resource that whoever asks a model's judge holds."""
    return f"judge/{model_name}"


def acquire(
    connection: Connection, resource: str, holder: str, lease_seconds: float
) -> Lease | None:
    """Take the lease; None if another holder has it."""
    row = connection.execute(
        _SQL["acquire_lease"],
        {"resource": resource, "holder": holder, "lease_seconds": lease_seconds},
    ).fetchone()
    return Lease(resource, row["token"]) if row else None


def next_token(connection: Connection, lease: Lease, lease_seconds: float) -> Lease:
    """Put the lease under a new token, so that no two attempts share one.

    Raises:
        LeaseLost: The lease ran out or has another holder.
    """
    row = connection.execute(
        _SQL["next_token"],
        {"resource": lease.resource, "token": lease.token, "lease_seconds": lease_seconds},
    ).fetchone()
    if row is None:
        raise LeaseLost(f"the lease on {lease.resource} ran out or went to another holder")
    return Lease(lease.resource, row["token"])


def renew(
    connection: Connection,
    leases: Sequence[Lease],
    lease_seconds: float,
    *,
    ran_out_too: bool = False,
    doing: Doing | None = None,
) -> None:
    """Extend the leases; with `ran_out_too` also those that ran out and that nobody took.

    `doing` says what the holder does with them.

    Raises:
        LeaseLost: One of them has another holder, or ran out.
    """
    renewed = connection.execute(
        _SQL["renew_leases"],
        {
            **_columns(leases),
            "lease_seconds": lease_seconds,
            "ran_out_too": ran_out_too,
            "doing": None if doing is None else msgspec.json.encode(doing).decode(),
        },
    ).rowcount
    if renewed != len(leases):
        names = ", ".join(lease.resource for lease in leases)
        raise LeaseLost(f"the lease on {names} ran out or went to another holder")


def release(connection: Connection, leases: Sequence[Lease]) -> None:
    """Give the leases back; leases that already ran out are ignored."""
    connection.execute(_SQL["release_leases"], _columns(leases))


def live(connection: Connection) -> list[LiveLease]:
    """Return the leases on models, judges and windows that somebody holds, of all lineages."""
    with connection.cursor(row_factory=class_row(LiveLease)) as cursor:
        return cursor.execute(_SQL["live_leases"]).fetchall()


def running(connection: Connection) -> list[Running]:
    """Return who works on what now, of all lineages, who began first comes first."""
    rows = connection.execute(_SQL["running"]).fetchall()
    return [Running(**{**row, "doing": _doing(row["doing"])}) for row in rows]


def _doing(text: str | None) -> Doing | None:
    """Read what a holder says; None where a later release says it in another way."""
    try:
        return None if text is None else msgspec.json.decode(text, type=Doing)
    except msgspec.DecodeError:  # also ValidationError
        return None


def holder(connection: Connection, resource: str) -> str | None:
    """Return who holds the lease on a resource now, or None."""
    row = connection.execute(_SQL["lease_holder"], {"resource": resource}).fetchone()
    return str(row["holder"]) if row else None


def _columns(leases: Sequence[Lease]) -> dict[str, list[str] | list[int]]:
    return {"resources": [x.resource for x in leases], "tokens": [x.token for x in leases]}
