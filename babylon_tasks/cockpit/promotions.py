"""What `babylon doctor` says of the versions that are to serve: what waits, and for what."""

from __future__ import annotations

from babylon_tasks.cockpit import gate
from babylon_tasks.errors import UserError
from babylon_tasks.records.lineages import LineageState
from babylon_tasks.settings import Settings
from babylon_tasks.store import gates, heads, promotions
from babylon_tasks.store.migrate import require_applied
from babylon_tasks.work.context import Context
from babylon_tasks.work.fleet import Fleet

_HOLDER = "babylon doctor"

_MODES = {
    "always": "every new step is promoted",
    "gate": "every step that passes its exam is promoted",
    "manual": "steps are promoted by hand alone",
}


def promotion(settings: Settings) -> str:
    """Say how the steps of the lineages come to serve, and which wait.

    Raises:
        UserError: The gate has paused a lineage, or a migration is missing.
        ServerUnavailable: Postgres does not answer.
    """
    require_applied(settings.postgres())
    fleet = Fleet.of_deployment(settings, _HOLDER)
    _require_none_paused(fleet)
    contexts = fleet.active()
    said = [
        f"{context.lineage.name}: {', '.join(each)}"
        for context in contexts
        if (each := _waiting(context))
    ]
    modes = {context.lineage.name: _MODES[context.settings.publish] for context in contexts}
    if not said and len(set(modes.values())) > 1:
        said = [f"{name}: {mode}" for name, mode in modes.items()]
    return "; ".join(said) or next(iter(modes.values()), "no lineage is active")


def _require_none_paused(fleet: Fleet) -> None:
    """Require that no lineage of these workers rests because its steps failed their exams.

    Raises:
        UserError: One does; the error says how the last exam ended.
    """
    with fleet.database.transaction() as tx:
        names = [
            row.name
            for row in fleet.lineages(tx)
            if row.state == LineageState.PAUSED
            and (row.name == fleet.settings.model_name or not row.own_settings)
        ]
        paused = [each for each in gates.read(tx, names).values() if each.paused_at]
    if paused:
        said = (
            f"{each.lineage}: {', '.join(gate.sentences(each, fleet.settings))}" for each in paused
        )
        raise UserError("; ".join(said))


def _waiting(context: Context) -> list[str]:
    """Return what waits in one lineage, and for what."""
    name = context.lineage.name
    with context.database.transaction() as tx:
        pause = promotions.current_pause(tx, name)
        position = heads.positions(tx, [name])[name]
        gated = gates.read(tx, [name])[name]
    said = list(gate.waiting(gated, context.settings))
    if pause:
        said.append(
            f"promotion is paused {pause}; it serves step {position.published_step} of "
            f"{position.step} (`babylon models resume`)"
        )
    return said
