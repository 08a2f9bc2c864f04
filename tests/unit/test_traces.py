"""Decoding of recorded runs: what is read, what is set aside and why."""

from __future__ import annotations

import contextlib
import json
import time
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from babylon_tasks.records.recorded_steps import RawTrace, Unusable
from babylon_tasks.records.steps import Call, Logprobs, Sample
from babylon_tasks.records.traces import Trace, decode
from babylon_tasks.records.truncated import is_truncated
from babylon_tasks.store.logprobs import hash_of


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


def test_a_row_without_steps_says_so() -> None:
    with pytest.raises(Unusable) as verdict:
        decode(RawTrace("t-1", "a-1", None, None))
    assert (verdict.value.reason, verdict.value.detail) == ("no_steps", "stepsJson is NULL")


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
        ('[null, "HOLD"]', "wrong_shape"),
        ('[{"environmentState": {"agentPnL": "abc"}}]', "bad_pnl"),
        ('[{"environmentState": {"agentPnL": "nan"}}]', "bad_pnl"),
        ('[{"environmentState": {"agentPnL": "inf"}}]', "bad_pnl"),
        ('[{"environmentState": {"agentPnL": true}}]', "bad_pnl"),
        ('[{"environmentState": [1]}]', "bad_pnl"),
        ("[" * 100_000, "bad_json"),
        ("[" * 100_000 + "]" * 100_000, "wrong_shape"),
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


def decoded(*steps: dict[str, Any]) -> Trace:
    return decode(raw(json.dumps(steps)))


def test_what_teaches_nothing_is_left_out_and_counted() -> None:
    cut = '{"action": "BUY", "why": "because the'
    trace = decoded(
        step(0, call("a"), call(" \n\t"), call(cut)),
        step(0, call("b"), call("a"), call(""), call("a", user="and now?")),
        step(0, call("a"), call(cut)),
    )
    assert [(c.user, c.response) for c in trace.calls] == [
        ("what now?", "a"),
        ("what now?", "b"),
        ("and now?", "a"),
    ]
    assert trace.outcome.left_out == {"empty": 2, "repeated": 2, "truncated": 2}
    assert trace.outcome.calls == 9 == len(trace.calls) + sum(trace.outcome.left_out.values())
    assert trace.outcome.text_bytes == 2 * len("you tradewhat now?a") + len("you tradeand now?a")


def test_a_call_is_repeated_where_all_three_texts_are() -> None:
    trace = decoded(step(0, call("a"), call("a", system="x"), call("a", user="x"), call("ax")))
    assert trace.outcome.left_out == {}
    # The borders between the texts count.
    moved = decoded(step(0, call("c", user="b", system="a"), call("bc", user="", system="a")))
    assert len(moved.calls) == 2


def test_two_trajectories_may_say_the_same() -> None:
    for _ in range(2):
        assert decoded(step(0, call("a"))).outcome.left_out == {}


def test_a_trace_without_calls_has_none_left_out() -> None:
    outcome = decoded({"llmCalls": None}, {}, step(0)).outcome
    assert (outcome.calls, outcome.left_out, outcome.text_bytes) == (0, {}, 0)


def test_versions_go_with_the_calls_that_are_left() -> None:
    def by(version: Any, response: str) -> dict[str, Any]:
        return {**call(response), "modelVersion": version}

    trace = decoded(
        step(0, by("v1.0.1", "a"), by("v1.0.2", "")),
        step(0, call("b"), by("v1.0.3", "a"), by("v1.0.4 ü", "c")),
        step(0, by(3, "d"), by(None, "e"), by(["v1"], "f"), by({"v": 1}, "g"), by("", "h")),
    )
    assert [c.response for c in trace.calls] == list("abcdefgh")
    assert trace.versions == ["v1.0.1", None, "v1.0.4 ü", None, None, None, None, ""]


def token(number: Any, logprob: Any) -> dict[str, Any]:
    return {"token": f"token_id:{number}", "logprob": logprob, "bytes": [66], "top_logprobs": []}


def with_logprobs(content: Any, response: str = "BUY") -> dict[str, Any]:
    return {**call(response), "logprobs": {"content": content, "refusal": None}}


def test_recorded_logprobs_go_with_their_call() -> None:
    """In the form of OpenAI's API, with vLLM's ids for tokens."""
    (found,) = decoded(
        step(0, with_logprobs([token(17, -0.5), token(0, 0), token(9, -9999.0)]))
    ).calls
    assert found.logprobs == Logprobs((17, 0, 9), (-0.5, 0.0, -9999.0))


@pytest.mark.parametrize(
    "odd",
    [
        "null", "3", '"x"', "[]", "{}", '{"content":null}', '{"content":{}}', '{"content":[]}',
        '{"content":[null]}', '{"content":[{"token":"token_id:1"}]}',
        '{"content":[{"token":"token_id:1","logprob":null}]}',
        '{"content":[{"token":"token_id:1","logprob":"-0.1"}]}',
        '{"content":[{"token":"token_id:1","logprob":"NaN"}]}',
        '{"content":[{"token":"token_id:1","logprob":0.1}]}',
        '{"content":[{"token":"token_id:1","logprob":-1e400}]}',
        '{"content":[{"token":"token_id:1","logprob":-1e300}]}',
        '{"content":[{"token":"token_id:1","logprob":-0.1},{"token":"BUY","logprob":-0.1}]}',
        '{"content":[{"token":"token_id:-1","logprob":-0.1}]}',
        '{"content":[{"token":"token_id:1x","logprob":-0.1}]}',
        '{"content":[{"token":"token_id:\\u0661","logprob":-0.1}]}',
        '{"content":[{"token":"token_id:12345678901","logprob":-0.1}]}',
        '{"content":[{"token":1,"logprob":-0.1}]}',
        '{"content":[{"token":"\\ud800","logprob":-0.1}]}',
        '{"content":' + "[" * 300 + "]" * 300 + "}",
    ],
)  # fmt: skip
def test_odd_logprobs_are_none_and_cost_nothing_else(odd: str) -> None:
    plain = decoded(step(0, call("a")), step(0, call("b")))
    text = json.dumps([step(0, {**call("a"), "logprobs": "@@"}), step(0, call("b"))])
    trace = decode(raw(text.replace('"@@"', odd)))
    assert trace == plain
    assert [each.logprobs for each in trace.calls] == [None, None]


def test_logprobs_change_neither_the_hash_nor_what_is_a_repeat() -> None:
    plain = decoded(step(0, call("a")), step(0, call("a"), call("b")))
    trace = decoded(
        step(0, with_logprobs([token(1, -0.5)], "a")),
        step(0, with_logprobs([token(1, -0.75)], "a"), with_logprobs([token(2, -1)], "b")),
    )
    assert trace.outcome == plain.outcome
    assert trace.outcome.left_out == {"repeated": 1}
    assert [each.logprobs for each in trace.calls] == [
        Logprobs((1,), (-0.5,)),
        Logprobs((2,), (-1.0,)),
    ]


@pytest.mark.parametrize(
    ("action", "failed"),
    [
        ({"success": False}, True),
        ({"success": False, "error": "No funds", "result": {"deep": [None]}}, True),
        ({"success": True}, False),
        ({"success": True, "error": "a warning"}, False),
        ({}, False),
        ({"actionType": "HOLD"}, False),
        ({"success": "yes"}, False),
        ({"success": None}, False),
        ({"success": []}, False),
        (None, False),
        ([], False),
        ("BUY", False),
        (3, False),
        ([{"success": False}], False),
    ],
)
def test_failed_actions_are_counted(action: Any, failed: bool) -> None:
    odd = {"action": action}
    outcome = decoded(odd, {"action": {"success": False}}, odd, {}).outcome
    assert outcome.failed == 1 + 2 * failed
    assert outcome.steps == 4


def test_a_failed_action_counts_whatever_text_is_in_it() -> None:
    for part in ('"error": "\\ud800"', '"result": "a\\u0000b"', '"\\udfff": 1', '"x": 1e999'):
        text = '[{"action": {@@, "success": false}}]'.replace("@@", part)
        assert decode(raw(text)).outcome.failed == 1


_ANSWER = json.dumps(
    {
        "reasoning": 'Le marché "ORBX" monte:\n\tvite \\ bien. \U0001f600',
        "trades": [{"side": "YES", "amount": 12.5, "limit": -0.75}, None, [], {}],
        "sizes": [1e-7, 2e300, -3],
        "sure": True,
        "sell": False,
    }
)


@pytest.mark.parametrize("answer", [_ANSWER, json.dumps([json.loads(_ANSWER)], ensure_ascii=False)])
def test_json_is_truncated_wherever_it_is_cut(answer: str) -> None:
    assert not is_truncated(answer, None)
    assert not is_truncated(f"\n {answer}\n", 1)
    missed = [answer[:end] for end in range(1, len(answer)) if not is_truncated(answer[:end], None)]
    assert missed == []


@pytest.mark.parametrize("fence", ["```", "```json\n", "~~ ```"])
def test_a_code_block_is_truncated_without_its_end(fence: str) -> None:
    opened = f"I buy:\n{fence}{_ANSWER}"
    assert is_truncated(opened, None)
    assert not is_truncated(f"{opened}\n```", None)
    assert not is_truncated(f"{opened}\n``` and that is", None)
    assert is_truncated(f"{opened}\n```\nor\n{fence}{{", None)
    # Within JSON that is whole, it is but text.
    assert not is_truncated(json.dumps({"note": "a ``` fence"}), None)


@pytest.mark.parametrize(
    ("length", "end", "max_tokens", "truncated"),
    [
        (700, "x", 200, True),  # 200 tokens of 3.5 characters
        (699, "x", 200, False),
        (700, ".", 200, False),
        (700, "!", 200, False),
        (700, ")", 200, False),
        (700, "\u201d", 200, False),
        (700, ",", 200, True),
        (9999, "x", 200, True),
        (9999, "x", None, False),
        (9999, "x", 0, False),
        (9999, "x", -1, False),
        (9999, "x", float("nan"), False),
        (9999, "x", float("inf"), False),
        (35, "x", 9.5, True),
    ],
)
def test_plain_text_as_long_as_its_limit_needs_an_end(
    length: int, end: str, max_tokens: float | None, truncated: bool
) -> None:
    text = "w" * (length - 1) + end
    assert is_truncated(text, max_tokens) == truncated
    assert is_truncated(f"  {text}\n", max_tokens) == truncated


def test_what_only_begins_like_json_is_plain_text() -> None:
    for start in ("[BUY] because", "[1] it rises,", "{hold} as", "{'side': 'YES'} since", "[] so"):
        assert not is_truncated(start, 200)
        assert not is_truncated(f"{start} {'w' * 700}.", 200)
        assert is_truncated(f"{start} {'w' * 700}", 200)
        assert is_truncated(f"{start} ```buy", None)


@pytest.mark.parametrize("bomb", ["[" * 1_000_000, '{"a":' * 1_000_000, "[" * 900, "{" * 1_000_000])
def test_nesting_costs_neither_the_row_nor_time(bomb: str) -> None:
    started = time.process_time()
    trace = decoded(step(0, call(bomb), call("a")))
    assert trace.outcome.calls == 2
    assert trace.calls[-1].response == "a"
    assert time.process_time() - started < 2


@pytest.mark.parametrize(
    ("max_tokens", "truncated"),
    [
        ("200", True),
        ('"200"', True),
        ("2e2", True),
        ('" 200 "', True),
        *((odd, False) for odd in ["null", "-1", "0", '"abc"', "1e999", '"1e999"', '"nan"', '""']),
        *((odd, False) for odd in ["{}", "[]", "[200]", "true", '"\\ud800"', "9" * 500, "1e4"]),
    ],
)
def test_odd_limits(max_tokens: str, truncated: bool) -> None:
    text = json.dumps([step(0, {**call("word " * 199), "maxTokens": "@@"})])
    outcome = decode(raw(text.replace('"@@"', max_tokens))).outcome
    assert outcome.left_out == ({"truncated": 1} if truncated else {})


def test_the_hash_does_not_depend_on_what_is_left_out() -> None:
    """Else a new filter would have every window scored again."""
    plain = step(0, call("word " * 300), call("word " * 300))
    limited = json.loads(json.dumps(plain))
    for each in limited["llmCalls"]:
        each |= {"maxTokens": 200, "modelVersion": "v1.0.1"}
    limited["action"] = {"success": False}
    first, second = decoded(plain).outcome, decoded(limited).outcome
    assert (first.left_out, second.left_out) == ({"repeated": 1}, {"truncated": 2})
    assert first.content_hash == second.content_hash


def test_the_hash_of_a_trace_never_changes() -> None:
    """It is compared with what earlier versions have stored."""
    assert (
        decoded(step(0, call("a"), call(""), call("é"))).outcome.content_hash
        == "f4d25854a78fc7d33d2775c763b49d6f"
    )


@pytest.mark.parametrize(
    ("told", "read"),
    [
        ({"content": [{"token": "token_id:7", "logprob": -0.5}]}, Logprobs((7,), (-0.5,))),
        ({"content": [{"token": "token_id:7", "logprob": 0, "bytes": None, "top_logprobs": []}]},
         Logprobs((7,), (0.0,))),
        ({"content": [{"token": "BUY", "logprob": -0.5}]}, None),
        ({"content": [{"token": "token_id:-7", "logprob": -0.5}]}, None),
        ({"content": [{"token": "token_id:7", "logprob": "-0.5"}]}, None),
        ({"content": [{"token": "token_id:7", "logprob": 0.5}]}, None),
        ({"content": [{"token": "token_id:7"}]}, None),
        ({"content": []}, None),
        ({"content": None}, None),
        ({}, None),
        ([], None),
        ("x", None),
        (7, None),
        (None, None),
    ],
)  # fmt: skip
def test_recorded_logprobs_are_read_where_they_can_be(told: object, read: Logprobs | None) -> None:
    call = {"userPrompt": "u", "response": "BUY", "logprobs": told}
    text = json.dumps([{"llmCalls": [call, call]}])
    trace = decode(RawTrace("t-1", "a-1", len(text), text))
    assert trace.calls == [Call("", "u", "BUY", read)]
    assert trace.outcome.left_out == {"repeated": 1}


def test_a_sample_with_two_prompts_is_written_as_ever() -> None:
    """Recipes of earlier versions have a digest of such lines."""
    sample = Sample(
        "w", "t", 0.5, [Call("s", "u", "r"), Call("s", "u", "r", Logprobs((1,), (-1.5,)))]
    )
    assert msgspec.json.encode(sample) == (
        b'{"window_id":"w","trajectory_id":"t","reward":0.5,"calls":['
        b'{"system":"s","user":"u","response":"r","logprobs":null},'
        b'{"system":"s","user":"u","response":"r",'
        b'"logprobs":{"token_ids":[1],"values":[-1.5]}}]}'
    )
    assert hash_of(Call("s", "u", "r")) == "f7481e418d4e87c21afbb8c7827c6a1e"
