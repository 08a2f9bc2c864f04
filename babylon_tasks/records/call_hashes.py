"""Hashes of what a model was asked and what it answered.

The endpoint makes them of requests and answers, scoring and training of what the app recorded. So
both are brought into the same form first: roles and texts as `read_messages` reads them, tool calls
by name and arguments. Ids and names in messages, and messages without anything in them, do not
count: apps record them or not.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import msgspec

from babylon_tasks.records.messages import read_messages
from babylon_tasks.records.parts import Message, NotReadable
from babylon_tasks.records.recorded_steps import clean
from babylon_tasks.records.steps import Call
from babylon_tasks.records.tools import read_tools

HASH_BYTES = 16
# White space of Python and of JavaScript, whose `trim` apps use.
_OUTER = "".join(filter(str.isspace, map(chr, range(0x3001)))) + "\ufeff"


def prompt_hash(messages: object, tools: object = None) -> bytes:
    """Return the hash of a chat request's messages, in any shape, and of the tools it shows.

    Raises:
        NotReadable: A message has a part that is no text, or an unknown shape: no recorded call
            can be found by it.
    """
    try:
        return _of_chat(read_messages(messages), read_tools(tools))
    except (RecursionError, UnicodeError):
        raise NotReadable("odd_shape") from None


def call_prompt_hash(call: Call) -> bytes:
    """Return the hash of what an agent saw: the `prompt_hash` of the request that it was.

    Raises:
        NotReadable: Its tools are nested too deeply.
    """
    try:
        return _of_chat(call.prompt(), call.shown_tools() or [])
    except RecursionError:
        raise NotReadable("odd_shape") from None


def text_hash(prompt: str | Sequence[object]) -> bytes:
    """Return the hash of a prompt without messages: a text, or token ids.

    It never is that of a chat: what a chat template wrote around it is not known.
    """
    return _digest(["text", clean(prompt) if isinstance(prompt, str) else list(prompt)])


def response_hash(text: str) -> bytes:
    """Return the hash of an answer without its outer white space, which apps trim."""
    return _digest(clean(text).strip(_OUTER))


def _of_chat(messages: Iterable[Message], tools: Iterable[Message]) -> bytes:
    said = []
    for message in messages:
        calls = [_call(call["function"]) for call in message.get("tool_calls", ())]
        if message["content"] or calls:
            said.append([message["role"], clean(message["content"]), calls])
    return _digest([said, [_tool(tool["function"]) for tool in tools]])


def _call(function: Message) -> list[object]:
    return [clean(function["name"]), _plain(msgspec.json.decode(function["arguments"]))]


def _tool(function: Message) -> list[object]:
    described = function.get("description") or "", function.get("parameters") or {}
    return [clean(function["name"]), *map(_plain, described)]


def _plain(value: object) -> object:
    """Return JSON with its numbers as JavaScript writes them, and its texts as UTF-8 has them."""
    if isinstance(value, dict):
        return {clean(str(key)): _plain(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_plain(each) for each in value]
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return clean(value) if isinstance(value, str) else value


def _digest(value: object) -> bytes:
    encoded = msgspec.json.encode(value, order="sorted")
    return hashlib.blake2b(encoded, digest_size=HASH_BYTES).digest()
