"""Traces as no app should write them: whatever the text, a trace or a reason, and nothing else."""

from __future__ import annotations

import contextlib
import copy
import json
import math
import time
from typing import Any, get_args

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from babylon_tasks.records.actions import decode_run
from babylon_tasks.records.recorded_steps import RawTrace, Reason, Unusable
from babylon_tasks.records.steps import Sample
from babylon_tasks.records.traces import Trace, decode
from babylon_tasks.scoring.judge.condense import condense
from babylon_tasks.text import one_line
from tests.odd import (
    ODD_TOKENS,
    json_values,
    many_shapes,
    mutated_traces,
    odd_steps,
    valid_trace,
    with_each,
)

quick = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def checked(verdict: Unusable) -> Unusable:
    assert verdict.reason in get_args(Reason)
    assert 0 < len(verdict.detail) <= 500
    assert verdict.detail.isprintable()
    return verdict


def decode_or_why(text: str, trajectory_id: str = "t1") -> Trace | Unusable:
    """What became of a text, having checked that the rest can carry it."""
    try:
        trace = decode(RawTrace(trajectory_id, "agent-1", len(text), text))
    except Unusable as verdict:
        return checked(verdict)
    assert math.isfinite(trace.outcome.pnl)
    assert trace.outcome.steps > 0
    assert len(trace.outcome.content_hash) == 32
    sample = Sample("w", trajectory_id, 0.5, trace.calls)
    line = msgspec.json.encode(sample)
    assert b"\n" not in line
    assert msgspec.json.decode(line, type=Sample) == sample
    sizes = [call.prompt_bytes() + len(call.response.encode()) for call in trace.calls]
    assert trace.outcome.text_bytes == sum(sizes)
    assert trace.outcome.calls == len(trace.calls) + sum(trace.outcome.left_out.values())
    assert all(call.has_prompt() and call.prompt() for call in trace.calls)
    return trace


@quick
@given(mutated_traces())
def test_a_mutated_trace_is_decoded_or_set_aside(text: str) -> None:
    decode_or_why(text)


def check_shapes(text: str) -> None:
    """Every call is kept or counted, whatever is odd in it; what is kept can be shown."""
    became = decode_or_why(text)
    if isinstance(became, Unusable):
        return
    for call in became.calls:
        for message in call.prompt():
            assert message["role"] in ("system", "user", "assistant", "tool")
            assert isinstance(message["content"], str)
            for asked in message.get("tool_calls", ()):
                assert isinstance(json.loads(asked["function"]["arguments"]), dict)
        assert all(tool["function"]["name"] for tool in call.shown_tools() or ())
    raw = RawTrace("t1", "agent-1", len(text), text)
    assert decode(raw) == became
    run = decode_run(raw)
    assert len(run.steps) == became.outcome.steps
    assert condense(run, 500)
    with contextlib.suppress(ValueError, RecursionError):
        steps = json.loads(text)
        assert became.outcome.calls == sum(map(recorded_calls, steps))


def recorded_calls(step: Any) -> int:
    """How many calls a step has; one that cannot be read counts as one."""
    calls = step.get("llmCalls") if isinstance(step, dict) else 0
    return len(calls) if isinstance(calls, list) else int(calls is not None)


def test_calls_in_many_shapes_are_all_kept() -> None:
    text = json.dumps(many_shapes())
    check_shapes(text)
    (step,) = many_shapes()
    trace = decode(RawTrace("t1", "agent-1", len(text), text))
    assert trace.outcome.left_out == {}
    assert len(trace.calls) == len(step["llmCalls"])


@quick
@given(mutated_traces(many=True))
def test_an_odd_part_costs_no_more_than_its_call(text: str) -> None:
    check_shapes(text)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@settings(max_examples=100_000, deadline=None, database=None, suppress_health_check=[*HealthCheck])
@given(mutated_traces(many=True) | json_values.map(json.dumps) | odd_steps.map(json.dumps))
def test_no_json_in_any_place_is_lost_or_fatal(text: str) -> None:
    check_shapes(text)


@quick
@given(st.binary().map(lambda data: data.decode("utf-8", "surrogateescape")) | st.text())
def test_any_bytes_are_decoded_or_set_aside(text: str) -> None:
    decode_or_why(text)


def replaced(path: tuple[Any, ...], token: str) -> str:
    """A valid trace with one node's JSON exchanged."""
    trace = copy.deepcopy(valid_trace())
    node: Any = trace
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = "@@"
    return json.dumps(trace).replace('"@@"', token)


@pytest.mark.parametrize(
    "path",
    [
        (-1,),
        (-1, "llmCalls"),
        (-1, "llmCalls", 0),
        (-1, "llmCalls", 0, "response"),
        (-1, "llmCalls", 0, "logprobs"),
        (-1, "llmCalls", 0, "logprobs", "content", 0, "logprob"),
        (-1, "environmentState"),
        (-1, "environmentState", "agentPnL"),
        (0, "action"),
    ],
)
def test_each_odd_token_at_each_place_we_read(path: tuple[Any, ...]) -> None:
    with_each(lambda token: decode_or_why(replaced(path, token)))


@pytest.mark.parametrize("depth", [10_000, 300_000])
@pytest.mark.parametrize("nest", [("[", "]"), ('{"a":', "}")])
@pytest.mark.parametrize(
    ("around", "reason"),
    [
        ("{}", "wrong_shape"),
        ('[{{"x":{}}}]', None),
        ('[{{"x":"\\ud800","y":{}}}]', None),
        ('[{{"llmCalls":{}}}]', None),
        ('[{{"environmentState":[{}]}}]', "bad_pnl"),
        ('[{{"environmentState":{{"agentPnL":{}}}}}]', "bad_pnl"),
    ],
)
def test_deep_nesting_costs_what_it_is_in(
    depth: int, nest: tuple[str, str], around: str, reason: str | None
) -> None:
    became = decode_or_why(around.format(nest[0] * depth + "1" + nest[1] * depth))
    assert (became.reason if isinstance(became, Unusable) else None) == reason


def test_a_text_of_nothing_but_nesting_is_set_aside_at_once() -> None:
    started = time.process_time()
    verdict = decode_or_why("[" * 16_000_000 + "]" * 16_000_000)
    assert isinstance(verdict, Unusable)
    assert (verdict.reason, verdict.detail) == ("bad_json", "stepsJson is nested too deeply")
    assert time.process_time() - started < 2


def pnl(token: str) -> str:
    return replaced((-1, "environmentState", "agentPnL"), token)


@pytest.mark.parametrize("token", ["9223372036854775808", "1e16", "-1e308", "1" * 400, '"1e300"'])
def test_dollars_beyond_reason_are_no_pnl(token: str) -> None:
    """Sums over an agent's runs would become infinite, or no number at all."""
    verdict = decode_or_why(pnl(token))
    assert isinstance(verdict, Unusable)
    assert verdict.reason == "bad_pnl"


def test_the_largest_pnl_still_counts() -> None:
    trace = decode_or_why(pnl("-1e15"))
    assert isinstance(trace, Trace)
    assert trace.outcome.pnl == -1e15


@pytest.mark.parametrize(
    "text", ["[" + "{}," * 150_000 + "{}]", '[{"llmCalls":[' + "{}," * 150_000 + "{}]}]"]
)
def test_a_text_that_unfolds_to_very_many_parts_is_set_aside(text: str) -> None:
    """11 million empty calls fit into the largest text; hashing them took a third of a lease."""
    verdict = decode_or_why(text)
    assert isinstance(verdict, Unusable)
    assert verdict.reason == "too_large"


def test_an_id_that_an_index_cannot_hold_is_set_aside() -> None:
    text = json.dumps(valid_trace())
    assert isinstance(decode_or_why(text, "é" * 500), Trace)
    verdict = decode_or_why(text, "é" * 501)
    assert isinstance(verdict, Unusable)
    assert verdict.reason == "bad_id"


@given(st.text(st.characters()), st.integers(1, 20))
def test_one_line_is_one_line(text: str, limit: int) -> None:
    line = one_line(text, limit)
    assert len(line) <= limit
    assert line.isprintable()
    line.encode()


def test_one_line_keeps_what_can_be_shown() -> None:
    assert one_line("plain, ünïcode 模型 😀") == "plain, ünïcode 模型 😀"
    assert one_line("a\r\nERROR forged\x1b[2J\x00\ud800") == "a ERROR forged\ufffd[2J\ufffd\ufffd"
    assert one_line("x" * 10_000_000) == "x" * 499 + "…"


def _is_json(token: str) -> bool:
    """Whether JavaScript could have written it, and no decoder gives up on its depth."""
    try:
        json.loads(token, parse_int=float, parse_constant=lambda _: 1 // 0)
    except (ValueError, RecursionError, ZeroDivisionError):
        return False
    return True


# Where older rows hold anything; none of it may cost the row.
FREE = ["action", "modelVersion", "maxTokens", "success"]


def with_free(**parts: str) -> str:
    """A trace with raw JSON at those places."""
    trace = valid_trace()
    trace[0]["action"] = "@@action@@"
    trace[1]["action"]["success"] = "@@success@@"
    trace[0]["llmCalls"][0] |= {"modelVersion": "@@modelVersion@@", "maxTokens": "@@maxTokens@@"}
    text = json.dumps(trace)
    for name in FREE:
        text = text.replace(f'"@@{name}@@"', parts.get(name, "null"))
    return text


def checked_free(text: str) -> None:
    trace = decode_or_why(text)
    assert isinstance(trace, Trace), trace
    outcome = trace.outcome
    plain = decode(RawTrace("t1", "agent-1", 0, json.dumps(valid_trace()))).outcome
    assert (outcome.content_hash, outcome.pnl) == (plain.content_hash, plain.pnl)
    assert outcome.calls == 4 == len(trace.calls) + sum(outcome.left_out.values())
    assert len(trace.versions) == len(trace.calls)
    assert all(version is None or version.encode() is not None for version in trace.versions)
    assert 0 <= outcome.failed <= outcome.steps == 2


@quick
@given(st.fixed_dictionaries(dict.fromkeys(FREE, json_values.map(lambda v: json.dumps(v)))))
def test_no_value_in_a_free_place_costs_the_row(parts: dict[str, str]) -> None:
    if any(word in text for text in parts.values() for word in ("NaN", "Infinity")):
        return  # no JSON at all
    checked_free(with_free(**parts))


@pytest.mark.parametrize("place", FREE)
def test_no_odd_token_in_a_free_place_costs_the_row(place: str) -> None:
    with_each(lambda token: checked_free(with_free(**{place: token})), filter(_is_json, ODD_TOKENS))
