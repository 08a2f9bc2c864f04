"""The agents that trade: who they are, and how often they are right."""

from __future__ import annotations

from dataclasses import dataclass

from babylon_tasks.simulation.values import EPOCH_MS, seeded, snowflake

NAMES = ("Ada", "Bo", "Cleo", "Dov", "Eve", "Finn", "Gia", "Hal", "Ines", "Jax", "Kim", "Lou")
PERSONAS = (
    "You are a momentum trader on Babylon's prediction markets. You act fast and keep risk small.",
    "You are a patient analyst. You read the order book before you act, size positions carefully "
    "and leave a market alone when you see no edge in it.",
    "You are a bold speculator with strong opinions about every market.",
    "You are a contrarian who knows when the crowd is right. You manage risk, never bet the whole "
    "balance, write down why you act, and answer only in the form you are asked for.",
)
_STRATEGIES = ("follow momentum", "fade extremes", "news first", "small and often")
_YEAR_MS = 31_536_000_000


@dataclass(frozen=True, slots=True)
class Agent:
    """An agent; an index names the same agent in every window and for every seed."""

    id: str
    username: str
    display_name: str
    system_prompt: str
    strategy: str
    skill: float  # probability of betting with the momentum


def agent(index: int, seed: int) -> Agent:
    """Make agent `index`; only its skill (0.2 to 0.9) depends on the seed."""
    first = NAMES[index % len(NAMES)]
    spread = (index * 0.618034 + seeded("skill", seed).random()) % 1
    return Agent(
        id=snowflake(EPOCH_MS + _YEAR_MS + index, 7, 0),
        username=f"sim-agent-{index:04d}",
        display_name=f"{first} {index:04d}",
        system_prompt=PERSONAS[index % len(PERSONAS)],
        strategy=_STRATEGIES[index // len(PERSONAS) % len(_STRATEGIES)],
        skill=round(0.2 + 0.7 * spread, 3),
    )
