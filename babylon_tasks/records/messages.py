"""Chat messages in the shapes in which apps record them, read as those of OpenAI's API."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from babylon_tasks.records.endings import why_not_whole
from babylon_tasks.records.parts import (
    ROLES,
    Message,
    NotReadable,
    Parts,
    from_json,
    has_media,
    to_json,
    tool_call,
    tool_result,
    unwrapped,
)

_KEYS = frozenset({"role", "content", "parts", "kwargs", "data"})


def are_messages(value: object) -> bool:
    """Tell whether a prompt is a message or a list of them, and no text."""
    each = value if isinstance(value, list) else [value]
    return any(
        isinstance(m, list) or (isinstance(m, dict) and not _KEYS.isdisjoint(m)) for m in each
    )


def read_messages(value: object) -> list[Message]:
    """Return messages with role, content (text) and, where they have them, OpenAI's other keys.

    The last one, if it is the assistant's, may tell in `_ended` why it is no whole answer.
    Roles are system, user, assistant and tool. `tool_calls` are as OpenAI's API writes them: each
    has a function, whose arguments are JSON text. Texts of one message stand on lines of their own,
    as vLLM puts them.

    Raises:
        NotReadable: A message has a part that is no text, or an unknown shape.
    """
    if isinstance(value, str):
        value = from_json(value)
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, list):
        raise NotReadable("odd_shape")
    messages: list[Message] = []
    for each in value:
        for message in _read_message(each):
            before = messages[-1] if messages else {}
            if message.pop("_joins", False) and "tool_calls" in before:
                before["tool_calls"] += message["tool_calls"]
            else:
                before.pop("_ended", None)  # earlier turns are context, whatever their end
                messages.append(message)
    return messages


def _read_message(value: object) -> Iterable[Message]:
    if isinstance(value, list) and len(value) == 2 and isinstance(value[0], str):
        value = {"role": value[0], "content": value[1]}  # LangChain's pairs
    if not isinstance(value, dict):
        raise NotReadable("odd_shape")
    value = unwrapped(value)
    kind = value.get("type")
    if "role" not in value and kind in ("function_call", "function_call_output", "reasoning"):
        return _read_item(value)
    named = value.get("role", kind)
    role = ROLES.get(named.lower()) if isinstance(named, str) else None
    if role is None:
        raise NotReadable("odd_shape")
    content = value.get("parts") or value.get("blocks") or value.get("content")
    if "parts" not in value and has_media(value):
        raise NotReadable("no_text")
    if role == "tool":
        return _tool_messages(value, content)
    parts = Parts()
    parts.read(content if isinstance(content, list) else [] if content is None else [content])
    if role == "assistant":
        return [_assistant(value, content, parts)]
    if parts.calls or (content is None or content == []):
        raise NotReadable("odd_shape")
    if not parts.results:
        return [{"role": role, "content": parts.text(), **_named(value)}]
    if role == "system":
        raise NotReadable("odd_shape")
    said = [{"role": role, "content": parts.text()}] if parts.texts else []
    return [*parts.results, *said]


def _assistant(value: dict[str, Any], content: object, parts: Parts) -> Message:
    more = value.get("additional_kwargs")
    for holder in (value, more if isinstance(more, dict) else {}):
        if calls := _listed_calls(holder):
            break
    else:
        calls = parts.calls
    if parts.results or (content is None and not calls):
        raise NotReadable("odd_shape")
    message = {"role": "assistant", "content": parts.text(), **_named(value)}
    if why := why_not_whole(value):
        message["_ended"] = why
    return {**message, "tool_calls": calls} if calls else message


def _listed_calls(holder: dict[str, Any]) -> list[Message]:
    listed = holder.get("tool_calls") or []
    if not isinstance(listed, list):
        raise NotReadable("odd_shape")
    if not listed and holder.get("function_call"):
        listed = [{"function": holder["function_call"]}]
    calls = []
    for each in listed:
        if not isinstance(each, dict):
            raise NotReadable("odd_shape")
        function = each.get("function", each)
        if not isinstance(function, dict):
            raise NotReadable("odd_shape")
        arguments = function.get("arguments", function.get("args"))
        calls.append(tool_call(each.get("id"), function.get("name"), arguments))
    return calls


def _tool_messages(value: dict[str, Any], content: object) -> list[Message]:
    known = value.get("tool_call_id")
    about = {"tool_call_id": known} if isinstance(known, str) else {}
    if isinstance(content, str):
        return [{"role": "tool", "content": content, **about, **_named(value)}]
    if isinstance(content, dict):
        return [{"role": "tool", "content": to_json(content), **about, **_named(value)}]
    if not isinstance(content, list):
        raise NotReadable("odd_shape")
    parts = Parts()
    parts.read(content)
    if parts.calls or bool(parts.results) == bool(parts.texts):
        raise NotReadable("odd_shape")
    return parts.results or [{"role": "tool", "content": parts.text(), **about, **_named(value)}]


def _read_item(item: dict[str, Any]) -> list[Message]:
    """Read an item of OpenAI's Responses API that is no message."""
    if item["type"] == "reasoning":
        return []
    if item["type"] == "function_call":
        call = tool_call(item.get("call_id"), item.get("name"), item.get("arguments"))
        return [{"role": "assistant", "content": "", "tool_calls": [call], "_joins": True}]
    return [tool_result(item.get("call_id"), None, item.get("output"))]


def _named(value: dict[str, Any]) -> Message:
    name = value.get("name")
    return {"name": name} if isinstance(name, str) and name else {}
