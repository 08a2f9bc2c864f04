"""Answers that were cut off: read as far as they go.

`read_call` refuses them. What a version of the lineage was saying when it was cut off is trained
all the same, with the lowest reward, so it is read by the same code, without what tells of the end.
"""

from __future__ import annotations

from typing import Any

import msgspec

from babylon_tasks.records.calls import read_call
from babylon_tasks.records.endings import ALL_ENDS, CUT_OFF, WHY_IT_ENDED, plain
from babylon_tasks.records.parts import NotReadable
from babylon_tasks.records.recorded_steps import (
    NULL,
    Odd,
    OddCall,
    RecordedCall,
    decode_any,
    loose_call,
)
from babylon_tasks.records.steps import Call


def read_cut_off(recorded: RecordedCall) -> Call | None:
    """Return a call whose answer was cut off, with what there is of it; None: it is not readable.

    `recorded` is one that `read_call` refused as truncated.
    """
    text = recorded.recorded if isinstance(recorded, OddCall) else msgspec.json.encode(recorded)
    try:
        whole = _whole(decode_any(Odd(text)))
        return read_call(loose_call(Odd(msgspec.json.encode(whole))))
    except (NotReadable, RecursionError):
        return None


def tells_its_end(recorded: RecordedCall) -> bool:
    """Tell whether it is recorded that the model itself ended its answer, unfinished as it looks.

    `recorded` calls no tool: `read_call` has seen to that.
    """
    try:
        ends = [decode_any(getattr(recorded, name)) for name in WHY_IT_ENDED]
    except NotReadable:
        return False
    return any(isinstance(end, str) and end and plain(end) not in CUT_OFF for end in ends)


def recorded_version(recorded: RecordedCall) -> msgspec.Raw:
    """Return what is recorded as the version of the model, also of a call that is not readable."""
    if not isinstance(recorded, OddCall):
        return recorded.modelVersion
    try:
        return _version_decoder.decode(recorded.recorded).modelVersion
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return NULL


class _Version(msgspec.Struct, gc=False):
    modelVersion: Odd = NULL  # noqa: N815


_version_decoder = msgspec.json.Decoder(_Version)


def _whole(call: Any) -> Any:
    """Return a recorded call without what tells that its answer was cut off.

    Nothing is taken out of what the agent saw: the last message alone may be the answer.
    """
    if not isinstance(call, dict):
        return call
    kept = {key: each for key, each in call.items() if not _is_cut(key, each)}
    if "response" in kept:
        kept["response"] = _without_end(kept["response"])
    for key in ("messages", "prompt", "userPrompt"):
        turns = kept.get(key)
        if isinstance(turns, list) and turns:
            kept[key] = [*turns[:-1], _without_end(turns[-1])]
    return kept


def _without_end(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_end(each) for each in value]
    if not isinstance(value, dict):
        return value
    return {key: _without_end(each) for key, each in value.items() if not _is_cut(key, each)}


def _is_cut(key: str, value: Any) -> bool:
    return key in ALL_ENDS and isinstance(value, str) and plain(value) in CUT_OFF
