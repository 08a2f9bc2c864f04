"""JSON as no app should write it, for tests of what reads it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any

from hypothesis import strategies as st

# What may stand where a value is expected, as raw text.
ODD_TOKENS = [
    "NaN",
    "Infinity",
    "-Infinity",
    "nul",
    "",
    "-",
    "01",
    "1e",
    "1e400",
    "-1e-400",
    "9223372036854775808",
    "-9223372036854775809",
    "1" + "0" * 400,
    "1" * 5000,
    '"' + "9" * 5000 + '"',
    '"\\ud800"',
    '"\\udfff\\ud800 x"',
    '"\\uD83D\\uDE00"',
    '"\\u0000"',
    '"\\u12"',
    '"\\x41"',
    '"tab\tline\nend"',
    '"\x7f\u2028\u202e\ufeff\ufffe"',
    '"   "',
    '"' + "é" * 2000 + '"',
    '{"response":"a","response":"b"}',
    '{"\\ud800":1,"\\u0000":2,"":3}',
    '[[{"llmCalls":[{"response":"x"}]}]]',
    "[" * 2000 + "]" * 2000,
    '{"a":' * 2000 + "1" + "}" * 2000,
    "[" * 2000,
    "// comment",
    "'single'",
    "null",
    "true",
    "[]",
    "{}",
]


def with_each(check: Callable[[str], object], tokens: Iterable[str] = ODD_TOKENS) -> None:
    """Check the tokens one after the other; the report of a failure names its token."""
    for token in tokens:
        try:
            check(token)
        except BaseException as failure:
            failure.add_note(f"with the odd token {token[:60]!r}, {len(token)} characters")
            raise


def valid_trace() -> list[dict[str, Any]]:
    """What the app writes, in small."""
    return [
        {
            "stepNumber": number,
            "environmentState": {"agentBalance": 1000.5, "agentPnL": 12.5 * number},
            "providerAccesses": [{"providerName": "feed", "data": {"deep": [1, None, "x"]}}],
            "llmCalls": [
                {
                    "systemPrompt": "You trade.",
                    "userPrompt": f"Step {number}?",
                    "response": "BUY",
                    "logprobs": {"content": [{"token": "token_id:5", "logprob": -0.5}]},
                },
                {"userPrompt": "And now?", "response": "WAIT", "temperature": 0.8},
            ],
            "action": {"actionType": "BUY", "success": True},
        }
        for number in range(2)
    ]


def many_shapes() -> list[dict[str, Any]]:
    """A trace with calls in the shapes of many apps; every one of them can be read."""
    system = {"role": "system", "content": "You trade."}
    asked = [system, {"role": "user", "content": [{"type": "text", "text": "Buy?"}]}]
    function = {"name": "price", "arguments": '{"of":"NOVA"}'}
    used = [
        *asked,
        {"role": "assistant", "content": None,
         "tool_calls": [{"id": "c1", "type": "function", "function": function}]},
        {"role": "tool", "tool_call_id": "c1", "content": "12"},
    ]  # fmt: skip
    schema = {"type": "object", "properties": {}}
    blocks = [
        {"role": "user", "content": "Buy?"},
        {"role": "assistant", "content": [
            {"type": "text", "text": "I look."},
            {"type": "tool_use", "id": "c1", "name": "price", "input": {"of": "NOVA"}}]},
        {"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": "c1", "content": [{"text": "12"}]},
        ]},
    ]  # fmt: skip
    parts = [
        {"role": "user", "parts": [{"text": "Buy?"}]},
        {"role": "model", "parts": [{"functionCall": {"name": "price", "args": {}}}]},
        {"role": "user", "parts": [{"functionResponse": {"name": "price", "response": {"is": 1}}}]},
    ]
    sdk = [
        {"role": "user", "content": "Buy?"},
        {"role": "assistant", "content": [
            {"type": "tool-call", "toolCallId": "c1", "toolName": "price", "input": {}}]},
        {"role": "tool", "content": [
            {"type": "tool-result", "toolCallId": "c1", "toolName": "price",
             "output": {"type": "json", "value": {"is": 1}}}]},
    ]  # fmt: skip
    items = [
        {"role": "user", "content": [{"type": "input_text", "text": "Buy?"}]},
        {"type": "function_call", "call_id": "c1", "name": "price", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": "12"},
    ]
    chain = [
        {"type": "human", "content": "Buy?"},
        {"type": "ai", "content": "", "tool_calls": [{"name": "price", "args": {}, "id": "c1"}]},
        {"lc": 1, "type": "constructor", "id": ["langchain", "ToolMessage"],
         "kwargs": {"content": "12", "tool_call_id": "c1"}},
    ]  # fmt: skip
    message = {"role": "assistant", "content": "WAIT"}
    said = {"role": "model", "parts": [{"text": "BUY"}]}
    calls = [
        {"messages": used, "tools": [{"type": "function", "function": {"name": "price"}}],
         "response": "BUY"},
        {"messages": used, "systemPrompt": "You trade.", "userPrompt": "Buy?", "response": message},
        {"messages": [*asked, message]},
        {"messages": blocks, "system": "You trade.", "response": [{"type": "text", "text": "BUY"}],
         "tools": [{"name": "price", "input_schema": schema}]},
        {"messages": parts, "response": {"candidates": [{"content": said}]}},
        {"prompt": sdk, "response": {"text": "BUY"}, "tools": {"price": {"inputSchema": schema}}},
        {"messages": items, "response": {"output": [{"type": "message", **message}]}},
        {"messages": chain[:1], "response": {"choices": [{"message": message}]}},
        {"messages": chain, "response": "SELL"},
        {"prompt": "Buy?", "systemPrompt": "You trade.", "response": "BUY"},
    ]  # fmt: skip
    return [{"environmentState": {"agentPnL": 1}, "llmCalls": calls, "action": {"success": True}}]


def _paths(node: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = (
        node.items()
        if isinstance(node, dict)
        else enumerate(node)
        if isinstance(node, list)
        else ()
    )
    return [path, *(found for key, child in items for found in _paths(child, (*path, key)))]


PATHS = _paths(valid_trace())
PATHS_OF_MANY = _paths(many_shapes())

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(2**200), 2**200)
    | st.floats()
    | st.text(st.characters(), max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)
tokens = st.sampled_from(ODD_TOKENS) | json_values.map(json.dumps)
parts = st.sampled_from(PATHS_OF_MANY).map(lambda path: json.dumps(_at(many_shapes(), path)))

_KEYS = (
    "environmentState", "agentPnL", "llmCalls", "systemPrompt", "userPrompt", "messages", "prompt",
    "system", "tools", "toolCalls", "tool_calls", "response", "role", "content", "parts", "text",
    "type", "kwargs", "id", "data", "choices", "message", "output", "action", "maxTokens",
)  # fmt: skip
_words = st.sampled_from(("", " ", "user", "assistant", "tool", "text", "tool_use", "human", "x"))
odd_steps = st.lists(
    st.recursive(
        json_values | _words,
        lambda inner: (
            st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(_KEYS), inner, max_size=5)
        ),
        max_leaves=20,
    ),
    max_size=4,
)


@st.composite
def mutated_traces(draw: st.DrawFn, many: bool = False) -> str:
    """A valid trace's JSON with nodes exchanged, keys doubled, text cut, put in or before.

    `many`: one with calls in many shapes, and parts of it in the place of others.
    """
    trace: Any = many_shapes() if many else valid_trace()
    found: list[str] = []
    for path in draw(st.lists(st.sampled_from(PATHS_OF_MANY if many else PATHS), max_size=3)):
        marker = f"@@{len(found)}@@"
        token = draw(tokens | parts if many else tokens)
        trace, replaced = _replace(trace, path, marker)
        if replaced:
            found.append(token)
    text = json.dumps(trace)
    for number, token in enumerate(found):
        text = text.replace(f'"@@{number}@@"', token)
    match draw(st.sampled_from(["whole", "whole", "cut", "put in", "bom", "doubled", "repeated"])):
        case "cut":
            text = text[: draw(st.integers(0, len(text)))]
        case "put in":
            place = draw(st.integers(0, len(text)))
            text = text[:place] + draw(st.text(st.characters(), max_size=3)) + text[place:]
        case "bom":
            text = "\ufeff" + text
        case "doubled":
            key = draw(st.sampled_from(["llmCalls", "environmentState", "agentPnL", "response"]))
            text = text.replace(f'"{key}":', f'"{key}": {draw(tokens)}, "{key}":')
        case "repeated":
            text += text
    return text


def _at(node: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        node = node[key]
    return node


def _replace(trace: Any, path: tuple[Any, ...], marker: str) -> tuple[Any, bool]:
    """The trace with the marker at the path; False where an earlier one took its place."""
    if not path:
        return marker, True
    node = trace
    for key in path[:-1]:
        if isinstance(node, str):
            return trace, False
        node = node[key]
    if isinstance(node, str):
        return trace, False
    node[path[-1]] = marker
    return trace, True
