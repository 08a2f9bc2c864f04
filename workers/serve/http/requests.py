"""A request's JSON as a checked question."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from babylon_tasks.text import one_line
from workers.serve.backend import ApiError, Question
from workers.serve.http.parameters import ChatParameters, Parameters, TextParameters

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

_decoders: dict[str, msgspec.json.Decoder[Any]] = {
    "chat": msgspec.json.Decoder(ChatParameters),
    "text": msgspec.json.Decoder(TextParameters),
}
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

    Raises:
        ApiError: It is no such request; the message names the parameter.
    """
    try:
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
        if name != "messages":
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
