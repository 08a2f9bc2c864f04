"""The list of lineages, and the story of one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from babylon_tasks.records.lineages import Lineage
from babylon_tasks.records.promotions import Pause
from babylon_tasks.store import heads, leases, lineages, promotions, steps
from babylon_tasks.store.heads import Reset
from babylon_tasks.store.lineages import LineageListing
from babylon_tasks.store.steps import StepListing
from babylon_tasks.work.fleet import Fleet, unknown_lineage

_LAST_STEPS = 10


@dataclass(frozen=True, slots=True)
class LineageStory:
    """All that the database knows about one lineage, with its last steps."""

    lineage: Lineage
    step: int
    published_step: int
    paused: Pause | None  # of promotion
    trained_by: str | None  # who holds it now
    forks: Sequence[Lineage]
    steps: Sequence[StepListing]
    resets: Sequence[Reset]


def list_lineages(fleet: Fleet) -> list[LineageListing]:
    """Return all lineages by name.

    Raises:
        ServerUnavailable: Postgres does not answer.
    """
    with fleet.database.transaction() as tx:
        fleet.lineages(tx)  # MODEL_NAME has a row from now on
        return lineages.listing(tx)


def read_lineage_story(fleet: Fleet, name: str) -> LineageStory:
    """Read one lineage's story.

    Raises:
        UserError: There is no such lineage.
        ServerUnavailable: Postgres does not answer.
    """
    with fleet.database.transaction() as tx:
        rows = fleet.lineages(tx)
        lineage = next((row for row in rows if row.name == name), None)
        if lineage is None:
            raise unknown_lineage(name)
        position = heads.positions(tx, [name])[name]
        return LineageStory(
            lineage,
            position.step,
            position.published_step,
            promotions.current_pause(tx, name),
            leases.holder(tx, f"model/{name}"),
            [row for row in rows if row.forked_from == name],
            steps.listing(tx, name)[:_LAST_STEPS],
            heads.resets(tx, name),
        )
