"""Who plays by default, and what each persona earns on average, exactly.

`python -m babylon_tasks.simulation.game.population` prints the table of docs/simulating.md.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

from babylon_tasks.simulation.agents import NAMES
from babylon_tasks.simulation.game.hour import Player
from babylon_tasks.simulation.game.market import LURE, SIGNALS, Kind, Market, Rules, chance_up
from babylon_tasks.simulation.game.personas import NOISE, ORACLE, Persona, Rule

_COUNTS: tuple[tuple[int, Rule, float], ...] = (
    (4, "noise", 1.0), (3, "momentum", 0.8), (3, "contrarian", 0.8), (4, "careful", 0.5),
    (3, "reckless", 0.8), (2, "failing", 0.5),
)  # fmt: skip
POPULATION = tuple(Persona(rule, skill) for count, rule, skill in _COUNTS for _ in range(count))
POLICIES = 13  # agents that the model plays

_DOES: dict[Rule, str] = {
    "noise": "any action",
    "momentum": "goes with the price",
    "contrarian": "goes against the price",
    "careful": "knows the odds; takes the best action where it pays well, else none",
    "reckless": f"goes with the {LURE}, which is the lure",
    "failing": "breaks its calls",
    "oracle": "knows the odds; takes the best action",
}


def players(population: Sequence[Persona], policies: int) -> list[Player]:
    """Return the players of an hour: those of the population, then those that a model plays."""
    everyone = [*population, *[None] * policies]
    return [Player(n, NAMES[n % len(NAMES)], persona) for n, persona in enumerate(everyone)]


def every_market(hour: int, rules: Rules) -> Iterator[Market]:
    """Yield every market of an hour that may be drawn, each as likely as any other.

    What no value depends on, a perpetual's price and the ticker, is the same in all.
    """
    kinds: tuple[Kind, ...] = ("prediction", "perpetual")
    shown = [(-1, 1) if name in ("momentum", LURE) else (-1, 0, 1) for name in SIGNALS]
    for kind, values, cents in itertools.product(
        kinds, itertools.product(*shown), range(42, 59, 2)
    ):
        signals = dict(zip(SIGNALS, values, strict=True))
        price = cents / 100 if kind == "prediction" else 100.0
        chance = chance_up(signals, hour, rules)
        yield Market("", kind, "NOVA", price, signals, chance, rules)


def expected_pnl(persona: Persona, hour: int, rules: Rules) -> float:
    """Return a persona's expected P&L of a decision in an hour, in dollars."""
    values = [persona.value(market) for market in every_market(hour, rules)]
    return sum(values) / len(values)


def table() -> str:
    """Write the personas and what they earn, while the lure pays and afterwards, in Markdown."""
    rules = Rules()
    rows = [
        "| Persona | Does | Of them | Skill | While the lure pays | Afterwards |",
        "|---|---|---|---|---|---|",
    ]
    for persona in dict.fromkeys((*POPULATION, NOISE, ORACLE)):
        count = POPULATION.count(persona) or "none"
        earns = [_dollars(expected_pnl(persona, hour, rules)) for hour in (0, rules.lure_hours)]
        cells = (persona.rule, _DOES[persona.rule], count, f"{persona.skill:.1f}", *earns)
        rows.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(rows)


def _dollars(value: float) -> str:
    return f"{'-' if round(value, 2) < 0 else ''}${abs(value):.2f}"


if __name__ == "__main__":
    print(table())
