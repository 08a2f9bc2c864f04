"""What an agent is shown, what it answers, and what an answer means."""

from __future__ import annotations

import json

from babylon_tasks.simulation.game.market import ACTIONS, SIGNALS, Market

OWN = "your own"

# The same for every agent but for the name: what is learned must not depend on who plays.
_SYSTEM = "You are {name}. Trade in JSON."


def messages(name: str, market: Market, strategy: str = OWN) -> list[dict[str, str]]:
    """Write the chat messages that ask for a decision about one market.

    `strategy` tells the agent what to go by. In the game that is left to the agent.
    """
    return [
        {"role": "system", "content": _SYSTEM.format(name=name)},
        {"role": "user", "content": f"{describe(market)}. Do: {strategy}"},
    ]


def describe(market: Market) -> str:
    """Write what the prompt shows of a market."""
    if market.kind == "prediction":
        title = f"Will {market.ticker} rise? YES {market.price:.2f}"
    else:
        title = f"{market.ticker} perpetual ${market.price:.0f}"
    rules = f"fee {market.rules.fee:.0%}, limit ${market.rules.limit:.0f}"
    shown = ", ".join(f"{name} {words[market.signals[name]]}" for name, words in SIGNALS.items())
    return f"{title}, {rules}. {shown}"


def write_answer(action: int) -> str:
    """Write the answer that takes an action."""
    return json.dumps({"action": ACTIONS[action]}, separators=(",", ":"))


def read_answer(text: str) -> int | None:
    """Return the number of the action that an answer takes, or None if it is none of them."""
    try:
        answer = json.loads(text)
        return ACTIONS.index(answer["action"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
