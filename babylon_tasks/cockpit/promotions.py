"""What `babylon doctor` says of the versions that serve: where promotion is paused."""

from __future__ import annotations

from babylon_tasks.settings import Settings
from babylon_tasks.store import heads, promotions
from babylon_tasks.store.migrate import require_applied
from babylon_tasks.work.fleet import Fleet

_HOLDER = "babylon doctor"


def promotion(settings: Settings) -> str:
    """Name the active lineages whose promotion a person has paused, and what waits there.

    Raises:
        UserError: A migration is missing.
        ServerUnavailable: Postgres does not answer.
    """
    require_applied(settings.postgres())
    fleet = Fleet.of_deployment(settings, _HOLDER)
    paused = []
    for context in fleet.active():
        name = context.lineage.name
        with fleet.database.transaction() as tx:
            pause = promotions.current_pause(tx, name)
            position = heads.positions(tx, [name])[name]
        if pause:
            paused.append(
                f"{name} is paused {pause}; it serves step {position.published_step} of "
                f"{position.step} (`babylon models resume`)"
            )
    return "; ".join(paused) or "every new step is promoted"
