"""A judge's HTTP answer, rewritten as OpenAI's API would have written it.

Servers that call themselves OpenAI-compatible write text in parts, tools for text, streams that
nobody asked for, errors as plain text. litellm calls most of them an "invalid response object".
"""

from __future__ import annotations

import json
from typing import Any

from babylon_tasks.records.endings import BY_FAULT, BY_FILTER, BY_LIMIT, plain

_BROKE_OFF = "its answer broke off"
_TELLING = ("error", "detail", "message", "msg", "error_msg", "errors", "base_resp")  # of an error
_ERROR_CHARS = 2000  # of a server's own words that are kept


def as_openai(status: int, content_type: str, raw: bytes) -> tuple[int, bytes]:
    """Return the status and the body of a chat completion as OpenAI would have sent them.

    What cannot be read becomes an error 500 that says what came.
    """
    text = raw.decode(errors="replace").lstrip("\ufeff").strip()
    try:
        body = json.loads(text)
    except (ValueError, RecursionError):
        if status >= 300:
            return status, _error(text)
        body = _joined(text)
        if body is None:
            return 500, _error(_no_json(content_type, text))
    if isinstance(body, list) and len(body) == 1:
        body = body[0]
    if not isinstance(body, dict):
        body = {"message": body} if status >= 300 else {}
    if status >= 300:
        return status, _error(*_told(body))
    choices = [_choice(each) for each in _dicts(body.get("choices"))]
    if choices and choices[0]["finish_reason"] == "error":
        body, choices = {"error": _dicts(body["choices"])[0].get("error") or _BROKE_OFF}, []
    if not choices:  # a gateway that answers 200 whatever came from behind it
        if not _words(body):
            return 500, _error("it sent JSON without an answer: is JUDGE_BASE_URL right?")
        message, code = _told(body)
        known = isinstance(code, int | str) and str(code).isdigit() and 400 <= int(code) <= 599
        return int(code) if known else 500, _error(message, code)
    body.update(choices=choices, usage=_usage(body.get("usage")))
    return status, json.dumps(body).encode()


def moved(target: str) -> bytes:
    """Return the body of an error that says where a redirected question should go.

    A client that followed it would ask there without the question.
    """
    scheme, separator, rest = target.partition("?")[0].rpartition("//")
    address = scheme + separator + rest.rpartition("@")[2].removesuffix("/chat/completions")
    return _error(f"it redirects to {address}: is that the address for JUDGE_BASE_URL?")


def _no_json(content_type: str, text: str) -> str:
    if not text:
        return "it sent an empty answer"
    kind = "a web page" if "<html" in text[:2000].lower() else content_type or "text"
    return f"it sent {kind} and no JSON: is JUDGE_BASE_URL the address of its API?"


def _told(body: dict[str, Any]) -> tuple[str, Any]:
    """Return the message and the code of an error, in whichever form they came."""
    error = _words(body) or body
    if isinstance(error, dict):
        code = error.get("code") or error.get("type") or body.get("code")
        message = error.get("message") or error.get("detail") or error.get("status_msg") or error
        metadata = error.get("metadata")  # where OpenRouter repeats the provider's own words
        if isinstance(metadata, dict) and metadata.get("raw"):
            message = f"{message}: {metadata['raw']}"
    else:
        code, message = body.get("code"), error
    return message if isinstance(message, str) else json.dumps(message), code


def _words(body: dict[str, Any]) -> Any:
    """Return what an error says, or None; an object as `message` is an answer of another API."""
    told = (body.get(name) for name in _TELLING if name != "message")
    message = body.get("message")
    return next(filter(None, told), None) or (message if isinstance(message, str) else None)


def _error(message: str, code: Any = None) -> bytes:
    error = {"message": message[:_ERROR_CHARS], "type": None, "param": None, "code": code}
    return json.dumps({"error": error}).encode()


def _joined(text: str) -> dict[str, Any] | None:
    """Return the whole answer of a stream of chunks, or None if it is none."""
    whole: dict[str, Any] = {}
    content: list[str] = []
    thoughts: list[str] = []
    reason = None
    for line in text.splitlines():
        if not line.startswith("data:") or "[DONE]" in line:
            continue
        try:
            chunk = json.loads(line[len("data:") :])
        except (ValueError, RecursionError):
            continue
        if not isinstance(chunk, dict):
            continue
        whole.update({name: value for name, value in chunk.items() if value})
        for choice in _dicts(chunk.get("choices")):
            delta = _choice(choice)["message"]
            content.append(delta["content"])
            thoughts.append(delta.get("reasoning_content", ""))
            reason = choice.get("finish_reason") or reason
    if not whole:
        return None
    if "error" in whole:
        return {"error": whole["error"]}
    if not reason and "[DONE]" not in text:
        return {"error": "its stream broke off"}
    message = {"content": "".join(content), "reasoning_content": "".join(thoughts)}
    choices = [{"message": message, "finish_reason": reason}]
    return {**whole, "object": "chat.completion", "choices": choices}


def _choice(choice: dict[str, Any]) -> dict[str, Any]:
    message = choice.get("message") or choice.get("delta") or {}
    if not isinstance(message, dict):
        message = {"content": message}
    content, thoughts = _texts(message.get("content", choice.get("text")))
    if not content:
        content = _as_tool(message)
    reasoning = message.get("reasoning_content") or message.get("reasoning") or thoughts
    answer = {"role": "assistant", "content": content}
    if reasoning:
        answer["reasoning_content"] = "".join(_texts(reasoning))
    reason = _reason(choice)
    if message.get("refusal"):
        reason = "content_filter"
    return {"index": 0, "message": answer, "finish_reason": reason}


def _reason(choice: dict[str, Any]) -> str:
    """Return why an answer ended in OpenAI's words; litellm refuses an answer with others."""
    reason = plain(str(choice.get("finish_reason") or choice.get("stop_reason")))
    if reason in BY_FAULT:
        return "error"
    return "length" if reason in BY_LIMIT else "content_filter" if reason in BY_FILTER else "stop"


def _texts(content: Any) -> tuple[str, str]:
    """Return a message's visible text and its thoughts, from a string, an object or parts."""
    if content is None or isinstance(content, str):
        return content or "", ""
    if not isinstance(content, list):
        value = content.get("value") if isinstance(content, dict) else None
        return value if isinstance(value, str) else json.dumps(content), ""
    texts: list[str] = []
    thoughts: list[str] = []
    for part in content:
        if isinstance(part, str):
            texts.append(part)
        elif isinstance(part, dict):
            kind = str(part.get("type", "text"))
            inner = part.get("text") or part.get("content") or part.get(kind) or ""
            words = "".join(_texts(inner))
            (thoughts if "think" in kind or "reason" in kind else texts).append(words)
    return "".join(texts), "".join(thoughts)


def _as_tool(message: dict[str, Any]) -> str:
    """Return a verdict that was written as the arguments of a tool, or as a parsed object."""
    calls = [call.get("function") for call in _dicts(message.get("tool_calls"))]
    functions = _dicts([message.get("function_call"), *calls])
    for value in [message.get("parsed"), *(each.get("arguments") for each in functions)]:
        if value:
            return value if isinstance(value, str) else json.dumps(value)
    return ""


def _dicts(values: Any) -> list[dict[str, Any]]:
    return [each for each in values if isinstance(each, dict)] if isinstance(values, list) else []


def _usage(usage: Any) -> dict[str, int]:
    usage = usage if isinstance(usage, dict) else {}
    prompt = _count(usage.get("prompt_tokens") or usage.get("input_tokens"))
    answer = _count(usage.get("completion_tokens") or usage.get("output_tokens"))
    return {
        "prompt_tokens": prompt,
        "completion_tokens": answer,
        "total_tokens": prompt + answer,
    }


def _count(value: Any) -> int:
    try:
        return max(int(float(value)), 0)
    except (TypeError, ValueError, OverflowError):
        return 0
