"""How a played hour went, without the luck of its outcomes: by what each decision is worth."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from babylon_tasks.simulation.game.hour import Hour
from babylon_tasks.simulation.game.personas import NOISE, ORACLE


@dataclass(frozen=True, slots=True)
class Standing:
    """Expected P&L of a decision in dollars, on the markets that the model was shown.

    `policy` is that of the actions which the model took; an answer that is no action earns 0. It is
    None in an hour without a model; `noise` and `oracle` are then about all markets that were
    shown. `decisions` counts the model's answers, `failed` those that are no action, `versions` the
    answers by version, or by the model's name where it has none.
    """

    policy: float | None
    noise: float
    oracle: float
    decisions: int
    failed: int
    versions: dict[str, int]


def standing(hour: Hour) -> Standing:
    """Return how an hour went for the model that played in it."""
    everyone = list(zip(hour.players, hour.decisions, strict=True))
    asked = [d for player, taken in everyone if player.persona is None for d in taken]
    shown = [d.market for d in asked] or [d.market for _, taken in everyone for d in taken]
    versions: dict[str, int] = {}
    for decision in asked:
        name = decision.answer.version or decision.answer.model
        versions[name] = versions.get(name, 0) + 1
    worth = (0.0 if d.action is None else d.market.value(d.action) for d in asked)
    return Standing(
        policy=_mean(worth) if asked else None,
        noise=_mean(map(NOISE.value, shown)),
        oracle=_mean(map(ORACLE.value, shown)),
        decisions=len(asked),
        failed=sum(decision.action is None for decision in asked),
        versions=versions,
    )


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return sum(found) / len(found)
