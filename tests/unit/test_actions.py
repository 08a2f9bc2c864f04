"""Runs as a judge is shown them: what each step was, and what becomes of odd ones."""

from __future__ import annotations

import contextlib
import copy
import json
import math
from datetime import datetime
from typing import Any, get_args

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from babylon_tasks.records.actions import (
    AgentRun,
    RunStep,
    Scalar,
    decode_run,
    failed_share,
    pnl_path,
    trades,
)
from babylon_tasks.records.recorded_steps import RawTrace, Reason, Unusable
from babylon_tasks.records.traces import decode
from babylon_tasks.simulation.simulate import simulate
from tests.odd import json_values, mutated_traces, valid_trace, with_each

quick = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def raw(steps: str | None) -> RawTrace:
    return RawTrace("t1", "agent-1", len(steps or ""), steps)


def step(**parts: Any) -> dict[str, Any]:
    """What the app writes for one trade, with parts exchanged."""
    whole = {
        "stepNumber": 0,
        "environmentState": {"agentBalance": 1012.5, "agentPnL": 12.5},
        "providerAccesses": [{"providerName": "feed", "data": {"deep": [1, 2]}}],
        "llmCalls": [{"userPrompt": "Now?", "response": "I buy.", "purpose": "action"}],
        "action": {
            "actionType": "BUY_SHARES",
            "parameters": {"marketId": "m1", "side": "YES", "amount": 50},
            "success": True,
            "result": {"shares": 100},
            "correctness": {"predictionCorrect": True},
        },
    }
    return whole | parts


def only(**parts: Any) -> RunStep:
    (move,) = decode_run(raw(json.dumps([step(**parts)]))).steps
    return move


def acted(**parts: Any) -> RunStep:
    return only(action=step()["action"] | parts)


def test_a_play_is_its_moves() -> None:
    parameters: dict[str, Scalar] = {"marketId": "m1", "side": "YES", "amount": 50}
    first = RunStep(0, "BUY_SHARES", parameters, True, None, 12.5, 1012.5, "I buy.")
    refused = step(action={"actionType": "HOLD", "success": False, "error": "No\nfunds"})
    second = RunStep(1, "HOLD", {}, False, "No funds", 12.5, 1012.5, "I buy.")
    assert decode_run(raw(json.dumps([step(), refused]))) == AgentRun(
        "t1", "agent-1", (first, second)
    )


def test_a_trade_names_a_market_and_a_side() -> None:
    perpetual = acted(parameters={"ticker": "ORBX", "direction": "long", "size": 10})
    answered = acted(parameters={"marketId": 42, "outcome": "NO"})
    sideless = acted(parameters={"marketId": "m1", "side": " "})
    assert (perpetual.market, perpetual.side, perpetual.is_trade) == ("ORBX", "long", True)
    assert (answered.market, answered.side, answered.is_trade) == ("42", "NO", True)
    assert (sideless.market, sideless.side, sideless.is_trade) == ("m1", None, False)
    assert trades(AgentRun("t", "a", (sideless, perpetual))) == [perpetual]


def test_the_pnl_path_leaves_out_what_is_unknown() -> None:
    states = [{"agentPnL": 5}, {}, {"agentPnL": "-2.5"}, {"agentPnL": "abc"}, None]
    play = decode_run(raw(json.dumps([step(environmentState=state) for state in states])))
    assert [move.pnl for move in play.steps] == [5.0, None, -2.5, None, None]
    assert pnl_path(play) == [5.0, -2.5]


def test_the_failed_share_is_of_the_recorded_actions() -> None:
    actions = [{"actionType": "A"}, {"actionType": "B", "success": False}, None, {"success": False}]
    play = decode_run(raw(json.dumps([step(action=action) for action in actions])))
    assert failed_share(play) == 0.5
    assert failed_share(decode_run(raw('[{"action": null}]'))) == 0.0


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("true", True),
        ("FALSE ", False),
        ("failed", False),
        ("", False),
        (0, False),
        (1, True),
        (None, True),
        ([], True),
    ],
)
def test_odd_success(value: Any, expected: bool) -> None:
    assert acted(success=value).success is expected


def test_without_a_readable_success_an_error_is_a_failure() -> None:
    assert not acted(success=None, error="Insufficient balance").success
    assert acted(success=None, error={"message": "refused", "code": 4}).error == "refused"
    assert acted(success=True, error="only a warning").success
    assert acted(error=["no text"]).error is None


@pytest.mark.parametrize("value", [True, "nan", "inf", "abc", "", [1], 2e15, 10**400, "1" * 5000])
def test_dollars_that_are_none(value: Any) -> None:
    text = json.dumps([step(environmentState={"agentPnL": value, "agentBalance": "7"})])
    (move,) = decode_run(raw(text)).steps
    assert move.pnl is None
    assert move.balance == 7.0


@pytest.mark.parametrize("value", [None, "BUY", 3, [], {}])
def test_an_action_that_is_none_leaves_the_rest_of_the_step(value: Any) -> None:
    assert only(action=value) == RunStep(0, "", {}, True, None, 12.5, 1012.5, "I buy.")


def test_parameters_are_the_scalars() -> None:
    assert acted(parameters=[1, 2]).parameters == {}
    mixed = {"amount": "50", "nested": {"a": 1}, "list": [1], "none": None, "on": True, "x": 1.5}
    assert acted(parameters=mixed).parameters == {"amount": "50", "on": True, "x": 1.5}
    assert len(acted(parameters={str(n): n for n in range(1000)}).parameters) == 20


def call(response: str = "", purpose: Any = "action", **more: Any) -> dict[str, Any]:
    return {"response": response, "purpose": purpose, **more}


@pytest.mark.parametrize(
    ("calls", "reason"),
    [
        ([], ""),
        (None, ""),
        ([call(" "), call()], ""),
        ([call("I act."), call("I think.", "reasoning")], "I act."),
        ([call("first"), call("second")], "second"),
        ([call("I act."), call("I think.", "reasoning", reasoning="Why.")], "Why."),
        ([call("x", reasoning="Acts."), call("y", "reasoning", reasoning="Thinks.")], "Acts."),
        ([call("no purpose", None), call("odd purpose", ["action"])], "odd purpose"),
        ([call("kept", reasoning={"not": "text"})], "kept"),
    ],
)
def test_what_an_agent_said(calls: Any, reason: str) -> None:
    assert only(llmCalls=calls).reason == reason


def test_the_actions_own_reasoning_goes_first() -> None:
    assert acted(reasoning="Cheap.").reason == "Cheap."
    assert acted(reasoning="  ").reason == "I buy."


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ('{"action":"BUY","reason":"momentum is up"}', "momentum is up"),
        ('```json\n{"trade": {"reasoning": "it \\"will\\" turn"}}\n```', 'it "will" turn'),
        ('{"reason": "", "thought": "cut short", "act', "cut short"),
        ('{"reason": "never ends', '{"reason": "never ends'),
        ('{"reason": "bad \\x escape"}', '{"reason": "bad \\x escape"}'),
        ('{"reason": "half \\ud83d"}', "half \ufffd"),
    ],
)
def test_the_reason_in_an_answer(answer: str, reason: str) -> None:
    assert only(llmCalls=[call(answer)]).reason == reason


def test_long_texts_are_cut() -> None:
    long = only(action={"actionType": "A" * 9999, "reasoning": "w" * 99_999, "error": "e" * 9999})
    assert [len(t) for t in (long.action, long.reason, long.error or "")] == [100, 1000, 200]


def test_lone_surrogates_and_nul_in_one_part_leave_the_others() -> None:
    text = (
        '[{"environmentState": {"agentPnL": 3, "note": "\\ud800"}, "llmCalls": [{"response": "'
        'a\\ud83dz\\u0000"}], "action": {"actionType": "BUY\\ud800", "error": "x\\u0000y",'
        ' "parameters": {"side": "\\udfff"}, "success": "false", "result": "\\ud800"}}]'
    )
    parameters: dict[str, Scalar] = {"side": "\ufffd"}
    expected = RunStep(0, "BUY\ufffd", parameters, False, "x\ufffdy", 3.0, None, "a\ufffdz\x00")
    assert decode_run(raw(text)).steps == (expected,)


@pytest.mark.parametrize(
    ("steps", "reason"),
    [
        (None, "too_large"),
        ("", "bad_json"),
        ("null", "no_steps"),
        ("[]", "no_steps"),
        ('[{"llmCalls": [', "bad_json"),
        ('{"steps": []}', "wrong_shape"),
        ('[{"extra": ' + "[" * 100_000, "bad_json"),
    ],
)
def test_only_a_text_that_is_no_list_of_steps_is_unusable(steps: str | None, reason: str) -> None:
    with pytest.raises(Unusable) as verdict:
        decode_run(raw(steps))
    assert verdict.value.reason == reason


def check(text: str) -> None:
    """Whatever `traces` accepts is a play, and any other text is a play or a reason."""
    try:
        play = decode_run(raw(text))
    except Unusable as refused:
        verdict = refused
    else:
        check_play(text, play)
        return
    assert verdict.reason in get_args(Reason)
    with pytest.raises(Unusable):
        decode(raw(text))


def check_play(text: str, play: AgentRun) -> None:
    with contextlib.suppress(Unusable):
        assert len(play.steps) == decode(raw(text)).outcome.steps
    assert all(math.isfinite(pnl) for pnl in pnl_path(play))
    assert 0 <= failed_share(play) <= 1
    assert len(trades(play)) <= len(play.steps)
    for move in play.steps:
        texts = [move.action, move.reason, move.error or "", *map(str, move.parameters.values())]
        "".join([*texts, *move.parameters]).encode()


@quick
@given(mutated_traces())
def test_a_mutated_trace_is_a_play_where_traces_accepts_it(text: str) -> None:
    check(text)


PARTS = [
    ("environmentState",),
    ("environmentState", "agentBalance"),
    ("llmCalls",),
    ("llmCalls", 0, "purpose"),
    ("llmCalls", 0, "reasoning"),
    ("action",),
    ("action", "actionType"),
    ("action", "parameters"),
    ("action", "parameters", "marketId"),
    ("action", "success"),
    ("action", "error"),
    ("action", "reasoning"),
]


def exchanged(path: tuple[Any, ...], token: str) -> str:
    first = copy.deepcopy(step())
    node: Any = first
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = "@@"
    return json.dumps([first, *valid_trace()]).replace('"@@"', token)


@pytest.mark.parametrize("path", PARTS)
def test_each_odd_token_at_each_place_we_read(path: tuple[Any, ...]) -> None:
    with_each(lambda token: check(exchanged(path, token)))


@quick
@given(st.sampled_from(PARTS), json_values)
def test_any_value_at_each_place_we_read(path: tuple[Any, ...], value: Any) -> None:
    text = exchanged(path, json.dumps(value))
    assume("NaN" not in text and "Infinity" not in text)
    check(text)


@pytest.mark.parametrize("depth", [500, 100_000])
def test_deep_nesting_in_a_part(depth: int) -> None:
    check(exchanged(("action", "parameters"), "[" * depth + "]" * depth))
    check(exchanged(("action", "parameters"), '["\\ud800",' + "[" * depth + "]" * depth + "]"))


def test_simulated_rows_read_as_they_were_made() -> None:
    """The app's own counts stand beside the steps."""
    for window in simulate(1, 6, 3, datetime(2025, 11, 20, 12), odd=False):
        for row in window.trajectories:
            play = decode_run(RawTrace(row.trajectory_id, row.agent_id, 0, row.steps_json))
            assert len(play.steps) == row.episode_length
            assert len(trades(play)) == row.trades_executed
            assert pnl_path(play)[-1] == row.final_pnl
            assert play.steps[-1].balance == row.final_balance
            assert (failed_share(play) > 0) == (row.final_status == "completed_with_errors")
            assert all(move.reason for move in play.steps)
