"""A request's JSON as a checked question."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from babylon_tasks.text import one_line
from workers.serve.backend import ApiError, Question
from workers.serve.http.parameters import (
    MOST_ANSWERS,
    ChatParameters,
    Parameters,
    TextParameters,
)

# What never reaches a backend: it says how to answer, or means nothing here.
_NOT_PASSED_ON = (
    "model",
    "stream",
    "stream_options",
    "user",
    "metadata",
    "store",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_options",
    "prompt_cache_retention",
    "modalities",
    "best_of",
)
_DEEPEST = 64  # levels of lists and objects in a schema
_LARGEST_INTEGER = 2**63 - 1
_AGENT_LENGTH = 256

# Texts may be long. Of all else there is a most, since each value costs time that others wait for.
_MOST_BESIDE = 2**18  # bytes beside `messages` and `prompt`
_MOST_STRINGS = 100_000  # in `messages`, names of fields included
_MOST_TOKENS = 2**20  # in `prompt`

_decoders: dict[str, msgspec.json.Decoder[Any]] = {
    "chat": msgspec.json.Decoder(ChatParameters),
    "text": msgspec.json.Decoder(TextParameters),
}


class _Long(msgspec.Struct):
    messages: msgspec.Raw = msgspec.Raw()
    prompt: msgspec.Raw = msgspec.Raw()


_long = msgspec.json.Decoder(_Long)
_lists: dict[bytes, msgspec.json.Decoder[Any]] = {  # by how the first item begins
    b'"': msgspec.json.Decoder(list[str]),
    b"[": msgspec.json.Decoder(list[list[int]]),
}
_tokens = msgspec.json.Decoder(list[int])
_UNKNOWN = re.compile(r"Object contains unknown field `(.*)`", re.DOTALL)
_MISSING = re.compile(r"Object missing required field `(.*)`", re.DOTALL)
_PLACE = re.compile(r" - at `([^`]*)`$")
_QUOTED = re.compile(r"`(\w+)`")


@dataclass(frozen=True, slots=True)
class Shown:
    """What the client asked to see beside the text."""

    logprobs: bool
    token_ids: bool
    usage: bool


@dataclass(frozen=True, slots=True)
class Asked:
    """A request that was checked: whom it asks, what, and for which agent."""

    model: str
    agent: str | None
    question: Question
    shown: Shown


def parse(kind: Literal["chat", "text"], body: bytes, agent: str | None, captured: bool) -> Asked:
    """Check a request's body; `agent` is what its header names.

    A long body takes a while, but never long in one piece: other threads go on meanwhile.

    Raises:
        ApiError: It is no such request; the message names the parameter.
    """
    try:
        _require_few_values(_long.decode(body), len(body))
        given: Parameters = _decoders[kind].decode(body)
    except msgspec.ValidationError as error:
        raise _refusal(str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise ApiError(400, "the body is no JSON that can be read") from None
    values = {
        name: value
        for name, value in msgspec.to_builtins(given).items()
        if value is not None and name not in _NOT_PASSED_ON
    }
    for name, value in values.items():
        if name not in ("messages", "prompt"):  # these have no such values
            _require_plain(name, value)
    if given.stream:  # for the key's budget; the client sees it only where it asked
        values["stream_options"] = {"include_usage": True}
    echoed = isinstance(given, TextParameters) and bool(given.echo)
    return Asked(
        model=given.model,
        agent=_agent(given, agent),
        question=Question(kind, values, bool(given.stream), captured and not echoed),
        shown=_shown(given),
    )


def _require_few_values(long: _Long, size: int) -> None:
    """Refuse a body with more values than one request needs, before they are made."""
    messages, prompt = bytes(long.messages), bytes(long.prompt)
    beside = size - len(messages) - len(prompt)
    if beside > _MOST_BESIDE:
        raise ApiError(400, f"{beside} bytes beside messages and prompt: {_MOST_BESIDE} at most")
    # A quote within a text is escaped, and each text has two that are not.
    if messages.count(b'"') - messages.count(b'\\"') > 2 * _MOST_STRINGS:
        raise ApiError(400, "messages: too many parts, calls or fields", param="messages")
    if prompt.startswith(b"["):
        first = prompt[1:].lstrip()[:1]
        if prompt.count(b",") > _MOST_TOKENS:
            raise ApiError(400, f"prompt: more than {_MOST_TOKENS} tokens", param="prompt")
        if first == b"[" and prompt.count(b"[") > 1 + MOST_ANSWERS:
            raise ApiError(400, f"prompt: more than {MOST_ANSWERS} lists", param="prompt")
        try:
            _lists.get(first, _tokens).decode(prompt)
        except msgspec.ValidationError:
            reason = "neither a text, nor tokens, nor a list of one of them"
            raise ApiError(400, f"prompt: {reason}", param="prompt") from None


def _shown(given: Parameters) -> Shown:
    if isinstance(given, ChatParameters):
        logprobs = bool(given.logprobs)
    else:
        assert isinstance(given, TextParameters)
        logprobs = given.logprobs is not None
    options = given.stream_options
    return Shown(
        logprobs=logprobs,
        token_ids=bool(given.return_token_ids),
        usage=not given.stream or bool(options and options.include_usage),
    )


def _agent(given: Parameters, header: str | None) -> str | None:
    """Return who asks: by the header, else `user`, else the system prompt."""
    named = header or given.user
    if named:
        return one_line(named, _AGENT_LENGTH)
    if isinstance(given, ChatParameters):
        for message in given.messages:
            if message.role in ("system", "developer"):
                digest = hashlib.sha256(message.text().encode()).hexdigest()
                return f"system:{digest[:16]}"
    return None


def _require_plain(name: str, value: Any, depth: int = 0) -> None:
    """Refuse what JSON can say and a backend may stumble over: huge integers and deep nesting."""
    if depth > _DEEPEST:
        raise ApiError(400, f"{name}: nested too deeply", param=name)
    if isinstance(value, list):
        for each in value:
            _require_plain(name, each, depth + 1)
    elif isinstance(value, dict):
        for each in value.values():
            _require_plain(name, each, depth + 1)
    elif isinstance(value, int) and not -_LARGEST_INTEGER <= value <= _LARGEST_INTEGER:
        raise ApiError(400, f"{name}: an integer is too large", param=name)


def _refusal(reason: str) -> ApiError:
    """Return the error for what msgspec says, as OpenAI's API names places."""
    place = ""
    if match := _PLACE.search(reason):
        place, reason = match[1].removeprefix("$").removeprefix("."), reason[: match.start()]
    if match := _UNKNOWN.fullmatch(reason):
        param = one_line(f"{place}.{match[1]}" if place else match[1], 100)
        return ApiError(400, f"Unrecognized request argument supplied: {param}", param=param)
    if match := _MISSING.fullmatch(reason):
        param = f"{place}.{match[1]}" if place else match[1]
        return ApiError(400, f"Missing required parameter: '{param}'", param=param)
    if not place and (match := _QUOTED.search(reason)) and match[1] in _NAMES:
        place = match[1]
    return ApiError(400, one_line(f"{place}: {reason}" if place else reason), param=place or None)


_NAMES = {*ChatParameters.__struct_fields__, *TextParameters.__struct_fields__}
