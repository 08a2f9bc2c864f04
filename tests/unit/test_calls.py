"""LLM calls in the shapes of many apps: each is read as the agent saw it, or counted."""

from __future__ import annotations

import json
from typing import Any

import pytest

from babylon_tasks.records.actions import decode_run
from babylon_tasks.records.recorded_steps import RawTrace, Unusable
from babylon_tasks.records.steps import Call
from babylon_tasks.records.traces import Trace, decode

SYSTEM = {"role": "system", "content": "You trade."}
USER = {"role": "user", "content": "Buy?"}
YES = {"role": "assistant", "content": "Yes."}
AGAIN = {"role": "user", "content": "And now?"}
PLAIN = [SYSTEM, USER]
TALK = [SYSTEM, USER, YES, AGAIN]
ASKS = {
    "role": "assistant",
    "content": "I look.",
    "tool_calls": [
        {
            "id": "c1",
            "type": "function",
            "function": {"name": "price", "arguments": '{"of":"NOVA"}'},
        }
    ],
}
TOLD = {"role": "tool", "content": '{"price":12}', "tool_call_id": "c1"}
TOOLS_USED = [SYSTEM, USER, ASKS, TOLD]
SCHEMA = {"type": "object", "properties": {"of": {"type": "string"}}}
TOOL = {"type": "function", "function": {"name": "price", "parameters": SCHEMA}}


def raw(*steps: Any) -> RawTrace:
    text = json.dumps(list(steps))
    return RawTrace("t-1", "a-1", len(text), text)


def decoded(*calls: Any) -> Trace:
    state = {"agentPnL": 5}
    return decode(raw({"environmentState": state, "llmCalls": list(calls)}))


def only(call: Any) -> Call:
    """The call, which must be kept."""
    trace = decoded(call)
    assert trace.outcome.left_out == {}
    (kept,) = trace.calls
    return kept


def without(message: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in message.items() if key not in keys}


OPENAI = {
    "a prompt": ({"prompt": "Buy?"}, [USER]),
    "a prompt and a system prompt": ({"systemPrompt": "You trade.", "prompt": "Buy?"}, PLAIN),
    "a prompt that is messages": ({"prompt": TALK}, TALK),
    "a prompt of text parts": ({"prompt": [{"type": "text", "text": "Buy?"}]}, [USER]),
    "a prompt that is a message": ({"prompt": USER}, [USER]),
    "a user's prompt that is messages": ({"userPrompt": PLAIN}, PLAIN),
    "a user's prompt in Gemini's form": (
        {"systemPrompt": "You trade.", "userPrompt": {"role": "user", "parts": [{"text": "Buy?"}]}},
        PLAIN,
    ),
    "a user's prompt of texts": ({"userPrompt": ["Buy?"]}, [USER]),
    "a system prompt alone": ({"systemPrompt": "You trade."}, [SYSTEM]),
    "two messages": ({"messages": PLAIN}, PLAIN),
    "many turns": ({"messages": TALK}, TALK),
    "one message": ({"messages": USER}, [USER]),
    "messages as JSON in a string": ({"messages": json.dumps(TALK)}, TALK),
    "messages beside the prompts": (
        {"messages": TALK, "systemPrompt": "You trade.", "userPrompt": "And now?"},
        TALK,
    ),
    "history beside the prompts": (
        {"messages": [USER, YES], "systemPrompt": "You trade.", "userPrompt": "And now?"},
        TALK,
    ),
    "a system message beside a user's prompt": (
        {"messages": [SYSTEM], "userPrompt": "Buy?"},
        PLAIN,
    ),
    "empty messages beside the prompts": (
        {"messages": [], "systemPrompt": "You trade.", "userPrompt": "Buy?"},
        PLAIN,
    ),
    "null in all places but one": (
        {"messages": None, "prompt": None, "tools": None, "system": None, "userPrompt": "Buy?"},
        [USER],
    ),
    "the answer among the messages": (
        {"messages": [*TALK, {"role": "assistant", "content": "WAIT"}]},
        TALK,
    ),
    "a developer": ({"messages": [{"role": "developer", "content": "You trade."}, USER]}, PLAIN),
    "a role in capitals": ({"messages": [{"role": "User", "content": "Buy?"}]}, [USER]),
    "parts": (
        {
            "messages": [
                {
                    "role": "user",
                    "content": [{"type": "text", "text": "Buy"}, {"type": "text", "text": "or?"}],
                }
            ]
        },
        [{"role": "user", "content": "Buy\nor?"}],
    ),
    "tool calls": ({"messages": TOOLS_USED}, TOOLS_USED),
    "a tool call without a text": (
        {"messages": [SYSTEM, USER, {**ASKS, "content": None}, TOLD]},
        [SYSTEM, USER, {**ASKS, "content": ""}, TOLD],
    ),
    "a tool's result in parts": (
        {
            "messages": [
                SYSTEM,
                USER,
                ASKS,
                {**TOLD, "content": [{"type": "text", "text": TOLD["content"]}]},
            ]
        },
        TOOLS_USED,
    ),
    "a tool's result as an object": (
        {"messages": [SYSTEM, USER, ASKS, {**TOLD, "content": {"price": 12}}]},
        TOOLS_USED,
    ),
    "function_call": (
        {
            "messages": [
                USER,
                {
                    "role": "assistant",
                    "content": None,
                    "function_call": {"name": "price", "arguments": '{"of":"NOVA"}'},
                },
                {"role": "function", "name": "price", "content": "12"},
            ]
        },
        [
            USER,
            {
                "role": "assistant",
                "content": "",
                "tool_calls": [without(ASKS["tool_calls"][0], "id")],  # type: ignore[index]
            },
            {"role": "tool", "content": "12", "name": "price"},
        ],
    ),
    "items of the Responses API": (
        {
            "messages": [
                {"type": "message", "role": "developer", "content": "You trade."},
                {"role": "user", "content": [{"type": "input_text", "text": "Buy?"}]},
                {"type": "reasoning", "id": "rs_1", "summary": []},
                {
                    "type": "function_call",
                    "call_id": "c1",
                    "name": "price",
                    "arguments": '{"of":"NOVA"}',
                },
                {"type": "function_call_output", "call_id": "c1", "output": '{"price":12}'},
            ]
        },
        [SYSTEM, USER, {**ASKS, "content": ""}, TOLD],
    ),
}
OTHERS = {
    "Anthropic": (
        {
            "system": "You trade.",
            "messages": [
                {"role": "user", "content": "Buy?"},
                {
                    "role": "assistant",
                    "content": [
                        {"type": "thinking", "thinking": "Hm.", "signature": "x"},
                        {"type": "text", "text": "I look."},
                        {"type": "tool_use", "id": "c1", "name": "price", "input": {"of": "NOVA"}},
                    ],
                },
                {
                    "role": "user",
                    "content": [
                        {
                            "type": "tool_result",
                            "tool_use_id": "c1",
                            "content": [{"type": "text", "text": '{"price":12}'}],
                        },
                        {"type": "text", "text": "And now?"},
                    ],
                },
            ],
        },
        [*TOOLS_USED, AGAIN],
    ),
    "Anthropic's system in parts": (
        {"system": [{"type": "text", "text": "You trade."}], "messages": [USER]},
        PLAIN,
    ),
    "Gemini": (
        {
            "messages": [
                {"role": "user", "parts": [{"text": "Buy?"}]},
                {
                    "role": "model",
                    "parts": [
                        {"text": "Hm.", "thought": True},
                        {"functionCall": {"name": "price", "args": {"of": "NOVA"}}},
                    ],
                },
                {
                    "role": "user",
                    "parts": [{"functionResponse": {"name": "price", "response": {"price": 12}}}],
                },
            ]
        },
        [
            USER,
            {
                "role": "assistant",
                "content": "",
                "tool_calls": [without(ASKS["tool_calls"][0], "id")],  # type: ignore[index]
            },
            {"role": "tool", "content": '{"price":12}', "name": "price"},
        ],
    ),
    "the AI SDK": (
        {
            "system": "You trade.",
            "prompt": [
                {"role": "user", "content": [{"type": "text", "text": "Buy?"}]},
                {
                    "role": "assistant",
                    "content": [
                        {"type": "text", "text": "I look."},
                        {
                            "type": "tool-call",
                            "toolCallId": "c1",
                            "toolName": "price",
                            "input": {"of": "NOVA"},
                        },
                    ],
                },
                {
                    "role": "tool",
                    "content": [
                        {
                            "type": "tool-result",
                            "toolCallId": "c1",
                            "toolName": "price",
                            "output": {"type": "json", "value": {"price": 12}},
                        }
                    ],
                },
            ],
        },
        [SYSTEM, USER, ASKS, {**TOLD, "name": "price"}],
    ),
    "the AI SDK's pages": (
        {"messages": [{"id": "m", "role": "user", "parts": [{"type": "text", "text": "Buy?"}]}]},
        [USER],
    ),
    "LangChain": (
        {
            "messages": [
                {"type": "system", "content": "You trade.", "additional_kwargs": {}, "id": None},
                {"type": "human", "content": "Buy?", "example": False},
                {
                    "type": "ai",
                    "content": "I look.",
                    "tool_calls": [
                        {"name": "price", "args": {"of": "NOVA"}, "id": "c1", "type": "tool_call"}
                    ],
                },
                {"type": "tool", "content": '{"price":12}', "tool_call_id": "c1"},
            ]
        },
        TOOLS_USED,
    ),
    "LangChain, serialised": (
        {
            "messages": [
                {
                    "lc": 1,
                    "type": "constructor",
                    "id": ["langchain_core", "messages", f"{kind}Message"],
                    "kwargs": {"content": text, "type": "?"},
                }
                for kind, text in (("System", "You trade."), ("Human", "Buy?"))
            ]
        },
        PLAIN,
    ),
    "LangChain, as a dict": (
        {"messages": [{"type": "human", "data": {"content": "Buy?", "type": "human"}}]},
        [USER],
    ),
    "LangChain's pairs": ({"messages": [["system", "You trade."], ["human", "Buy?"]]}, PLAIN),
}


@pytest.mark.parametrize("shape", [*OPENAI, *OTHERS])
def test_a_prompt_is_read_as_the_agent_saw_it(shape: str) -> None:
    recorded, seen = (OPENAI | OTHERS)[shape]
    call = only({**recorded, "response": "WAIT"})
    assert (call.prompt(), call.response) == (seen, "WAIT")
    assert call.has_prompt()


@pytest.mark.parametrize(
    "recorded",
    [
        {},
        {"systemPrompt": "", "userPrompt": None},
        {"systemPrompt": " ", "userPrompt": "\n\t"},
        {"prompt": ""},
        {"messages": []},
        {"messages": None, "model": "x"},
        {"messages": [{"role": "user", "content": " "}]},
        {"messages": [YES, {"role": "user", "content": ""}]},
        {"input": "Buy?"},
        {"tools": [TOOL]},
    ],
)
def test_what_has_no_prompt_is_not_trained(recorded: dict[str, Any]) -> None:
    """The answer would be trained after an empty user message, which no agent saw."""
    trace = decoded({**recorded, "response": "WAIT"}, {**recorded, "response": ""})
    assert trace.calls == []
    assert trace.outcome.left_out == {"no_prompt": 1, "empty": 1}
    assert trace.outcome.text_bytes == 0


ANSWERS: dict[str, Any] = {
    "text": "WAIT",
    "parts": [{"type": "text", "text": "WA"}, {"type": "text", "text": "IT"}],
    "one part": {"type": "text", "text": "WAIT"},
    "a text": {"text": "WAIT"},
    "OpenAI's message": {"role": "assistant", "content": "WAIT", "refusal": None},
    "OpenAI's reply": {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "choices": [
            {
                "index": 0,
                "finish_reason": "stop",
                "message": {"role": "assistant", "content": "WAIT"},
            }
        ],
        "usage": {"total_tokens": 9},
    },
    "the Responses API": {
        "object": "response",
        "output": [
            {"type": "reasoning", "summary": []},
            {
                "type": "message",
                "role": "assistant",
                "content": [{"type": "output_text", "text": "WAIT", "annotations": []}],
            },
        ],
        "text": {"format": {"type": "text"}},
    },
    "Anthropic's reply": {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "content": [
            {"type": "thinking", "thinking": "Hm.", "signature": "x"},
            {"type": "text", "text": "WAIT"},
        ],
        "stop_reason": "end_turn",
    },
    "Gemini's reply": {
        "candidates": [
            {
                "content": {"role": "model", "parts": [{"text": "WAIT"}]},
                "finishReason": "STOP",
                "avgLogprobs": -0.1,
            }
        ]
    },
    "Bedrock's reply": {
        "output": {"message": {"role": "assistant", "content": [{"text": "WAIT"}]}},
        "stopReason": "end_turn",
    },
    "the AI SDK's result": {
        "text": "WAIT",
        "finishReason": "stop",
        "toolCalls": [],
        "usage": {"inputTokens": 9},
    },
    "LangChain's message": {"type": "ai", "content": "WAIT", "tool_calls": []},
    "LangChain's message, serialised": {
        "lc": 1,
        "type": "constructor",
        "id": ["langchain", "schema", "AIMessage"],
        "kwargs": {"content": "WAIT"},
    },
    "LangChain's result": {"generations": [[{"text": "WAIT", "generationInfo": {}}]]},
}


@pytest.mark.parametrize("shape", list(ANSWERS))
def test_an_answer_is_read_as_the_model_wrote_it(shape: str) -> None:
    recorded = {"messages": TALK, "response": ANSWERS[shape]}
    assert only(recorded).response == "WAIT"
    trace = raw({"llmCalls": [recorded]})
    assert [step.reason for step in decode_run(trace).steps] == ["WAIT"]


IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
LEFT_OUT: list[tuple[str, dict[str, Any]]] = [
    ("no_text", {"messages": [{"role": "user", "content": [IMAGE]}]}),
    ("no_text", {"messages": [{"role": "user", "content": [{"type": "text", "text": "?"}, IMAGE]}],
                 "userPrompt": "?"}),
    ("no_text", {"messages": [{"role": "user", "parts": [{"inlineData": {"data": "AAAA"}}]}]}),
    ("no_text", {"messages": [{**USER, "images": ["AAAA"]}]}),
    ("no_text", {"userPrompt": [IMAGE]}),
    ("no_text", {"prompt": [IMAGE]}),
    ("no_text", {"messages": [USER, ASKS, {**TOLD, "content": [IMAGE]}]}),
    ("odd_shape", {"messages": "Buy?"}),
    ("odd_shape", {"messages": 7}),
    ("odd_shape", {"messages": True}),
    ("odd_shape", {"messages": ["Buy?"]}),
    ("odd_shape", {"messages": [None]}),
    ("odd_shape", {"messages": [[[[[1]]]]]}),
    ("odd_shape", {"messages": [{"role": "critic", "content": "Buy?"}]}),
    ("odd_shape", {"messages": [{"source": "user", "content": "Buy?", "type": "TextMessage"}]}),
    ("odd_shape", {"messages": [{"role": "user"}]}),
    ("odd_shape", {"messages": [{"role": "user", "content": None}]}),
    ("odd_shape", {"messages": [{"role": "user", "content": 42}]}),
    ("odd_shape", {"messages": [USER, {**ASKS, "tool_calls": "price"}, TOLD]}),
    ("odd_shape", {"messages": [USER, {**ASKS, "tool_calls": [{"id": "c1"}]}, TOLD]}),
    ("odd_shape", {"messages": [
        USER, {"role": "assistant", "function_call": {"name": "f", "arguments": "{of: 1"}}, TOLD]}),
    ("odd_shape", {"prompt": 42}),
    ("odd_shape", {"userPrompt": 42}),
    ("odd_shape", {"userPrompt": {"template": "Buy {x}?"}}),
    ("odd_shape", {"systemPrompt": False, "userPrompt": "Buy?"}),
    ("odd_shape", {"userPrompt": "Buy?", "tools": ["price"]}),
    ("odd_shape", {"userPrompt": "Buy?", "tools": 3}),
    ("odd_shape", {"messages": [USER, YES]}),  # does WAIT go on from "Yes.", or is a turn missing?
    ("tool_call", {"messages": TALK, "tool_calls": ASKS["tool_calls"]}),
    ("tool_call", {"userPrompt": "Buy?", "toolCalls": [{"toolName": "price", "args": {}}]}),
    ("tool_call", {"messages": [*TALK, ASKS], "response": None}),
    ("tool_call", {"messages": [*TALK, ASKS], "response": ""}),
    ("tool_call", {"messages": [*TALK, ASKS], "response": "I look."}),
    ("tool_call", {"messages": TALK, "response": ASKS}),
    ("tool_call", {"messages": TALK, "response": {"choices": [{"message": ASKS}]}}),
    ("tool_call", {"messages": TALK, "response": [
        {"type": "text", "text": "I look."},
        {"type": "tool_use", "id": "c1", "name": "price", "input": {}}]}),
    ("tool_call", {"messages": TALK, "response": {"output": [
        {"type": "function_call", "name": "price", "arguments": "{}"}]}}),
    ("truncated", {"messages": TALK, "response": {"choices": [
        {"finish_reason": "length", "message": {"role": "assistant", "content": "I wou"}}]}}),
    ("truncated", {"messages": TALK, "response": {
        "role": "assistant", "stop_reason": "max_tokens", "content": "I wou"}}),
    ("tool_call", {"messages": TALK, "response": "I look.", "function_call": {"name": "price"}}),
    ("tool_call", {"messages": TALK, "response": {
        "role": "assistant", "stop_reason": "tool_use", "content": "I look."}}),
    ("tool_call", {"userPrompt": "Buy?", "response": "I look.", "finishReason": "tool-calls"}),
    ("odd_shape", {"messages": TALK, "response": 42}),
    ("odd_shape", {"messages": TALK, "response": {"action": "BUY", "why": "it rises"}}),
    ("odd_shape", {"messages": TALK, "response": {"content": "A post.", "action": "CREATE_POST"}}),
    ("odd_shape", {"messages": TALK, "response": {"role": "user", "content": "Hm?"}}),
    ("odd_shape", {"messages": TALK, "response": {"choices": [{"text": "a"}, {"text": "b"}]}}),
    ("odd_shape", {"messages": TALK, "response": {"role": "assistant", "refusal": "I cannot."}}),
    ("no_text", {"messages": TALK, "response": [IMAGE]}),
]  # fmt: skip


CUT = "I wou"
CUT_YES = {"role": "assistant", "content": CUT}
CUT_AI = {"type": "ai", "content": CUT, "response_metadata": {"finish_reason": "length"}}
CUT_OFF: dict[str, dict[str, Any]] = {
    "OpenAI's filter": {"choices": [{"finish_reason": "content_filter", "message": CUT_YES}]},
    "Mistral": {"choices": [{"finish_reason": "model_length", "message": CUT_YES}]},
    "vLLM": {"choices": [{"finish_reason": "abort", "message": CUT_YES}]},
    "Anthropic": {**CUT_YES, "stop_reason": "model_context_window_exceeded"},
    "Anthropic's filter": {**CUT_YES, "stop_reason": "refusal"},
    "Gemini's filter": {
        "candidates": [
            {"content": {"role": "model", "parts": [{"text": CUT}]}, "finishReason": "SAFETY"}
        ]
    },
    "Bedrock's guard": {"output": {"message": CUT_YES}, "stopReason": "guardrail_intervened"},
    "the Responses API": {"status": "incomplete", "output": [{"type": "message", **CUT_YES}]},
    "LangChain": CUT_AI,
    "LangChain's result": {
        "generations": [[{"text": CUT, "generation_info": {"finish_reason": "length"}}]]
    },
    "LangChain's result with a message": {"generations": [[{"text": CUT, "message": CUT_AI}]]},
    "the AI SDK": {"text": CUT, "finishReason": "content-filter"},
    "Ollama": {"message": CUT_YES, "done": True, "done_reason": "length"},
}


@pytest.mark.parametrize("who", list(CUT_OFF))
def test_an_answer_that_was_cut_off_is_not_trained(who: str) -> None:
    """It would be trained with an end that the model did not write."""
    trace = decoded({"messages": TALK, "response": CUT_OFF[who]})
    assert (trace.calls, trace.outcome.left_out) == ([], {"truncated": 1})


@pytest.mark.parametrize("key", ["finish_reason", "finishReason", "stop_reason", "stopReason"])
def test_why_an_answer_ended_may_stand_beside_it(key: str) -> None:
    cut, whole = {key: "length"}, {key: "stop"}
    plain = {"systemPrompt": "You trade.", "userPrompt": "Buy?", "response": "WAIT"}
    for call in (
        {**plain, **cut},
        {"messages": TALK, "response": CUT, **cut},
        {"messages": [*TALK, {**CUT_YES, **cut}]},
        {"messages": [*TALK, {**CUT_YES, **cut}], "response": CUT},
    ):
        trace = decoded(call)
        assert (trace.calls, trace.outcome.left_out) == ([], {"truncated": 1})
    assert only({**plain, **whole}) == Call("You trade.", "Buy?", "WAIT")
    earlier = [SYSTEM, USER, {**YES, **cut}, AGAIN]  # context, as it was sent
    assert only({"messages": earlier, "response": "WAIT"}).prompt() == TALK


@pytest.mark.parametrize(
    "system",
    [
        {"system": "You trade."},
        {"instructions": "You trade."},
        {"system_instruction": "You trade."},
        {"systemInstruction": {"parts": [{"text": "You trade."}]}},
    ],
    ids=lambda system: next(iter(system)),
)
def test_a_system_message_may_stand_beside_the_messages(system: dict[str, Any]) -> None:
    for asked in ({"messages": [USER]}, {"prompt": "Buy?"}, {"userPrompt": "Buy?"}):
        assert only({**asked, **system, "response": "WAIT"}).prompt() == PLAIN


TEXT = {"content": "Buy?", "role": "user"}
FRAMEWORKS: dict[str, tuple[dict[str, Any], str | list[dict[str, Any]]]] = {
    "Eliza": ({"systemPrompt": "You trade.", "prompt": "Buy?", "response": "WAIT"}, PLAIN),
    "LiteLLM": ({"messages": PLAIN, "response": ANSWERS["OpenAI's reply"]}, PLAIN),
    "DSPy": ({"prompt": None, "messages": PLAIN, "response": ANSWERS["OpenAI's reply"]}, PLAIN),
    "Ollama": ({"system": "You trade.", "prompt": "Buy?", "response": "WAIT", "done": True}, PLAIN),
    "AutoGen 0.2": (
        {"messages": [{**USER, "name": "chair"}], "response": {**YES, "content": "WAIT"}},
        [{**USER, "name": "chair"}],
    ),
    "AutoGen 0.4": (
        {"messages": [{"source": "chair", "content": "Buy?", "type": "TextMessage"}]},
        "odd_shape",
    ),
    "LlamaIndex": (
        {"messages": [{"role": "user", "blocks": [{"block_type": "text", "text": "Buy?"}]}]},
        [USER],
    ),
    "Haystack": (
        {"messages": [{"role": "user", "meta": {}, "content": [{"text": "Buy?"}]}]},
        [USER],
    ),
    "PydanticAI": (
        {"messages": [{"kind": "request", "parts": [{"part_kind": "user-prompt", **TEXT}]}]},
        "odd_shape",
    ),
    "Semantic Kernel": (
        {"messages": [{"role": {"label": "user"}, "items": [{"text": "Buy?"}]}]},
        "odd_shape",
    ),
    "smolagents": (
        {"messages": [USER, {"role": "tool-call", "content": [{"type": "text", "text": "f()"}]}]},
        "odd_shape",
    ),
    "ShareGPT": ({"messages": [{"from": "human", "value": "Buy?"}]}, "odd_shape"),
    "ShareGPT's name": ({"conversations": [{"from": "human", "value": "Buy?"}]}, "no_prompt"),
    "Cohere": (
        {"chat_history": [{"role": "USER", "message": "Hm?"}], "message": "Buy?"},
        "no_prompt",
    ),
    "an assistant of OpenAI's": (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": {"value": "Buy?"}}]}]},
        "odd_shape",
    ),
    "Mistral's prefix": (
        {"messages": [USER, {"role": "assistant", "content": "{", "prefix": True}]},
        "odd_shape",
    ),
    "Bedrock": ({"messages": [{"role": "user", "content": [{"text": "Buy?"}]}]}, [USER]),
    "Bedrock's tools": (
        {"messages": [USER, {"role": "assistant", "content": [{"toolUse": {"name": "f"}}]}, AGAIN]},
        "odd_shape",
    ),
    "Langfuse": ({"input": {"messages": PLAIN}, "output": "WAIT"}, "no_prompt"),
    "a template": ({"prompt": {"template": "Buy {x}?", "x": "NOVA"}}, "odd_shape"),
    "an AI SDK page with a file": (
        {"messages": [{"role": "user", "parts": [{"type": "file", "url": "data:,"}]}]},
        "no_text",
    ),
}


@pytest.mark.parametrize("name", list(FRAMEWORKS))
def test_a_framework_is_read_or_counted(name: str) -> None:
    recorded, became = FRAMEWORKS[name]
    trace = decoded({"response": "WAIT", **recorded})
    if isinstance(became, str):
        assert (trace.calls, trace.outcome.left_out) == ([], {became: 1})
    else:
        (kept,) = trace.calls
        assert (kept.prompt(), kept.response) == (became, "WAIT")


@pytest.mark.parametrize("number", range(len(LEFT_OUT)))
def test_what_cannot_be_read_without_doubt_costs_its_call_alone(number: int) -> None:
    reason, recorded = LEFT_OUT[number]
    plain = {"systemPrompt": "You trade.", "userPrompt": "Buy?", "response": "BUY"}
    for calls in (
        [{"response": "WAIT"} | recorded, plain],
        [plain, {"response": "WAIT"} | recorded],
    ):
        trace = decoded(*calls)
        assert trace.calls == [Call("You trade.", "Buy?", "BUY")]
        assert trace.outcome.left_out == {reason: 1}
        assert (trace.outcome.calls, trace.outcome.pnl) == (2, 5.0)


@pytest.mark.parametrize(
    ("tools", "shown"),
    [
        ([TOOL], [TOOL]),
        (json.dumps([TOOL]), [TOOL]),
        ([{"name": "price", "input_schema": SCHEMA}], [TOOL]),
        ([{"type": "function", "name": "price", "parameters": SCHEMA}], [TOOL]),
        ({"price": {"inputSchema": {"jsonSchema": SCHEMA}}}, [TOOL]),
        ([], None),
        ({}, None),
        (None, None),
    ],
)
def test_definitions_of_tools_go_with_the_call(tools: Any, shown: Any) -> None:
    call = only({"messages": TALK, "tools": tools, "response": "WAIT"})
    assert call.shown_tools() == shown
    call = only(
        {"systemPrompt": "You trade.", "userPrompt": "Buy?", "tools": tools, "response": "W"}
    )
    assert (call.shown_tools(), call.prompt()) == (shown, PLAIN)


@pytest.mark.parametrize(
    ("step", "left_out"),
    [
        (None, {"odd_shape": 1}),
        ("HOLD", {"odd_shape": 1}),
        ([], {"odd_shape": 1}),
        (7, {"odd_shape": 1}),
        ({"llmCalls": "none"}, {"odd_shape": 1}),
        ({"llmCalls": 3}, {"odd_shape": 1}),
        ({"llmCalls": [None, "x", []]}, {"odd_shape": 3}),
        ({"llmCalls": [[[{"response": "x"}]]]}, {"odd_shape": 1}),
        ({"llmCalls": {}}, {"empty": 1}),
        ({"environmentState": [1], "action": "BUY"}, {}),
        ({"environmentState": "rich", "action": [None]}, {}),
        ({"environmentState": 7, "action": {"parameters": [], "success": {}}}, {}),
        ({"environmentState": None, "action": None, "llmCalls": None}, {}),
    ],
)
def test_an_odd_step_costs_no_other(step: Any, left_out: dict[str, int]) -> None:
    good = {
        "environmentState": {"agentPnL": 5},
        "llmCalls": [{"userPrompt": "Buy?", "response": "BUY"}],
        "action": {"actionType": "BUY_SHARES", "success": False},
    }
    for steps in ([step, good], [good, step]):
        trace = decode(raw(*steps))
        assert trace.calls == [Call("", "Buy?", "BUY")]
        assert trace.outcome.left_out == left_out
        assert (trace.outcome.steps, trace.outcome.failed) == (2, 1)
        known = steps[-1] is good or not isinstance(step, dict) or step.get("environmentState")
        assert trace.outcome.pnl == (5.0 if known else 0.0)
        assert [run.action for run in decode_run(raw(*steps)).steps].count("BUY_SHARES") == 1


def test_a_call_alone_is_a_list_of_one() -> None:
    trace = decode(raw({"llmCalls": {"prompt": "Buy?", "response": "BUY"}}))
    assert trace.calls == [Call("", "Buy?", "BUY")]


def test_a_row_may_be_json_in_json() -> None:
    """As `JSON.stringify` of a text writes it; a third layer is nobody's habit."""
    text = json.dumps([{"llmCalls": [{"prompt": "Buy?", "response": "BUY"}]}])
    twice, thrice = json.dumps(text), json.dumps(json.dumps(text))
    assert decode(RawTrace("t", "a", 0, twice)).calls == [Call("", "Buy?", "BUY")]
    for odd in (thrice, '"', '""', '"[1', '"null"'):
        with pytest.raises(Unusable):
            decode(RawTrace("t", "a", 0, odd))


def test_only_a_whole_row_is_set_aside() -> None:
    for steps in ([], [None, "HOLD", 3], [[]]):
        with pytest.raises(Unusable):
            decode(raw(*steps))


def test_the_last_state_that_is_one_tells_the_earnings() -> None:
    last = {"environmentState": {"agentPnL": 7}}
    assert decode(raw(last, {"environmentState": [1]}, "HOLD")).outcome.pnl == 7.0
    for none in ({"environmentState": [1]}, {"environmentState": {"agentPnL": "abc"}}):
        with pytest.raises(Unusable) as verdict:
            decode(raw({}, none) if "agentPnL" in none["environmentState"] else raw(none))
        assert verdict.value.reason == "bad_pnl"


def test_one_call_in_two_shapes_is_repeated() -> None:
    trace = decoded(
        {"systemPrompt": "You trade.", "userPrompt": "Buy?", "response": "BUY"},
        {"messages": PLAIN, "response": "BUY"},
        {"messages": TALK, "response": "BUY"},
        {"prompt": TALK, "response": "BUY"},
        {"messages": TALK, "tools": [TOOL], "response": "BUY"},
    )
    assert trace.outcome.left_out == {"repeated": 2}
    assert len(trace.calls) == 3


def test_the_hash_covers_all_that_is_trained_and_all_that_is_not_read() -> None:
    other = [SYSTEM, USER, {**YES, "content": "No."}, AGAIN]
    calls = [
        {"messages": TALK, "response": "BUY"},
        {"messages": other, "response": "BUY"},
        {"messages": TALK, "response": "SELL"},
        {"messages": TALK, "response": "BUY", "tools": [TOOL]},
        {"messages": PLAIN, "response": "BUY"},
        {"messages": [{"role": "user", "content": [IMAGE]}], "response": "BUY"},
        {"messages": [{"role": "user", "content": [IMAGE, IMAGE]}], "response": "BUY"},
        {"userPrompt": 1, "response": "BUY"},
        {"userPrompt": 2, "response": "BUY"},
        {"response": "BUY"},
    ]
    hashes = [decoded(call).outcome.content_hash for call in calls]
    assert len(set(hashes)) == len(calls)
    assert hashes == [decoded(call).outcome.content_hash for call in calls]


def test_the_bytes_of_a_conversation_count() -> None:
    outcome = decoded({"messages": TALK, "response": "BUY"}).outcome
    assert outcome.text_bytes == len(json.dumps(TALK, separators=(",", ":"))) + 3


@pytest.mark.parametrize("place", ["messages", "prompt", "userPrompt", "response", "tools", "x"])
@pytest.mark.parametrize("depth", [150, 3_000, 30_000])
def test_nesting_costs_its_call_alone(place: str, depth: int) -> None:
    odd = json.dumps({"userPrompt": "Odd?", "response": "BUY", place: "@@"})
    good = json.dumps({"userPrompt": "Buy?", "response": "BUY"})
    for begin, end in (("[", "]"), ('{"a":', "}")):
        text = f'[{{"llmCalls":[{odd},{good}]}}]'.replace('"@@"', f"{begin * depth}1{end * depth}")
        trace = decode(RawTrace("t", "a", len(text), text))
        assert trace.calls[-1] == Call("", "Buy?", "BUY")
        assert trace.outcome.calls == 2 == len(trace.calls) + sum(trace.outcome.left_out.values())
        assert len(trace.calls) == 1 + (place == "x")


@pytest.mark.parametrize(
    "odd", ["NaN", "Infinity", "-Infinity", '"\\ud800"', "1e999", "1" * 5000, '"\\u0000"']
)
def test_what_strict_json_does_not_hold_costs_no_run(odd: str) -> None:
    """Python writes NaN, JavaScript lone surrogates."""
    for place in ("temperature", "messages", "response"):
        text = json.dumps([
            {"llmCalls": [{"userPrompt": "Odd?", "response": "SELL", place: "@@"}]},
            {"llmCalls": [{"userPrompt": "Buy?", "response": "BUY"}]},
        ]).replace('"@@"', odd)  # fmt: skip
        trace = decode(RawTrace("t", "a", len(text), text))
        assert trace.calls[-1] == Call("", "Buy?", "BUY")
        assert trace.outcome.calls == 2 == len(trace.calls) + sum(trace.outcome.left_out.values())


def test_a_number_that_is_none_is_no_pnl() -> None:
    for odd in ("NaN", "Infinity"):
        text = json.dumps([{"environmentState": {"agentPnL": "@@"}}]).replace('"@@"', odd)
        with pytest.raises(Unusable) as verdict:
            decode(RawTrace("t", "a", len(text), text))
        assert verdict.value.reason == "bad_pnl"
