"""An hour of the game: every agent decides about a few of the hour's markets."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from babylon_tasks.records.steps import Logprobs
from babylon_tasks.simulation.agents import agent
from babylon_tasks.simulation.game.market import (
    DOWN,
    HOLD,
    UP,
    Market,
    Outcome,
    Rules,
    draw_market,
    draw_outcome,
)
from babylon_tasks.simulation.game.personas import Persona
from babylon_tasks.simulation.game.prompts import messages, read_answer, write_answer
from babylon_tasks.simulation.values import seeded

MARKETS = 96  # in an hour
DECISIONS = 3  # of an agent in an hour, each about another market

# What the app writes for a call that broke: no action can be read from it.
BROKEN = '{"action":'


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model answered; `version` is that of the model, None if it is not one of ours.

    `finish_reason` is what its server said: `stop`, or `length` for an answer that was cut off.
    `ours`: our endpoint answered, so it may remember all that.
    """

    text: str
    version: str | None = None
    logprobs: Logprobs | None = None
    model: str = "scripted"
    finish_reason: str | None = None
    ours: bool = False


class Question(NamedTuple):
    """What an agent, by its id in the app, asks the model."""

    agent: str
    messages: list[dict[str, str]]


Ask = Callable[[Sequence[Question]], Sequence[Answer]]


@dataclass(frozen=True, slots=True)
class Player:
    """An agent: scripted by a persona, or, without one, played by the model that is asked."""

    number: int
    name: str
    persona: Persona | None


@dataclass(frozen=True, slots=True)
class Decision:
    """One decision of an agent: what it was shown and answered, and what that gained.

    `action` is None if the answer was no action; `pnl` is in dollars and then 0.
    """

    market: Market
    messages: list[dict[str, str]]
    answer: Answer
    action: int | None
    pnl: float


@dataclass(frozen=True, slots=True)
class Hour:
    """A played hour; it counts from 0. `decisions` has those of each player, in order."""

    number: int
    markets: Sequence[Market]
    outcomes: Sequence[Outcome]
    players: Sequence[Player]
    decisions: Sequence[Sequence[Decision]]


def play_hour(seed: int, number: int, rules: Rules, players: Sequence[Player], ask: Ask) -> Hour:
    """Play an hour; all that is drawn follows from the seed and the hour.

    `ask` gets the questions of all decisions that no persona takes, and returns their answers.
    """
    rng = seeded("hour", seed, number)
    markets = [draw_market(rng, f"{number}-{n}", number, rules) for n in range(MARKETS)]
    outcomes = [draw_outcome(rng, market) for market in markets]
    chosen = [rng.sample(range(MARKETS), DECISIONS) for _ in players]
    asked = [
        Question(agent(player.number, seed).id, messages(player.name, markets[n]))
        for player, numbers in zip(players, chosen, strict=True)
        if player.persona is None
        for n in numbers
    ]
    answers = iter(ask(asked) if asked else ())
    decisions = []
    for player, numbers in zip(players, chosen, strict=True):
        taken = []
        for n in numbers:
            market = markets[n]
            answer = (
                next(answers)
                if player.persona is None
                else Answer(_scripted(rng, player.persona, market))
            )
            action = read_answer(answer.text)
            pnl = 0.0 if action is None else outcomes[n].pnl(market, action)
            taken.append(Decision(market, messages(player.name, market), answer, action, pnl))
        decisions.append(taken)
    return Hour(number, markets, outcomes, players, decisions)


def _scripted(rng: random.Random, persona: Persona, market: Market) -> str:
    """Draw a persona's answer; what its chances miss to 1 is a call that breaks."""
    drawn = rng.random()
    for action, chance in zip((UP, DOWN, HOLD), persona.chances(market), strict=True):
        drawn -= chance
        if drawn < 0:
            return write_answer(action)
    return BROKEN if persona.rule == "failing" else write_answer(HOLD)
