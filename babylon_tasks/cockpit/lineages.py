"""The list of lineages, and the story of one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from babylon_tasks.cockpit import gate, running, versions
from babylon_tasks.cockpit.running import Work
from babylon_tasks.errors import ServerUnavailable, UserError
from babylon_tasks.records.exams import Exam
from babylon_tasks.records.lineages import Lineage
from babylon_tasks.records.promotions import Pause
from babylon_tasks.records.windows import State
from babylon_tasks.settings import Settings
from babylon_tasks.store import exams, gates, heads, leases, lineages, promotions, steps
from babylon_tasks.store import windows as window_rows
from babylon_tasks.store.heads import Reset
from babylon_tasks.store.lineages import LineageListing
from babylon_tasks.store.promotions import Move
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
    windows: dict[State, int]
    running: Sequence[Work]
    gate: Sequence[str]  # sentences, as `cockpit.gate.sentences`
    publish: str  # PUBLISH as it is in force
    states: dict[int, str]  # of the last steps, as `versions.states`
    exams: dict[int, Exam]  # of the last steps
    served: Move | None  # by what the served step came to serve


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
    settings = _in_force(fleet, name)
    with fleet.database.transaction() as tx:
        rows = fleet.lineages(tx)
        lineage = next((row for row in rows if row.name == name), None)
        if lineage is None:
            raise unknown_lineage(name)
        position = heads.positions(tx, [name])[name]
        last = steps.listing(tx, name)[:_LAST_STEPS]
        works = running.in_order(leases.running(tx))
        return LineageStory(
            lineage=lineage,
            step=position.step,
            published_step=position.published_step,
            paused=promotions.current_pause(tx, name),
            trained_by=leases.holder(tx, f"model/{name}"),
            forks=[row for row in rows if row.forked_from == name],
            steps=last,
            resets=heads.resets(tx, name),
            windows=window_rows.count_states(tx, name),
            running=[work for work in works if work.doing.lineage == name],
            gate=gate.sentences(gates.read(tx, [name])[name], settings),
            publish=settings.publish,
            states=versions.states(tx, name, last),
            exams={exam.step: exam for exam in exams.read(tx, name, [each.step for each in last])},
            served=promotions.last_move(tx, name),
        )


def _in_force(fleet: Fleet, name: str) -> Settings:
    """Return the lineage's settings; the deployment's if one of its overrides is refused."""
    try:
        return fleet.context(name).settings
    except ServerUnavailable:
        raise
    except UserError:
        return fleet.settings
