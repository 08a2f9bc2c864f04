"""A row of `trajectories`, made from what an agent did."""

from __future__ import annotations

from collections.abc import Sequence

from babylon_tasks.simulation import feed
from babylon_tasks.simulation.agents import Agent
from babylon_tasks.simulation.market import Market
from babylon_tasks.simulation.oddities import make_odd
from babylon_tasks.simulation.play import Turn
from babylon_tasks.simulation.records import Odd, TrajectoryRow
from babylon_tasks.simulation.steps import make_steps
from babylon_tasks.simulation.values import Json, dump, milliseconds, number, unix_ms
from babylon_tasks.simulation.window import Window


def make_trajectory(
    window: Window, player: Agent, turns: Sequence[Turn], odd: Sequence[Odd] = ()
) -> TrajectoryRow:
    """Make the row of an agent's turns; its times are drawn within the window."""
    start, end = window.draw_times()
    steps = make_steps(window.rng, window.markets, player, turns, start, end)
    make_odd(steps, odd)
    if window.steps_bytes:
        feed.grow(window.rng, steps, window.posts, window.steps_bytes)
    last = turns[-1]
    total = round(sum(step["reward"] for step in steps), 4)
    errors = sum(not turn.success for turn in turns)
    trades = sum(bool(turn.side) for turn in turns)
    posts = sum(turn.action == "CREATE_POST" for turn in turns)
    status = "completed_with_errors" if errors else "completed"
    scenario = window.id + ("-btc" if "scenario_prefix" in odd else "")
    in_scenario_only = "scenario_only" in odd or "scenario_prefix" in odd
    metrics = {
        "episodeLength": len(turns),
        "finalStatus": status,
        "finalBalance": number(last.balance),
        "finalPnL": number(last.pnl),
        "tradesExecuted": trades,
        "postsCreated": posts,
        "errorCount": errors,
    }
    return TrajectoryRow(
        id=next(window.ids),
        trajectory_id=next(window.ids),
        agent_id=player.id,
        start_time=start,
        end_time=end,
        duration_ms=milliseconds(end - start),
        window_id=None if in_scenario_only else window.id,
        scenario_id=scenario,
        episode_id=f"{scenario}-{unix_ms(end)}",
        steps_json=dump(steps),
        reward_components_json=dump({"environmentReward": number(total)}),
        metrics_json=dump(metrics),
        metadata_json=dump({"isTrainingData": True, "gameKnowledge": _future(window.markets)}),
        total_reward=total,
        episode_length=len(turns),
        final_status=status,
        final_balance=round(last.balance, 2),
        final_pnl=last.pnl,
        trades_executed=trades,
        posts_created=posts,
        is_training_data=True,
        is_evaluation=False,
        updated_at=end,
    )


def _future(markets: Sequence[Market]) -> Json:
    """Return what only the game knows; the trained model must never see it."""
    return {
        "trueProbabilities": {m.id: 0.9 if m.outcome else 0.1 for m in markets},
        "actualOutcomes": {m.id: "YES" if m.outcome else "NO" for m in markets},
        "futureOutcomes": {},
    }
