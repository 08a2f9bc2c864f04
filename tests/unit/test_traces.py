"""Decoding of recorded runs: what is read, what is set aside and why."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from babylon_tasks.traces import RawTrace, Unusable, decode
from babylon_tasks.training import Call


def raw(steps: str | None, size: int = 0) -> RawTrace:
    return RawTrace("t1", "agent-1", size, steps)


def step(pnl: Any = 0.0, *calls: dict[str, Any]) -> dict[str, Any]:
    return {
        "stepNumber": 0,
        "environmentState": {"agentBalance": 1000, "agentPnL": pnl},
        "providerAccesses": [{"providerName": "feed", "data": {"deep": [1, 2]}}],
        "llmCalls": list(calls),
        "action": {"actionType": "BUY", "correctness": {"predictionCorrect": True}},
    }


def call(response: str = "BUY", user: str = "what now?", system: str = "you trade") -> Any:
    return {"systemPrompt": system, "userPrompt": user, "response": response, "temperature": 0.8}


def test_a_trace_is_its_last_pnl_its_steps_and_its_calls() -> None:
    trace = decode(raw(json.dumps([step(5, call("a")), step(-2.5, call("b"), call("c"))])))
    assert trace.outcome.pnl == -2.5
    assert trace.outcome.steps == 2
    assert trace.calls == [Call("you trade", "what now?", r) for r in "abc"]
    assert trace.outcome.text_bytes == 3 * len("you tradewhat now?a")


@pytest.mark.parametrize(
    ("pnl", "expected"),
    [("12.5", 12.5), (7, 7.0), (None, 0.0), ("-1e3", -1000.0)],
)
def test_odd_but_readable_pnl(pnl: Any, expected: float) -> None:
    assert decode(raw(json.dumps([step(pnl)]))).outcome.pnl == expected


def test_missing_state_counts_as_no_pnl_as_upstream_does() -> None:
    assert decode(raw('[{"llmCalls": []}]')).outcome.pnl == 0.0
    assert decode(raw('[{"environmentState": {"openPositions": 2}}]')).outcome.pnl == 0.0


def test_only_the_last_state_must_be_readable() -> None:
    assert decode(raw(json.dumps([step("rubbish"), step(3)]))).outcome.pnl == 3.0


@pytest.mark.parametrize(
    ("steps", "reason"),
    [
        (None, "too_large"),
        ("", "bad_json"),
        ("null", "no_steps"),
        ("[]", "no_steps"),
        ('[{"llmCalls": [', "bad_json"),
        ('{"steps": []}', "wrong_shape"),
        ("[1, 2]", "wrong_shape"),
        ('[{"llmCalls": [{"response": {"text": "x"}}]}]', "wrong_shape"),
        ('[{"environmentState": {"agentPnL": "abc"}}]', "bad_pnl"),
        ('[{"environmentState": {"agentPnL": "nan"}}]', "bad_pnl"),
        ('[{"environmentState": {"agentPnL": "inf"}}]', "bad_pnl"),
        ('[{"environmentState": {"agentPnL": true}}]', "bad_pnl"),
        ('[{"environmentState": [1]}]', "bad_pnl"),
        ("[" * 100_000, "wrong_shape"),
        ('[{"extra": ' + "[" * 100_000, "bad_json"),
    ],
)
def test_unusable_traces_say_why(steps: str | None, reason: str) -> None:
    with pytest.raises(Unusable) as verdict:
        decode(raw(steps))
    assert verdict.value.reason == reason
    assert verdict.value.detail


def test_lone_surrogates_are_replaced_and_nul_is_kept() -> None:
    text = '[{"llmCalls": [{"userPrompt": "a\\ud83dz", "response": "n\\u0000\\ud83d\\ude00"}]}]'
    (only,) = decode(raw(text)).calls
    assert only == Call("", "a\ufffdz", "n\x00😀")


def test_calls_without_an_answer_are_not_trained_but_hashed() -> None:
    silent = decode(raw(json.dumps([step(0, call("")), step(0, call("  "))])))
    assert silent.calls == []
    assert silent.outcome.text_bytes == 0
    assert silent.outcome.content_hash != decode(raw(json.dumps([step(0)]))).outcome.content_hash


def test_the_hash_sees_prompts_and_responses_and_nothing_the_app_rewrites_later() -> None:
    first, later = step(0, call("a")), step(0, call("a"))
    later["reward"] = 0.7
    later["action"]["correctness"] = {"predictionCorrect": False}
    moved = step(0, call("aw", user="hat now?"))
    hashes = [decode(raw(json.dumps([s]))).outcome.content_hash for s in (first, later, moved)]
    assert hashes[0] == hashes[1] != hashes[2]


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(),
        lambda inner: (
            st.lists(inner)
            | st.dictionaries(
                st.sampled_from(["llmCalls", "environmentState", "response", "agentPnL"]), inner
            )
        ),
    )
)
def test_any_json_is_decoded_or_set_aside(value: Any) -> None:
    with contextlib.suppress(Unusable):
        assert decode(raw(json.dumps(value))).outcome.steps > 0


@given(st.text())
def test_any_text_is_decoded_or_set_aside(text: str) -> None:
    with contextlib.suppress(Unusable):
        decode(raw(text))
