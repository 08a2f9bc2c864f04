"""The answer of an LLM call in the shapes in which apps record it, read as text."""

from __future__ import annotations

from typing import Any

from babylon_tasks.records.endings import require_whole
from babylon_tasks.records.parts import ROLES, NotReadable, Parts, has_media, unwrapped

_ANSWERS = ("assistant", "text", "output_text")
# What may stand beside the text of an answer. An object with other keys may be an answer in JSON.
_BESIDE_AN_ANSWER = frozenset({
    "additional_kwargs", "annotations", "audio", "content", "created", "created_at", "createdAt",
    "example", "finish_reason", "finishReason", "function_call", "id", "index",
    "invalid_tool_calls", "logprobs", "message", "metadata", "model", "name", "object", "parts",
    "providerMetadata", "reasoning", "reasoning_content", "refusal", "response_metadata", "role",
    "status", "stop_reason", "stop_sequence", "stopReason", "text", "thinking", "tool_calls",
    "toolCalls", "toolResults", "type", "usage", "usage_metadata", "warnings",
})  # fmt: skip
# Replies of OpenAI's, Gemini's, LangChain's, OpenAI's newer and Bedrock's APIs.
_ENVELOPES = ("choices", "candidates", "generations", "output")


def read_answer(value: object, in_envelope: bool = False) -> str | None:
    """Return the text of an answer: a string, an assistant's message, or a server's whole reply.

    Raises:
        NotReadable: It is a tool call, or cut off, or has a part that is no text, or an unknown
            shape.
    """
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, list):
        return _join_answers(value)
    if not isinstance(value, dict):
        raise NotReadable("odd_shape")
    value = unwrapped(value)
    if has_tool_calls(value):
        raise NotReadable("tool_call")
    require_whole(value)
    for key in _ENVELOPES:
        if isinstance(value.get(key), list | dict):
            inner = value[key] if key == "output" else _only(value[key])
            return read_answer(inner, in_envelope=True)
    kind = value.get("role", value.get("type"))
    is_message = isinstance(kind, str) and ROLES.get(kind.lower(), kind) in _ANSWERS
    # Without a role it may be the answer itself, in JSON that the app has decoded.
    may_be = kind in (None, "message") and (in_envelope or value.keys() <= _BESIDE_AN_ANSWER)
    if value.get("refusal") or has_media(value) or not (is_message or may_be):
        raise NotReadable("odd_shape")
    for key in ("message", "content", "parts", "text"):
        if value.get(key) is not None:
            return read_answer(value[key], in_envelope)
    raise NotReadable("odd_shape")


def has_tool_calls(value: dict[str, Any]) -> bool:
    """Tell whether an answer calls a tool."""
    return any(value.get(key) for key in ("tool_calls", "toolCalls", "function_call"))


def _join_answers(values: list[object]) -> str:
    """Return the texts of an answer in parts, which a model writes without anything between."""
    texts = []
    for each in values:
        if isinstance(each, str):
            texts.append(each)
        elif not isinstance(each, dict):
            raise NotReadable("odd_shape")
        elif "role" in each or each.get("type") == "message":
            texts.append(read_answer(each) or "")
        else:
            parts = Parts()
            if each.get("type") == "function_call":
                raise NotReadable("tool_call")
            parts.read([each])
            if parts.calls:
                raise NotReadable("tool_call")
            if parts.results:
                raise NotReadable("odd_shape")
            texts += parts.texts
    return "".join(texts)


def _only(value: object) -> object:
    """Return the one item of a list of lists or items: of several answers none is the agent's."""
    while isinstance(value, list):
        if len(value) != 1:
            raise NotReadable("odd_shape")
        value = value[0]
        if isinstance(value, dict) and isinstance(value.get("message"), dict):
            require_whole(value)
            return value["message"]
    return value
