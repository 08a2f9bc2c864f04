"""What `babylon doctor` looks at in the steps: whether they still move their policy."""

from __future__ import annotations

from collections.abc import Sequence

from babylon_tasks.errors import UserError
from babylon_tasks.records.movement import LEAST_POLICY_CHANGE, STILL_STEPS, Movement
from babylon_tasks.settings import Settings
from babylon_tasks.store import movements
from babylon_tasks.store.migrate import require_applied
from babylon_tasks.work.fleet import Fleet

_HOLDER = "babylon doctor"

# An update's advantages have a mean magnitude of 1. From here on the KL penalty takes as much of a
# token's advantage as it may have from its reward.
_STRONG_PENALTY = 1.0


def learning(settings: Settings) -> str:
    """Look for active lineages whose last steps moved nothing.

    Raises:
        UserError: There is one; the error says which, and which settings to change.
        ServerUnavailable: Postgres does not answer.
    """
    require_applied(settings.postgres())
    fleet = Fleet.of_deployment(settings, _HOLDER)
    still, moving = [], []
    for context in fleet.active():
        name = context.lineage.name
        with fleet.database.transaction() as tx:
            last = movements.newest(tx, name, STILL_STEPS)
        if len(last) == STILL_STEPS and all(one.stands_still for one in last):
            still.append(f"{name}: {_advice(last, context.settings)}")
        elif last and last[0].policy_change is not None:
            moving.append(f"{name}: step {last[0].step} by {last[0].policy_change:.3g} nats")
    if still:
        raise UserError("; ".join(still))
    return "; ".join(moving) or "no step yet that says how far it moved its policy"


def _advice(last: Sequence[Movement], settings: Settings) -> str:
    """Say how little the steps moved, and the values in force of the settings that hold them."""
    most = max(one.policy_change or 0.0 for one in last)
    newest = last[0]
    rate = settings.learning_rate or newest.learning_rate
    now = "by the model's size" if rate is None else f"{rate:g}"
    if settings.learning_rate is None and rate is not None:
        now += ", by the model's size"
    advice = [f"raise LEARNING_RATE (now {now})"]
    if newest.step_share is not None and newest.step_share < 1:
        advice = [f"raise MAX_POLICY_CHANGE (now {settings.max_policy_change:g}), the limit"]
    if settings.passes == 1:
        advice.append("PASSES (now 1)")
    if settings.kl_penalty * abs(newest.kl or 0.0) >= _STRONG_PENALTY:
        advice.append(f"or lower KL_PENALTY (now {settings.kl_penalty:g})")
    return (
        f"the last {len(last)} steps moved the log-probability of an answer by {most:.2g} nats at "
        f"most, less than {LEAST_POLICY_CHANGE:g}: {', '.join(advice)}"
    )
