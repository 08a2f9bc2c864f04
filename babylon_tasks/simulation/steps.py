"""The steps of a trajectory, as `stepsJson` holds them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from datetime import datetime

from babylon_tasks.simulation.agents import Agent
from babylon_tasks.simulation.market import Market
from babylon_tasks.simulation.play import Turn
from babylon_tasks.simulation.prompts import Call, turn_calls
from babylon_tasks.simulation.values import Json, number, unix_ms


def make_steps(
    rng: random.Random,
    markets: Sequence[Market],
    player: Agent,
    turns: Sequence[Turn],
    start: datetime,
    end: datetime,
) -> list[Json]:
    """Make the steps of a trajectory that lasts from `start` to `end` (naive UTC)."""
    version = rng.choice((None, None, "v1.0.2", "v1.0.3"))
    apart_ms = (unix_ms(end) - unix_ms(start)) // len(turns)
    return [
        {
            "stepNumber": turn.number,
            "timestamp": unix_ms(start) + turn.number * apart_ms,
            "environmentState": {
                "agentBalance": number(turn.balance),
                "agentPnL": number(turn.pnl),
                "openPositions": turn.open_positions,
                "activeMarkets": len(markets),
            },
            "providerAccesses": _providers(markets, turn),
            "llmCalls": [
                _call(rng, call, version) for call in turn_calls(rng, markets, player, turn)
            ],
            "action": _action(turn),
            "reward": _reward(turn),
        }
        for turn in turns
    ]


def _providers(markets: Sequence[Market], turn: Turn) -> list[Json]:
    listed = [
        {
            "id": m.id,
            "question": m.question,
            "yesShares": round(1000 * (1 - m.yes_price)),
            "noShares": round(1000 * m.yes_price),
            "liquidity": 1000,
        }
        for m in markets
    ]
    return [
        {
            "providerName": "BABYLON_MARKETS",
            "data": {"markets": listed},
            "purpose": "Prices for the trading decision",
        },
        {
            "providerName": "BABYLON_PORTFOLIO",
            "data": {"balance": number(turn.balance), "positions": [], "pnl": number(turn.pnl)},
            "purpose": "Holdings before trading",
        },
    ]


def _call(rng: random.Random, call: Call, version: str | None) -> Json:
    record: Json = {
        "model": f"babylon-agent-{version}" if version else "llama-3.1-8b",
        "systemPrompt": call.system_prompt,
        "userPrompt": call.user_prompt,
        "response": call.response,
        "temperature": 0.7,
        "maxTokens": 300,
        "latencyMs": rng.randint(180, 900),
        "purpose": call.purpose,
        "actionType": call.action,
    }
    if version:
        record["modelVersion"] = version
    if call.purpose == "action" and rng.random() < 0.3:
        record["reasoning"] = "Momentum and price were weighed."
    return record


def _action(turn: Turn) -> Json:
    """Make the action with its result and correctness; both contain the future."""
    parameters: Json = {}
    result: Json = {"held": True} if turn.action == "HOLD" else {"contentLength": 80}
    if turn.side:
        parameters = {"marketId": turn.market.id, "side": turn.side, "amount": turn.amount}
        price = turn.market.yes_price if turn.side == "YES" else 1 - turn.market.yes_price
        result = {"shares": round(turn.amount / price, 2), "avgPrice": round(price, 2)}
    action: Json = {
        "actionType": turn.action,
        "parameters": parameters,
        "success": turn.success,
        **({"result": result} if turn.success else {"error": "Insufficient balance"}),
    }
    if turn.side and turn.success:
        predicted = (turn.side == "YES") == (turn.action == "BUY_SHARES")
        action["correctness"] = {
            "predictionCorrect": predicted == turn.market.outcome,
            "actualOutcome": turn.market.outcome,
            "predictedOutcome": predicted,
        }
    return action


def _reward(turn: Turn) -> float:
    """Return the reward as the app rewrites it: 1 for a trade whose side came true, else -1."""
    if turn.side:
        return 1 if (turn.side == "YES") == turn.market.outcome else -1
    return 0.1 if turn.action in ("CREATE_POST", "COMMENT") else 0
