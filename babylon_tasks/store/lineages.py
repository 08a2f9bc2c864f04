"""Reads and writes `rl.lineages` and `rl.turns`."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Literal

from psycopg.rows import class_row

from babylon_tasks.records.lineages import Lineage, LineageState
from babylon_tasks.settings import Settings
from babylon_tasks.store import experiments, transitions
from babylon_tasks.store.database import Connection, jsonb
from babylon_tasks.store.queries import load

_SQL = load("lineages")

Stage = Literal["score", "train"]


@dataclass(frozen=True, slots=True)
class DueWork:
    """Due work that nobody holds: windows to score, a step to train, lineages to publish.

    `publish` has those of which something is to serve, or an experiment has something to decide.
    """

    due: list[str]
    train: bool
    publish: list[str]


@dataclass(frozen=True, slots=True)
class LineageListing:
    """A line of `babylon lineages list`; `weight` is the text of its override, if any.

    `due`, `scored`, `trained` and `failed` count the windows in that state.
    """

    name: str
    state: str
    base_model: str
    primary: bool
    own_settings: bool
    forked_from: str | None
    forked_step: int | None
    weight: str | None
    step: int
    published_step: int
    promotion_paused_at: datetime | None
    due: int
    scored: int
    trained: int
    failed: int


def ensure(connection: Connection, settings: Settings, holder: str) -> None:
    """Make the row of MODEL_NAME, or note in it whether it is the primary one."""
    written = connection.execute(
        _SQL["ensure_lineage"],
        {
            "name": settings.model_name,
            "base_model": settings.base_model,
            "base_revision": settings.base_model_revision,
            "is_primary": settings.primary,
            "holder": holder,
        },
    ).rowcount
    if written:  # each claim of a step comes here, mostly to find the row as it should be
        connection.execute(_SQL["first_turn"], {"name": settings.model_name})


def create(connection: Connection, new: Lineage) -> bool:
    """Make a lineage's row and its head; False, and roll back, if the name is taken.

    A fork inherits the windows that its ancestors trained on the way to the forked step.
    """
    values = {**asdict(new), "config": jsonb(dict(new.config))}
    if connection.execute(_SQL["create_lineage"], values).fetchone() is None:
        return False
    head = {"name": new.name, "step": new.forked_step or 0, "base_model": new.base_model}
    if connection.execute(_SQL["create_head"], head).fetchone() is None:
        return False  # a worker of release 0.1.0 was faster
    connection.execute(_SQL["first_turn"], {"name": new.name})
    if new.forked_from is not None:
        transitions.inherit(connection, new)
    return True


def read(connection: Connection, names: Collection[str] | None = None) -> list[Lineage]:
    """Return all lineages by name, or the named ones that exist."""
    with connection.cursor(row_factory=class_row(Lineage)) as cursor:
        return cursor.execute(
            _SQL["read_lineages"], {"names": None if names is None else list(names)}
        ).fetchall()


def listing(connection: Connection) -> list[LineageListing]:
    """Return all lineages by name, with their heads and the number of their windows."""
    with connection.cursor(row_factory=class_row(LineageListing)) as cursor:
        return cursor.execute(_SQL["list_lineages"]).fetchall()


def lock(connection: Connection, name: str) -> Lineage | None:
    """Lock a lineage's row until the transaction ends, and return it."""
    with connection.cursor(row_factory=class_row(Lineage)) as cursor:
        return cursor.execute(_SQL["lock_lineage"], {"name": name}).fetchone()


def change(connection: Connection, changed: Lineage, by: str) -> None:
    """Write the state, overrides, `own_settings` and `primary` of a lineage that is locked.

    Of one that is not active nothing is scored, so an experiment of it would tell nothing: it ends.
    For that the head must be locked, before the lineage.
    """
    connection.execute(
        _SQL["change_lineage"],
        {
            "name": changed.name,
            "state": changed.state,
            "config": jsonb(dict(changed.config)),
            "own_settings": changed.own_settings,
            "is_primary": changed.primary,
            "changed_by": by,
        },
    )
    if changed.state != LineageState.ACTIVE:
        experiments.stop(connection, changed.name, (by, f"the lineage is {changed.state}"))


def pin_revision(connection: Connection, name: str, base_revision: str) -> None:
    """Note which weights the lineage's first step started from; do nothing if that is known."""
    connection.execute(_SQL["pin_revision"], {"name": name, "base_revision": base_revision})


def has_own_step(connection: Connection, name: str) -> bool:
    """Tell whether the lineage has a step of its own, inherited ones not counted."""
    row = connection.execute(_SQL["has_own_step"], {"name": name}).fetchone()
    assert row is not None
    return bool(row["has"])


def take_turn(
    connection: Connection,
    stage: Stage,
    lineages: Mapping[str, Settings],
    judged: Sequence[str],
) -> str | None:
    """Return the lineage whose turn it is among those that wait for this stage, or None.

    It has taken its turn then: others are next. `lineages` has the settings of each by its name,
    `judged` the scorers that ask a judge.
    """
    settings = lineages.values()
    row = connection.execute(
        _SQL[f"take_turn_to_{stage}"],
        {
            "names": list(lineages),
            "weights": [each.lineage_weight for each in settings],
            "scorings": [each.scoring for each in settings],
            "judged": list(judged),
        },
    ).fetchone()
    return row["name"] if row else None


def sweep(connection: Connection, lineages: Mapping[str, Settings], limit: int) -> DueWork:
    """Return the due work of these lineages that nobody holds, at most `limit` windows.

    `lineages` has the settings of each by its name.
    """
    row = connection.execute(_SQL["sweep"], {"names": list(lineages), "limit": limit}).fetchone()
    assert row is not None
    modes = {name: settings.publish for name, settings in lineages.items()}
    return DueWork(row["due"], row["train"], experiments.to_decide(connection, modes))
