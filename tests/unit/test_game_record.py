"""A played hour as rows: as the app writes them, and as the product reads them."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from datetime import datetime, timedelta

import pytest

from babylon_tasks.records.recorded_steps import RawTrace
from babylon_tasks.records.steps import Logprobs
from babylon_tasks.records.traces import Trace, decode
from babylon_tasks.scoring import filters
from babylon_tasks.settings import Settings
from babylon_tasks.simulation.agents import agent
from babylon_tasks.simulation.game.hour import BROKEN, DECISIONS, Answer, Hour, play_hour
from babylon_tasks.simulation.game.market import ACTIONS, UP, Rules
from babylon_tasks.simulation.game.personas import Persona
from babylon_tasks.simulation.game.population import POPULATION, players
from babylon_tasks.simulation.game.prompts import write_answer
from babylon_tasks.simulation.game.record import record
from babylon_tasks.simulation.records import TrajectoryRow, WindowRows

START = datetime(2026, 3, 1, 13)
LIKELY = Logprobs((5, 6, 2), (-0.5, -0.125, 0.0))
BUYS = Answer(write_answer(UP), "agent@3", LIKELY, "agent", "stop")


def played(
    population: Sequence[Persona] = POPULATION, policies: int = 2, answer: Answer = BUYS
) -> Hour:
    everyone = players(population, policies)
    return play_hour(1, 0, Rules(), everyone, lambda prompts: [answer for _ in prompts])


def recorded(hour: Hour, seed: int = 1) -> WindowRows:
    return record(hour, START, seed)


def decoded(row: TrajectoryRow) -> Trace:
    return decode(RawTrace(row.trajectory_id, row.agent_id, len(row.steps_json), row.steps_json))


def test_rows_are_as_the_app_writes_them() -> None:
    hour = played()
    window = recorded(hour)
    assert window.window_id == "2026-03-01T13:00"
    assert window.agents == tuple(agent(n, 1) for n in range(len(hour.players)))
    for row, player, decisions in zip(
        window.trajectories, window.agents, hour.decisions, strict=True
    ):
        steps = json.loads(row.steps_json)
        assert row.agent_id == player.id
        assert row.window_id == row.scenario_id == window.window_id
        assert re.fullmatch(re.escape(window.window_id) + r"-\d{13}", row.episode_id)
        assert START <= row.start_time < row.end_time <= START + timedelta(hours=1)
        assert row.duration_ms == (row.end_time - row.start_time) // timedelta(milliseconds=1)
        assert [s["stepNumber"] for s in steps] == list(range(row.episode_length))
        assert row.episode_length == len(decisions) + 1  # the last step tells what was gained
        assert set(steps[0]) == {
            "stepNumber", "timestamp", "environmentState", "providerAccesses", "llmCalls",
            "action", "reward",
        }  # fmt: skip
        gained = sum(decision.pnl for decision in decisions)
        assert steps[-1]["environmentState"]["agentPnL"] == pytest.approx(gained)
        assert row.final_pnl == row.total_reward == pytest.approx(gained)
        assert json.loads(row.metrics_json)["finalPnL"] == row.final_pnl
        for step in steps:
            assert step["action"]["success"] == ("error" not in step["action"])
        assert row.is_training_data
        assert not row.is_evaluation


def test_ids_are_unique_and_follow_from_hour_and_seed() -> None:
    hour = played()
    windows = [recorded(hour), recorded(hour, 2), record(hour, START + timedelta(hours=1), 1)]
    ids = [
        an_id
        for window in windows
        for an_id in (
            *(row.id for row in window.trajectories),
            *(row.trajectory_id for row in window.trajectories),
            *(row.id for row in window.outcomes),
        )
    ]
    assert len(ids) == len(set(ids))
    assert all(re.fullmatch(r"\d{17,19}", an_id) for an_id in ids)
    assert recorded(hour) == windows[0]


def test_outcomes_say_what_became_of_each_market() -> None:
    hour = played()
    rows = recorded(hour).outcomes
    for market, outcome, row in zip(hour.markets, hour.outcomes, rows, strict=True):
        late = row.created_at - START - timedelta(hours=1)
        assert timedelta(0) < late < timedelta(minutes=5)
        if market.kind == "prediction":
            assert row.prediction_market_id == market.id
            assert row.outcome == ("YES" if outcome.up else "NO")
        else:
            assert row.stock_ticker == market.ticker
            assert row.change_percent is not None
            assert row.change_percent == pytest.approx(
                100 * outcome.move * (1 if outcome.up else -1), abs=0.01
            )
            assert row.sentiment == ("BULLISH" if outcome.up else "BEARISH")


def test_a_trace_has_the_hours_prompts_answers_and_gains() -> None:
    hour = played()
    for row, player, decisions in zip(
        recorded(hour).trajectories, hour.players, hour.decisions, strict=True
    ):
        trace = decoded(row)
        assert trace.outcome.pnl == pytest.approx(sum(d.pnl for d in decisions), abs=0.01)
        assert trace.outcome.steps == DECISIONS + 1
        good = [d for d in decisions if d.action is not None]
        assert trace.outcome.failed == DECISIONS - len(good)
        if player.persona is None:
            asked = [(call.system, call.user, call.response) for call in trace.calls]
            assert asked == [
                (d.messages[0]["content"], d.messages[1]["content"], d.answer.text) for d in good
            ]


def test_the_version_and_the_log_probabilities_survive() -> None:
    trace = decoded(recorded(played()).trajectories[-1])
    assert trace.versions == ["agent@3"] * DECISIONS
    assert [call.logprobs for call in trace.calls] == [LIKELY] * DECISIONS
    assert trace.outcome.answered == {"agent@3": DECISIONS}
    scripted = decoded(recorded(played()).trajectories[0])
    assert set(scripted.versions) == {None}
    assert {call.logprobs for call in scripted.calls} == {None}


def test_a_model_that_is_not_ours_is_named_and_has_no_version() -> None:
    answer = Answer(write_answer(UP), model="some-model")
    row = recorded(played(answer=answer)).trajectories[-1]
    (call,) = json.loads(row.steps_json)[0]["llmCalls"]
    assert (call["model"], call.get("modelVersion")) == ("some-model", None)
    assert decoded(row).versions == [None] * DECISIONS


def test_failed_answers_are_failed_actions() -> None:
    row = recorded(played(answer=Answer("I would buy.", "agent@3"))).trajectories[-1]
    trace = decoded(row)
    assert (trace.outcome.failed, trace.outcome.pnl) == (DECISIONS, 0)
    assert row.final_status == "completed_with_errors"
    assert row.trades_executed == 0
    assert {s["action"]["actionType"] for s in json.loads(row.steps_json)} <= {
        "BROKEN", "CLOSE_HOUR", *ACTIONS
    }  # fmt: skip


def test_an_answer_that_was_cut_off_is_known_as_one() -> None:
    """Our own version's trains as something done badly, and without an end if it had none."""
    cut = Answer('{"action":"BUY', "agent@3", None, "agent", "length")
    ended = Answer('{"action":', "agent@3", None, "agent", "stop")
    for answer, has_ended in ((cut, False), (ended, True)):
        trace = decoded(recorded(played(answer=answer)).trajectories[-1])
        assert trace.calls == []
        assert trace.outcome.left_out == {"truncated": DECISIONS}
        assert {bad.reason for bad in trace.outcome.badly} == {"truncated"}
        assert [call.ended for call in trace.badly] == [has_ended] * DECISIONS


def test_a_run_that_fails_on_purpose_counts_as_failed() -> None:
    hour = played([Persona("failing", 1.0), Persona("noise", 1.0)], 0)
    outcomes = [decoded(row).outcome for row in recorded(hour).trajectories]
    assert {d.answer.text for d in hour.decisions[0]} == {BROKEN}
    kept, left_out = filters.apply(outcomes, Settings(), "2026-03-01T13:00")
    assert [outcome.agent_id for outcome in kept] == [agent(1, 1).id]
    assert left_out == {"failed_actions": 1}
