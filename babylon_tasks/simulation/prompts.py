"""The agents' prompts and answers."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from babylon_tasks.simulation.agents import Agent
from babylon_tasks.simulation.market import Market
from babylon_tasks.simulation.play import Turn
from babylon_tasks.simulation.values import Json, dump


@dataclass(frozen=True, slots=True)
class Call:
    """One LLM call: its prompts and its response."""

    system_prompt: str
    user_prompt: str
    response: str
    purpose: str
    action: str


@dataclass(frozen=True, slots=True)
class Question:
    """A new prompt with one market, and the side that its momentum predicts."""

    system_prompt: str
    user_prompt: str
    right_side: str


def turn_calls(
    rng: random.Random, markets: Sequence[Market], player: Agent, turn: Turn
) -> list[Call]:
    """Make the one or two calls of a step: sometimes a thought, then the action or the text."""
    system, market = player.system_prompt, turn.market
    if turn.action in ("CREATE_POST", "COMMENT"):
        what = "post" if turn.action == "CREATE_POST" else "comment"
        user = (
            f"You are {player.display_name}. Write one short {what} for the Babylon feed, under "
            f"280 characters, about this market: {market.question} {market.quote}"
        )
        mood = "climbing" if market.momentum > 0 else "slipping"
        text = f"{market.question} Momentum is {mood}, so mind your risk."
        return [Call(system, user, text, "response", turn.action)]
    user = short_prompt(player, turn)
    if rng.random() < 0.25:
        user = _long_prompt(player, markets, turn)
    calls = [Call(system, user, _answer(turn), "action", turn.action)]
    if rng.random() < 0.2:
        asked = f"Which way does this market lean, and why?\n{market.question}\n{market.quote}"
        way = "up" if market.momentum > 0 else "down"
        thought = f"Momentum is {way}, so {market.right_side} looks likely."
        calls.insert(0, Call(system, asked, thought, "reasoning", turn.action))
    return calls


def short_prompt(player: Agent, turn: Turn) -> str:
    """Write the prompt that agents get most often; it shows one market."""
    market = turn.market
    return (
        f"You are {player.display_name}. Strategy: {player.strategy}\n"
        f"Balance: ${turn.balance:.2f}, P&L: ${turn.pnl:.2f}, "
        f"open positions: {turn.open_positions}\n\n"
        f"Market: {market.question}\n{market.quote}\n\n"
        "Answer with one action in JSON."
    )


def _long_prompt(player: Agent, markets: Sequence[Market], turn: Turn) -> str:
    others = [m for m in markets if m is not turn.market][:3]
    listed = "\n".join(f"- {m.question} {m.quote}" for m in [*others, turn.market])
    return (
        f"You are {player.display_name}, an autonomous trading agent.\n"
        f"Trading strategy: {player.strategy}\n"
        f"Balance: ${turn.balance:.2f}\nP&L: ${turn.pnl:.2f}\n"
        f"Open positions: {turn.open_positions}\n\nPrediction markets:\n{listed}\n\n"
        "Decide on the last one. Trade only with conviction. Answer with one action in JSON."
    )


def _answer(turn: Turn) -> str:
    answer: Json = {"action": turn.action}
    if turn.side:
        up = turn.market.momentum > 0
        with_it = (turn.side == turn.market.right_side) == (turn.action == "BUY_SHARES")
        reason = f"momentum is {'up' if up else 'down'}" if with_it else "it will turn"
        answer |= {"side": turn.side, "amount": turn.amount, "reason": reason}
    else:
        answer["reason"] = "no edge"
    return dump(answer)
