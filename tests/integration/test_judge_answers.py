"""Answers of judges that speak a dialect: each is read, or its windows wait for a named cure."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from babylon_tasks import pipeline
from babylon_tasks.work.context import Context
from tests import judge_server as judge
from tests.clock import let_waits_pass
from tests.judge_server import Behaviour, JudgeServer
from tests.judged import (
    THREE,
    assert_costs_add_up,
    judged_windows,
    stored,
    window_row,
)
from tests.rows import states

MakeContext = Callable[..., Context]

# litellm's own; ruler_call silences it, pytest undoes that.
pytestmark = pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")


def message(**fields: Any) -> Callable[[dict[str, Any]], Any]:
    """The answer's message has these fields; `TEXT` and `OBJECT` in them are the verdict."""

    def change(completion: dict[str, Any]) -> dict[str, Any]:
        choice = completion["choices"][0]
        text = choice["message"].pop("content")

        def fill(value: Any) -> Any:
            if isinstance(value, dict):
                return {name: fill(each) for name, each in value.items()}
            if isinstance(value, list):
                return [fill(each) for each in value]
            if value == "OBJECT":
                return json.loads(text)
            return value.replace("TEXT", text) if isinstance(value, str) else value

        choice["message"].update(fill(fields))
        return completion

    return change


def without(*path: str) -> Callable[[dict[str, Any]], Any]:
    def change(completion: dict[str, Any]) -> dict[str, Any]:
        inner = completion["choices"][0] if path[0] == "choice" else completion
        del inner[path[-1]]
        return completion

    return change


def ended(completion: dict[str, Any], reason: Any) -> dict[str, Any]:
    """The answer with another reason for its end, as litellm may not know it."""
    completion["choices"][0]["finish_reason"] = reason
    return completion


def streamed(completion: dict[str, Any]) -> bytes:
    """As chunks, although nobody asked for them."""
    choice = completion.pop("choices")[0]
    text = choice["message"]["content"]
    lines = [": keep-alive", ""]
    pieces = [text[n : n + 30] for n in range(0, len(text), 30)]
    for piece in [*pieces, None]:
        delta = {"content": piece} if piece else {}
        chunk = {
            **completion,
            "object": "chat.completion.chunk",
            "choices": [{"index": 0, "delta": delta, "finish_reason": None if piece else "stop"}],
            "usage": None if piece else completion["usage"],
        }
        lines += [f"data: {json.dumps(chunk)}", ""]
    return "\n".join([*lines, "data: [DONE]", ""]).encode()


READ = {
    "parts": message(content=[{"type": "text", "text": "TEXT"}]),
    "text in a part of its own kind": message(content=[{"type": "output_text", "text": "TEXT"}]),
    "thinking and text": message(
        content=[
            {"type": "thinking", "thinking": [{"type": "text", "text": "A draft: TEXT"}]},
            {"type": "text", "text": "TEXT"},
        ]
    ),
    "reasoning and text": message(
        content=[{"type": "reasoning", "text": "Hm."}, {"type": "text", "text": "TEXT"}]
    ),
    "strings": message(content=["TEXT"]),
    "a value": message(content=[{"type": "text", "text": {"value": "TEXT"}}]),
    "a part as an object": message(content=[None, {"type": "json", "json": "OBJECT"}]),
    "two choices": lambda c: {**c, "choices": c["choices"] * 2},
    "an object": message(content="OBJECT"),
    "parsed": message(content=None, parsed="OBJECT"),
    "a tool": message(
        content=None,
        tool_calls=[
            {"id": "1", "type": "function", "function": {"name": "Response", "arguments": "TEXT"}}
        ],
    ),
    "a tool with an object": message(
        content="", tool_calls=[{"function": {"name": "json_tool_call", "arguments": "OBJECT"}}]
    ),
    "a function": message(function_call={"name": "Response", "arguments": "TEXT"}),
    "thoughts apart": message(content="TEXT", reasoning_content="A draft: TEXT"),
    "all of it as a thought": message(content=None, reasoning_content="TEXT"),
    "thoughts": message(content="<think>TEXT? No.</think>\n\nTEXT"),
    "thoughts of a template": message(content="TEXT? No.\n</think>\n\nTEXT"),
    "thinking": message(content="<thinking>TEXT</thinking>```json\nTEXT\n```"),
    "a byte order mark": message(content="\ufeffTEXT"),
    "a reason of its own": lambda c: ended(c, "eos_reached"),
    "a number as reason": lambda c: ended(c, 3),
    "no reason": without("choice", "finish_reason"),
    "no usage": without("usage"),
    "usage of another API": lambda c: c | {"usage": {"input_tokens": 5, "output_tokens": 7}},
    "usage in texts": lambda c: c | {"usage": {"prompt_tokens": "5", "completion_tokens": None}},
    "no id": lambda c: {"choices": c["choices"]},
    "a list": lambda c: [c],
    "a delta": lambda c: {"choices": [{"delta": c["choices"][0]["message"]}]},
    "a text": lambda c: {"choices": [{"text": c["choices"][0]["message"]["content"]}]},
    "a marked document": lambda c: b"\xef\xbb\xbf" + json.dumps(c).encode(),
}  # fmt: skip


@pytest.mark.parametrize("document", READ.values(), ids=READ)
def test_an_answer_of_another_form_is_read(
    make_judged: MakeContext, server: JudgeServer, document: Callable[[dict[str, Any]], Any]
) -> None:
    context = make_judged(judge_thinking_tokens=100)
    (window,) = judged_windows(context, 1)
    server.default = Behaviour("dialect", document=document)
    assert pipeline.score(context) == [window]
    assert sorted(stored(context).values()) == sorted(THREE)
    assert len(server.requests) == 1
    assert_costs_add_up(context, window)


@pytest.mark.parametrize("content_type", ["text/event-stream", "application/json"])
def test_a_stream_that_nobody_asked_for_is_read(
    make_judged: MakeContext, server: JudgeServer, content_type: str
) -> None:
    context = make_judged()
    (window,) = judged_windows(context, 1)
    server.default = Behaviour("stream", document=streamed, content_type=content_type)
    assert pipeline.score(context) == [window]
    assert sorted(stored(context).values()) == sorted(THREE)


THOUGHTS = {
    "empty": ("length", message(content="", reasoning_content="Let me think. TEXT")),
    "null": ("length", message(content=None, reasoning="Let me think.")),
    "hidden": ("length", message(content="")),
    "a draft in an open thought": ("length", message(content="<think>First: TEXT. But wait")),
    "a draft in a template's thought": ("length", message(content="First: TEXT. But wait")),
    "an open thought that was `stop`": ("stop", message(content="<think>First: TEXT. But wait")),
    "a closed one": ("length", message(content="<think>First: TEXT.</think>")),
    "in parts": (
        "length",
        message(content=[{"type": "thinking", "thinking": "First: TEXT"}]),
    ),
    "Mistral's reason": ("model_length", message(content="First: TEXT. But wait")),
    "another limit": ("max_output_tokens", message(content="First: TEXT. But wait")),
    "anthropic's reason": ("max_tokens", message(content="", reasoning_content="Let me")),
}


@pytest.mark.parametrize(("reason", "document"), THOUGHTS.values(), ids=THOUGHTS)
def test_a_judge_that_only_thinks_needs_more_tokens_and_no_window_is_to_blame(
    make_judged: MakeContext,
    server: JudgeServer,
    reason: str,
    document: Callable[[dict[str, Any]], Any],
) -> None:
    context = make_judged(max_attempts=1, judge_concurrency=1)
    windows = judged_windows(context, 3)
    server.default = Behaviour("thinks", document=document, finish_reason=reason)
    assert pipeline.score(context) == []
    assert len(server.requests) <= 3 if reason == "length" else 9
    for window in windows:
        row = window_row(context, window)
        assert (row["state"], row["attempts"]) == ("due", 0)
        assert "raise JUDGE_THINKING_TOKENS (now 0)" in row["last_error"]
    assert stored(context) == {}


BROKEN = {
    "no choices": (lambda c: c | {"choices": []}, "JSON without an answer"),
    "null": (lambda c: c | {"choices": None}, "JSON without an answer"),
    "another API": (lambda c: {"message": {"content": "hi"}, "done": True}, "without an answer"),
    "nothing": (lambda c: b"", "it sent an empty answer"),
    "a page": (lambda c: b"<!doctype html><html>Sign in</html>", "a web page and no JSON"),
    "a word": (lambda c: b"OK", "no JSON: is JUDGE_BASE_URL the address of its API?"),
    "a number": (lambda c: 5, "JSON without an answer"),
    "half a stream": (lambda c: streamed(c)[:700], "its stream broke off"),
    "an error in 200": (lambda c: {"error": {"message": "Upstream", "code": 503}}, "Upstream"),
    "a fault": (lambda c: ended(c, "error"), "its answer broke off"),
    "an abort": (lambda c: ended(c, "abort"), "its answer broke off"),
    "an error in words": (lambda c: {"error": "out of memory"}, "out of memory"),
}


@pytest.mark.parametrize(("document", "line"), BROKEN.values(), ids=BROKEN)
def test_windows_wait_for_a_judge_that_sends_no_answer(
    make_judged: MakeContext,
    server: JudgeServer,
    document: Callable[[dict[str, Any]], Any],
    line: str,
) -> None:
    context = make_judged(max_attempts=1)
    (window,) = judged_windows(context, 1)
    server.default = Behaviour("broken", document=document)
    assert pipeline.score(context) == []
    row = window_row(context, window)
    assert (row["state"], row["attempts"]) == ("due", 0)
    assert line in row["last_error"]
    server.default = judge.good
    let_waits_pass(context)
    assert pipeline.score(context) == [window]


def test_an_answer_that_a_filter_took_back_is_about_its_window(
    make_judged: MakeContext, server: JudgeServer
) -> None:
    context = make_judged(max_attempts=1, judge_concurrency=1)
    bad, good = judged_windows(context, 2)
    server.then(replace(judge.empty, finish_reason="content_filter"))
    assert pipeline.score(context) == [good]
    assert "the judge's filter took it back" in window_row(context, bad)["last_error"]
    assert states(context) == {bad: "failed", good: "scored"}


@pytest.mark.parametrize(
    "scores",
    [
        lambda s: [each | {"score": f"{100 * each['score']:g}%"} for each in s],
        lambda s: [each | {"score": 100 * each["score"]} for each in s],
        lambda s: [each | {"score": str(each["score"])} for each in s],
        lambda s: [each | {"trajectory_id": int(each["trajectory_id"])} for each in s],
        lambda s: [{k: each[k] for k in ("trajectory_id", "score")} for each in s],
    ],
    ids=["percent", "hundredths", "texts", "numbers as ids", "no explanation"],
)
def test_scores_in_other_words_are_read(
    make_judged: MakeContext, server: JudgeServer, scores: Callable[[judge.Scores], judge.Scores]
) -> None:
    context = make_judged()
    judged_windows(context, 1)
    server.default = Behaviour("scores", scores=(scores,))
    pipeline.score(context)
    assert sorted(stored(context).values()) == pytest.approx(sorted(THREE))
    assert len(server.requests) == 1
