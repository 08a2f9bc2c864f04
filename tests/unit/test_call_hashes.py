"""Hashes of prompt and answer: the endpoint and the reader of traces must make the same."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from babylon_tasks.records.call_hashes import (
    HASH_BYTES,
    call_prompt_hash,
    prompt_hash,
    response_hash,
    text_hash,
)
from babylon_tasks.records.parts import NotReadable
from babylon_tasks.records.recorded_steps import RawTrace
from babylon_tasks.records.steps import Call
from babylon_tasks.records.traces import decode

Message = dict[str, Any]

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip)
NAMES = st.text("abcdefg_", min_size=1, max_size=8)
NUMBERS = st.integers(-(2**40), 2**40) | st.floats(-1e6, 1e6)
ARGUMENTS = st.dictionaries(NAMES, NUMBERS | TEXTS | st.booleans() | st.none(), max_size=3)
SCHEMAS = st.dictionaries(NAMES, st.sampled_from(["string", "number"]), max_size=3).map(
    lambda names: {"type": "object", "properties": {n: {"type": t} for n, t in names.items()}}
)


@st.composite
def talks(draw: st.DrawFn) -> list[Message]:
    """A conversation as OpenAI's API takes it, that ends with the user or a tool."""
    messages: list[Message] = []
    if draw(st.booleans()):
        messages.append({"role": "system", "content": draw(TEXTS)})
    for number in range(draw(st.integers(0, 3))):
        messages.append({"role": "user", "content": draw(TEXTS)})
        if draw(st.booleans()):
            call_id = f"call_{number}"
            function = {"name": draw(NAMES), "arguments": json.dumps(draw(ARGUMENTS))}
            calls = [{"id": call_id, "type": "function", "function": function}]
            messages.append({"role": "assistant", "content": None, "tool_calls": calls})
            messages.append({"role": "tool", "tool_call_id": call_id, "content": draw(TEXTS)})
        messages.append({"role": "assistant", "content": draw(TEXTS)})
    return [*messages, {"role": "user", "content": draw(TEXTS)}]


def as_parts(messages: list[Message]) -> list[Message]:
    return [
        {**m, "content": [{"type": "text", "text": m["content"]}] if m["content"] else None}
        for m in messages
    ]


def by_developer(messages: list[Message]) -> list[Message]:
    return [{**m, "role": "developer" if m["role"] == "system" else m["role"]} for m in messages]


def with_ids(messages: list[Message]) -> list[Message]:
    """With what apps add to what they sent."""
    return [{**m, "id": f"m{n}", "createdAt": "2026-01-01"} for n, m in enumerate(messages)]


def arguments_as_objects(messages: list[Message]) -> list[Message]:
    """As Anthropic's API has tool calls, and as the AI SDK records them."""
    changed = []
    for message in messages:
        if message.get("tool_calls"):
            (call,) = message["tool_calls"]
            part = {
                "type": "tool_use",
                "id": call["id"],
                "name": call["function"]["name"],
                "input": json.loads(call["function"]["arguments"]),
            }
            message = {"role": "assistant", "content": [part]}
        changed.append(message)
    return changed


def recorded_messages(messages: list[Message]) -> Message:
    return {"messages": messages}


def with_answer(messages: list[Message]) -> Message:
    return {"messages": [*messages, {"role": "assistant", "content": "BUY"}]}


def in_prompt(messages: list[Message]) -> Message:
    return {"prompt": json.loads(json.dumps(messages))}


def system_apart(messages: list[Message]) -> Message:
    if messages[0]["role"] != "system":
        return {"messages": messages}
    return {"systemPrompt": messages[0]["content"], "messages": messages[1:]}


def last_apart(messages: list[Message]) -> Message:
    *before, last = messages
    # A prompt that an earlier turn has in it may be that turn.
    assume(not any(m["role"] == "user" and last["content"] in m["content"] for m in before))
    return {"messages": before, "userPrompt": last["content"]} if before else {"messages": messages}


RECORDINGS: list[Callable[[list[Message]], Message]] = [
    recorded_messages, with_answer, in_prompt, system_apart, last_apart,
    lambda m: {"messages": as_parts(m)}, lambda m: {"messages": by_developer(m)},
    lambda m: {"messages": with_ids(m)}, lambda m: {"messages": arguments_as_objects(m)},
    lambda m: {"messages": json.dumps(m)},
]  # fmt: skip
REQUESTS: list[Callable[[list[Message]], list[Message]]] = [
    lambda m: m, as_parts, by_developer, with_ids,
]  # fmt: skip


def recorded(call: Message) -> Call:
    text = json.dumps([{"environmentState": {"agentPnL": 1}, "llmCalls": [call]}])
    (kept,) = decode(RawTrace("t", "a", len(text), text)).calls
    return kept


@given(talks(), st.sampled_from(RECORDINGS), st.sampled_from(REQUESTS))
def test_a_conversation_has_one_hash_however_it_is_sent_and_recorded(
    messages: list[Message],
    record: Callable[[list[Message]], Message],
    send: Callable[[list[Message]], list[Message]],
) -> None:
    call = recorded({"response": "BUY", **record(messages)})
    assert call_prompt_hash(call) == prompt_hash(send(messages))


@given(TEXTS | st.just(""), TEXTS, st.sampled_from(REQUESTS))
def test_two_prompts_have_the_hash_of_the_request_that_they_were(
    system: str, user: str, send: Callable[[list[Message]], list[Message]]
) -> None:
    call = recorded({"systemPrompt": system, "userPrompt": user, "response": "BUY"})
    sent = [{"role": "system", "content": system}, {"role": "user", "content": user}]
    assert call_prompt_hash(call) == prompt_hash(send(sent if system else sent[1:]))
    if not system:  # some apps send an empty one
        assert call_prompt_hash(call) == prompt_hash(sent)


@given(st.lists(st.tuples(NAMES, TEXTS | st.just(""), SCHEMAS), min_size=1, max_size=3))
def test_tools_count_in_whatever_shape_they_are_recorded(tools: list[tuple[str, str, Any]]) -> None:
    sent = [
        {"type": "function", "function": {"name": n, "description": d, "parameters": p}}
        for n, d, p in tools
    ]
    anthropic = [{"name": n, "description": d, "input_schema": p} for n, d, p in tools]
    user = [{"role": "user", "content": "Buy?"}]
    for shape in (sent, anthropic, json.dumps(sent)):
        call = recorded({"userPrompt": "Buy?", "tools": shape, "response": "BUY"})
        assert call_prompt_hash(call) == prompt_hash(user, sent)
        assert call_prompt_hash(call) != prompt_hash(user)


@pytest.mark.parametrize(
    "other",
    [
        [{"role": "user", "content": "Sell?"}],
        [{"role": "system", "content": "Buy?"}],
        [{"role": "system", "content": ""}, {"role": "user", "content": "Buy? "}],
        [{"role": "user", "content": "Buy?"}, {"role": "user", "content": "Now"}],
    ],
)
def test_other_conversations_have_another_hash(other: list[Message]) -> None:
    assert prompt_hash(other) != prompt_hash([{"role": "user", "content": "Buy?"}])


def test_what_a_tool_was_called_with_counts() -> None:
    def asked(arguments: Any) -> bytes:
        function = {"name": "price", "arguments": arguments}
        asks = {"role": "assistant", "content": None, "tool_calls": [{"function": function}]}
        return prompt_hash([asks, {"role": "tool", "content": "12"}])

    assert asked('{"b": 1.0, "a": "x"}') == asked({"a": "x", "b": 1})
    assert asked('{"b": 2, "a": "x"}') != asked({"a": "x", "b": 1})


@pytest.mark.parametrize(
    "messages",
    [
        None, 7, [7], [{}], [{"role": "user"}], [{"role": "user", "content": None}],
        [{"role": "robot", "content": "x"}],
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}],
        [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}],
        [{"role": "tool", "content": {"a": "\ud800"}}],
    ],
)  # fmt: skip
def test_what_cannot_be_read_says_so(messages: Any) -> None:
    with pytest.raises(NotReadable):
        prompt_hash(messages)


def test_a_lone_surrogate_is_what_the_recorded_one_becomes() -> None:
    text = '[{"environmentState": {}, "llmCalls": [{"userPrompt": "a\\ud83d", "response": "B"}]}]'
    (call,) = decode(RawTrace("t", "a", len(text), text)).calls
    assert call_prompt_hash(call) == prompt_hash([{"role": "user", "content": "a\ud83d"}])


@given(st.text())
def test_an_answer_counts_without_its_outer_white_space(text: str) -> None:
    assert len(response_hash(text)) == HASH_BYTES
    assert response_hash(f" \n\t\ufeff{text}\u2028 ") == response_hash(text.strip())
    assert response_hash(f"{text.strip()}.") != response_hash(text)


def test_a_text_prompt_is_no_chat() -> None:
    texts = ["Buy?", "", [1, 2], [12], [[1], [2]]]
    hashes = {text_hash(each) for each in texts}
    assert len(hashes) == len(texts)
    assert prompt_hash([{"role": "user", "content": "Buy?"}]) not in hashes
