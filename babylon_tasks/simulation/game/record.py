"""A played hour as rows of Babylon's tables."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta

from babylon_tasks.records.windows import window_id_at
from babylon_tasks.simulation.agents import Agent, agent
from babylon_tasks.simulation.game.hour import Decision, Hour
from babylon_tasks.simulation.game.market import ACTIONS
from babylon_tasks.simulation.records import OutcomeRow, TrajectoryRow, WindowRows
from babylon_tasks.simulation.values import Json, dump, milliseconds, number, snowflake, unix_ms

_BALANCE = 10_000.0
_FAILED = "the answer is not an action"


def record(hour: Hour, start: datetime, seed: int) -> WindowRows:
    """Return an hour's rows, as if the app had recorded it from `start` on (naive UTC)."""
    window_id = window_id_at(start.replace(tzinfo=UTC))
    ids = (snowflake(unix_ms(start) + n // 4096, seed % 1024, n % 4096) for n in itertools.count())
    agents = [agent(player.number, seed) for player in hour.players]
    rows = [
        _trajectory(window_id, start, player, decisions, ids)
        for player, decisions in zip(agents, hour.decisions, strict=True)
    ]
    return WindowRows(
        window_id=window_id,
        kind="good",
        agents=tuple(agents),
        trajectories=tuple(rows),
        outcomes=tuple(_outcomes(hour, window_id, start, ids)),
        malformed={},
        odd={},
        never_counts={},
    )


def _trajectory(
    window_id: str,
    start: datetime,
    player: Agent,
    decisions: Sequence[Decision],
    ids: Iterator[str],
) -> TrajectoryRow:
    apart = timedelta(hours=1) / (len(decisions) + 2)
    steps: list[Json] = []
    pnl = 0.0
    for count, decision in enumerate(decisions):
        steps.append(_step(count, start + apart * (count + 1), pnl, decision))
        pnl = round(pnl + decision.pnl, 2)
    end = start + apart * (len(decisions) + 1)
    # The app records what an agent has before it acts: without this step the last gain is unseen.
    closing = {"actionType": "CLOSE_HOUR", "parameters": {}, "success": True}
    steps.append(_bare_step(len(decisions), end, pnl, [], closing))
    failed = sum(decision.action is None for decision in decisions)
    status = "completed_with_errors" if failed else "completed"
    trades = sum(decision.pnl != 0 for decision in decisions)
    metrics = {"episodeLength": len(steps), "finalPnL": number(pnl), "errorCount": failed}
    return TrajectoryRow(
        id=next(ids),
        trajectory_id=next(ids),
        agent_id=player.id,
        start_time=start + apart,
        end_time=end,
        duration_ms=milliseconds(end - start - apart),
        window_id=window_id,
        scenario_id=window_id,
        episode_id=f"{window_id}-{unix_ms(end)}",
        steps_json=dump(steps),
        reward_components_json=dump({"environmentReward": number(pnl)}),
        metrics_json=dump(metrics),
        metadata_json=dump({"isTrainingData": True}),
        total_reward=pnl,
        episode_length=len(steps),
        final_status=status,
        final_balance=round(_BALANCE + pnl, 2),
        final_pnl=pnl,
        trades_executed=trades,
        posts_created=0,
        is_training_data=True,
        is_evaluation=False,
        updated_at=end,
    )


def _step(count: int, at: datetime, pnl: float, decision: Decision) -> Json:
    market, answer = decision.market, decision.answer
    name = "BROKEN" if decision.action is None else ACTIONS[decision.action]
    system, user = (message["content"] for message in decision.messages)
    call: Json = {
        "model": answer.model,
        "systemPrompt": system,
        "userPrompt": user,
        "response": answer.text,
        "temperature": 1.0,
        "purpose": "action",
        "actionType": name,
    }
    if answer.finish_reason:
        call["finishReason"] = answer.finish_reason
    if answer.version:
        call["modelVersion"] = answer.version
    if answer.logprobs:
        pairs = zip(answer.logprobs.token_ids, answer.logprobs.values, strict=True)
        call["logprobs"] = {
            "content": [{"token": f"token_id:{token}", "logprob": value} for token, value in pairs]
        }
    action: Json = {
        "actionType": name,
        "parameters": {"marketId": market.id, "ticker": market.ticker},
        "success": decision.action is not None,
    }
    if decision.action is None:
        action["error"] = _FAILED
    return _bare_step(count, at, pnl, [call], action)


def _bare_step(count: int, at: datetime, pnl: float, calls: list[Json], action: Json) -> Json:
    return {
        "stepNumber": count,
        "timestamp": unix_ms(at),
        "environmentState": {
            "agentBalance": number(_BALANCE + pnl),
            "agentPnL": number(pnl),
            "openPositions": count,
            "activeMarkets": 0,
        },
        "providerAccesses": [],
        "llmCalls": calls,
        "action": action,
        "reward": 0,
    }


def _outcomes(
    hour: Hour, window_id: str, start: datetime, ids: Iterator[str]
) -> Iterator[OutcomeRow]:
    at = start + timedelta(hours=1, seconds=60)
    for market, outcome in zip(hour.markets, hour.outcomes, strict=True):
        if market.kind == "prediction":
            yield OutcomeRow(
                id=next(ids),
                window_id=window_id,
                prediction_market_id=market.id,
                question=f"Will {market.ticker} rise this hour?",
                outcome="YES" if outcome.up else "NO",
                final_probability=0.95 if outcome.up else 0.05,
                created_at=at,
            )
            continue
        change = outcome.move if outcome.up else -outcome.move
        yield OutcomeRow(
            id=next(ids),
            window_id=window_id,
            stock_ticker=market.ticker,
            start_price=market.price,
            end_price=round(market.price * (1 + change), 2),
            change_percent=round(100 * change, 2),
            sentiment="BULLISH" if outcome.up else "BEARISH",
            created_at=at,
        )
