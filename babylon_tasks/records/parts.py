"""The parts of a chat message in the shapes in which apps record them: texts, and calls of tools.

What can be read without doubt is read: OpenAI's chat messages (also the older `function_call`) and
the items of its Responses API, Anthropic's and Gemini's content, Vercel's AI SDK, LangChain. In any
doubt the call is left out with a reason, since it would be trained on what no agent saw.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import msgspec

Message = dict[str, Any]
# Why a call cannot be read: a part that is no text (an image), an answer that is a tool call, an
# answer that was cut off (by its token limit, or by a filter), or a shape that is not known.
WhyNot = Literal["no_text", "tool_call", "truncated", "odd_shape"]

ROLES = {
    "system": "system", "developer": "system",
    "user": "user", "human": "user",
    "assistant": "assistant", "ai": "assistant", "model": "assistant",
    "tool": "tool", "function": "tool",
}  # fmt: skip
TEXTS = ("text", "input_text", "output_text")
_LANGCHAIN = {
    "SystemMessage": "system", "HumanMessage": "human", "AIMessage": "ai",
    "ToolMessage": "tool", "FunctionMessage": "function",
}  # fmt: skip
# The model's thoughts of earlier turns, which servers do not show it again, and mere marks.
_PASSED_OVER = ("thinking", "redacted_thinking", "reasoning", "step-start")
_MEDIA_PARTS = frozenset({"inlineData", "fileData", "image", "document", "video"})
_MEDIA = ("images", "audio", "files", "attachments", "experimental_attachments", "toolInvocations")


class NotReadable(Exception):
    """A call, or a part of it, that is left out; `reason` says why."""

    def __init__(self, reason: WhyNot) -> None:
        super().__init__(reason)
        self.reason: WhyNot = reason


class Parts:
    """The parts of one message: its texts, its tool calls, and results of tools."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.calls: list[Message] = []
        self.results: list[Message] = []

    def text(self) -> str:
        """Return the texts, each on lines of its own, as vLLM shows them."""
        return "\n".join(self.texts)

    def read(self, parts: Sequence[object]) -> None:
        """Add the parts.

        Raises:
            NotReadable: One is no text and nothing about a tool, or the order matters and is lost.
        """
        for part in parts:
            if isinstance(part, str):
                part = {"type": "text", "text": part}
            if not isinstance(part, dict):
                raise NotReadable("odd_shape")
            kind = part.get("type")
            if kind in _PASSED_OVER or part.get("thought") is True:
                continue
            if kind in TEXTS or (kind is None and "text" in part):
                self._add_text(part.get("text"))
            elif kind in ("tool_result", "tool-result") or "functionResponse" in part:
                self._add_result(part)
            else:
                self.calls.append(_call_in(part))

    def _add_text(self, text: object) -> None:
        if not isinstance(text, str) or (self.calls and text.strip()):
            raise NotReadable("odd_shape")
        if not self.calls:
            self.texts.append(text)

    def _add_result(self, part: dict[str, Any]) -> None:
        if self.texts:
            raise NotReadable("odd_shape")
        if part.get("type") == "tool_result":
            result = tool_result(part.get("tool_use_id"), None, part.get("content", ""))
        elif "functionResponse" in part:
            answer = part["functionResponse"]
            if not isinstance(answer, dict) or "response" not in answer:
                raise NotReadable("odd_shape")
            result = tool_result(answer.get("id"), answer.get("name"), to_json(answer["response"]))
        else:
            result = tool_result(part.get("toolCallId"), part.get("toolName"), _sdk_output(part))
        self.results.append(result)


def read_text(value: object) -> str | None:
    """Return a prompt that is text, or a list of texts; None if there is none.

    Raises:
        NotReadable: It is anything else.
    """
    if value is None or isinstance(value, str):
        return value
    parts = Parts()
    parts.read(value if isinstance(value, list) else [value])
    if parts.calls or parts.results:
        raise NotReadable("odd_shape")
    return parts.text()


def unwrapped(value: dict[str, Any]) -> dict[str, Any]:
    """Return LangChain's messages without what its two ways of saving put around them."""
    kind = value.get("type")
    inner, path = value.get("kwargs"), value.get("id")
    if kind == "constructor" and isinstance(inner, dict) and isinstance(path, list) and path:
        return {**inner, "type": _LANGCHAIN.get(str(path[-1]).removesuffix("Chunk"))}
    inner = value.get("data")
    if isinstance(kind, str) and value.keys() == {"type", "data"} and isinstance(inner, dict):
        return {**inner, "type": kind}
    if isinstance(kind, str) and kind.removesuffix("Chunk") in _LANGCHAIN:
        return {**value, "type": _LANGCHAIN[kind.removesuffix("Chunk")]}
    return value


def has_media(value: dict[str, Any]) -> bool:
    """Tell whether a message has more than its content: images, say, as Ollama takes them."""
    return any(value.get(key) for key in _MEDIA)


def tool_call(call_id: object, name: object, arguments: object) -> Message:
    """Return a tool call as OpenAI's API writes it, its arguments as JSON text.

    Raises:
        NotReadable: It has no name, or its arguments are no object.
    """
    if not isinstance(name, str) or not name:
        raise NotReadable("odd_shape")
    if arguments in (None, ""):
        arguments = "{}"
    if isinstance(arguments, dict):
        arguments = to_json(arguments)
    if not isinstance(arguments, str) or not isinstance(from_json(arguments), dict):
        raise NotReadable("odd_shape")
    about = {"id": call_id} if isinstance(call_id, str) else {}
    return {**about, "type": "function", "function": {"name": name, "arguments": arguments}}


def tool_result(call_id: object, name: object, content: object) -> Message:
    """Return a tool's result as OpenAI's API writes it.

    Raises:
        NotReadable: It is no text.
    """
    message = {"role": "tool", "content": read_text(content) or ""}
    if isinstance(call_id, str):
        message["tool_call_id"] = call_id
    if isinstance(name, str):
        message["name"] = name
    return message


def from_json(text: str) -> object:
    """Return what JSON in a text of the app says.

    Raises:
        NotReadable: It is no JSON.
    """
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        raise NotReadable("odd_shape") from None


def to_json(value: object) -> str:
    """Return JSON as JavaScript writes it.

    Raises:
        NotReadable: A number in it is too large.
    """
    try:
        return msgspec.json.encode(value).decode()
    except OverflowError:
        raise NotReadable("odd_shape") from None


def _call_in(part: dict[str, Any]) -> Message:
    """Return the tool call that a part of a message is."""
    kind = part.get("type")
    if kind == "tool_use":
        return tool_call(part.get("id"), part.get("name"), part.get("input"))
    if kind == "tool-call":
        arguments = part.get("input", part.get("args"))
        return tool_call(part.get("toolCallId"), part.get("toolName"), arguments)
    if isinstance(function := part.get("functionCall"), dict):
        return tool_call(function.get("id"), function.get("name"), function.get("args"))
    media = isinstance(kind, str) or not _MEDIA_PARTS.isdisjoint(part)
    raise NotReadable("no_text" if media else "odd_shape")


def _sdk_output(part: dict[str, Any]) -> object:
    """Return a tool's output as the AI SDK sends it to a model."""
    if "result" in part:
        return to_json(part["result"])
    output = part.get("output")
    kind = output.get("type") if isinstance(output, dict) else None
    if not isinstance(output, dict) or "value" not in output:
        raise NotReadable("odd_shape")
    if kind in ("json", "error-json"):
        return to_json(output["value"])
    if kind in ("text", "error-text", "content"):
        return output["value"]
    raise NotReadable("odd_shape")
