"""`stepsJson` as the app records it, decoded once for all who read it.

A row holds its steps as JSON text, 20 to 300 KB each. Most of it (provider data) is not needed, and
a typed decoder skips it. What may tell the future (`action.result`, `action.correctness`,
`metadataJson`) is in no field, so it stays undecoded. A row that is not as the app writes it is
decoded again, piece by piece: what is odd in it costs the call or the step that it is in.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from typing import Literal, TypeVar

import msgspec

from babylon_tasks.records.answers import read_answer
from babylon_tasks.records.messages import are_messages
from babylon_tasks.records.parts import NotReadable, WhyNot, read_text
from babylon_tasks.text import one_line

# Only a malicious row exceeds these, and it would harm others: Postgres refuses an index entry that
# is too long, and hashing would take minutes.
_MAX_ID_BYTES = 1000
_MAX_CALLS = 100_000
_MAX_DEPTH = 100  # of nesting in a row that the decoders refuse for its depth
_MAX_NESTS = 2_000_000  # lists and objects in such a row; to walk through more takes seconds
_MAX_DIGITS = 300  # of a number in a row that the decoders refuse

Reason = Literal["too_large", "bad_json", "wrong_shape", "no_steps", "bad_pnl", "bad_id"]
T = TypeVar("T")


class Unusable(Exception):
    """A trace that must be set aside: `reason` is a short code, `detail` explains it in a line."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = one_line(detail)


@dataclass(frozen=True, slots=True)
class RawTrace:
    """A row as the database gives it; `steps` is None if it is larger than allowed, or NULL.

    `written_at` is when the row was first written, in seconds since 1970; None: unknown.
    `evaluation` rows are for exams alone.
    """

    trajectory_id: str
    agent_id: str
    bytes: int | None
    steps: str | None
    written_at: float | None = None
    evaluation: bool = False


# Left raw: older rows may hold any shape in these fields, and must stay usable all the same.
Odd = msgspec.Raw
NULL = Odd(b"null")


class _AnyCall(msgspec.Struct, gc=False):
    """What a call may have beside its two prompts and its response."""

    messages: Odd = NULL
    prompt: Odd = NULL
    system: Odd = NULL
    instructions: Odd = NULL
    systemInstruction: Odd = NULL  # noqa: N815
    system_instruction: Odd = NULL
    tools: Odd = NULL
    functions: Odd = NULL
    tool_calls: Odd = NULL
    toolCalls: Odd = NULL  # noqa: N815
    function_call: Odd = NULL
    finish_reason: Odd = NULL
    finishReason: Odd = NULL  # noqa: N815
    stop_reason: Odd = NULL
    stopReason: Odd = NULL  # noqa: N815
    modelVersion: Odd = NULL  # noqa: N815
    maxTokens: Odd = NULL  # noqa: N815
    logprobs: Odd = NULL
    reasoning: Odd = NULL
    purpose: Odd = NULL


class RecordedCall(_AnyCall, gc=False):
    """One LLM call; the names are the app's, or those that other apps use in their place."""

    systemPrompt: str | None = None  # noqa: N815
    userPrompt: str | None = None  # noqa: N815
    response: str | None = None

    def is_plain(self) -> bool:
        """Tell whether the two prompts and the response are all that was said."""
        return (
            self.messages
            is self.prompt
            is self.system
            is self.instructions
            is self.systemInstruction
            is self.system_instruction
            is self.tools
            is self.functions
            is self.tool_calls
            is self.toolCalls
            is self.function_call
            is self.finish_reason
            is self.finishReason
            is self.stop_reason
            is self.stopReason
            is NULL
        )


class OddCall(RecordedCall, gc=False):
    """A call that cannot be read; `recorded` is its JSON."""

    reason: WhyNot = "odd_shape"
    recorded: bytes = b""

    def is_plain(self) -> bool:
        """No."""
        return False


class RecordedStep(msgspec.Struct, gc=False):
    """One step; `environmentState` is what the agent saw before it acted."""

    environmentState: Odd = Odd(b"{}")  # noqa: N815
    llmCalls: list[RecordedCall] | None = None  # noqa: N815
    action: Odd = Odd(b"{}")


class _LooseCall(_AnyCall, gc=False):
    systemPrompt: Odd = NULL  # noqa: N815
    userPrompt: Odd = NULL  # noqa: N815
    response: Odd = NULL


class _LooseStep(msgspec.Struct, gc=False):
    environmentState: Odd = Odd(b"{}")  # noqa: N815
    llmCalls: Odd = NULL  # noqa: N815
    action: Odd = Odd(b"{}")


_steps_decoder = msgspec.json.Decoder(list[RecordedStep])
_pieces_decoder = msgspec.json.Decoder(list[msgspec.Raw])
_loose_step_decoder = msgspec.json.Decoder(_LooseStep)
_call_decoder = msgspec.json.Decoder(RecordedCall)
_loose_call_decoder = msgspec.json.Decoder(_LooseCall)
_any_decoder = msgspec.json.Decoder(object)
_UNREADABLE = Odd(b'""')  # a state that is no object
_MARK = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"|[\[\]{}]', re.DOTALL)


def parse_steps(raw: RawTrace) -> list[RecordedStep]:
    """Decode a row's steps; there is at least one.

    Raises:
        Unusable: The row is too large, cut short, of another shape, or empty.
    """
    if len(raw.trajectory_id.encode()) > _MAX_ID_BYTES:
        raise Unusable("bad_id", f"trajectoryId is longer than {_MAX_ID_BYTES} bytes")
    if raw.bytes is None:
        raise Unusable("no_steps", "stepsJson is NULL")
    if raw.steps is None:
        raise Unusable("too_large", f"stepsJson has {raw.bytes} bytes, above MAX_TRACE_BYTES")
    steps = _decode_steps(raw.steps)
    if not steps:
        raise Unusable("no_steps", "stepsJson is empty")
    parts = len(steps) + sum(len(step.llmCalls or ()) for step in steps)
    if parts > _MAX_CALLS:
        raise Unusable("too_large", f"stepsJson has {parts} steps and calls, above {_MAX_CALLS}")
    return steps


def decode_any(raw: msgspec.Raw) -> object:
    """Return the value of a part of a row.

    Raises:
        NotReadable: It cannot be decoded.
    """
    if raw is NULL:
        return None
    try:
        return decode_leniently(_any_decoder, raw)
    except (msgspec.DecodeError, ValueError, RecursionError):
        raise NotReadable("odd_shape") from None


def decode_leniently(decoder: msgspec.json.Decoder[T], text: str | msgspec.Raw) -> T:
    """Decode with types; if that fails, decode once more without what no JSON may hold.

    JavaScript writes lone surrogates as escapes, which strict decoders refuse, and Python writes
    NaN.

    Raises:
        msgspec.ValidationError: The JSON is of another shape.
        msgspec.DecodeError, ValueError, RecursionError: It is no JSON, or nested too deeply.
    """
    try:
        return decoder.decode(text)
    except msgspec.ValidationError:
        raise
    except (msgspec.DecodeError, UnicodeError):
        return decoder.decode(_strict(text if isinstance(text, str) else bytes(text)))


def clean(text: str) -> str:
    """Return the text as UTF-8 can carry it: a lone surrogate becomes U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _strict(text: str | bytes) -> str:
    """Return JSON as strict decoders take it: a number that is none, or too large, is a string.

    Raises:
        ValueError, RecursionError: It is no JSON, or nested too deeply.
    """
    value = json.loads(text, parse_int=_integer, parse_float=_float, parse_constant=str)
    return clean(json.dumps(value, ensure_ascii=False))


def _integer(digits: str) -> int | str:
    return int(digits) if len(digits) <= _MAX_DIGITS else digits


def _float(digits: str) -> float | str:
    value = float(digits)
    return value if math.isfinite(value) else digits


def _decode_steps(text: str) -> list[RecordedStep]:
    if text == "null":
        return []
    try:
        return _steps_decoder.decode(text)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        pass
    try:
        pieces = _pieces(_once(text))
    except msgspec.ValidationError as error:
        raise Unusable("wrong_shape", str(error)) from None
    except RecursionError:
        raise Unusable("bad_json", "stepsJson is nested too deeply") from None
    except (msgspec.DecodeError, ValueError) as error:
        raise Unusable("bad_json", str(error)) from None
    steps = [_loose_step(piece) for piece in pieces]
    if steps and all(step is None for step in steps):
        raise Unusable("wrong_shape", "Expected `object`, got none in stepsJson")
    return [step or _unreadable_step(raw) for step, raw in zip(steps, pieces, strict=True)]


def _once(text: str) -> str:
    """Return JSON that was written as JSON once more without the second layer."""
    if not text.lstrip().startswith('"'):
        return text
    inner = decode_leniently(_any_decoder, text)
    return inner if isinstance(inner, str) else text


def _pieces(text: str) -> list[msgspec.Raw]:
    """Return the steps, each of them as JSON."""
    try:
        return decode_leniently(_pieces_decoder, text)
    except RecursionError:
        if text.count("[") + text.count("{") > _MAX_NESTS:
            raise
        return decode_leniently(_pieces_decoder, _shallow(text))


def _shallow(text: str) -> str:
    """Return JSON with null in the place of what is nested too deeply to be decoded."""
    kept: list[str] = []
    depth = start = 0
    for mark in _MARK.finditer(text):
        if mark[0] in ("[", "{"):
            depth += 1
            if depth == _MAX_DEPTH:
                kept += (text[start : mark.start()], "null")
        elif mark[0] in ("]", "}"):
            if depth == _MAX_DEPTH:
                start = mark.end()
            depth -= 1
    return "".join([*kept, text[start:]]) if depth == 0 else ""


def _loose_step(raw: msgspec.Raw) -> RecordedStep | None:
    """Return a step, whatever its parts are; None if it is no object."""
    try:
        loose = decode_leniently(_loose_step_decoder, raw)
    except (msgspec.DecodeError, ValueError, RecursionError):
        return None
    return RecordedStep(loose.environmentState, _loose_calls(loose.llmCalls), loose.action)


def _unreadable_step(raw: msgspec.Raw) -> RecordedStep:
    """Return a step about which nothing is known; its calls are lost, and count as one."""
    return RecordedStep(_UNREADABLE, [OddCall(recorded=bytes(raw))], NULL)


def _loose_calls(raw: msgspec.Raw) -> list[RecordedCall]:
    if bytes(raw) == b"null":
        return []
    try:
        pieces = decode_leniently(_pieces_decoder, raw)
    except msgspec.ValidationError:
        pieces = [raw]  # one call that stands alone, or no call
    except (msgspec.DecodeError, ValueError, RecursionError):
        return [OddCall(recorded=bytes(raw))]
    return [loose_call(piece) for piece in pieces]


def loose_call(raw: msgspec.Raw) -> RecordedCall:
    """Return a call, whatever its parts are."""
    try:
        return decode_leniently(_call_decoder, raw)
    except msgspec.ValidationError:
        pass
    except (msgspec.DecodeError, ValueError, RecursionError):
        return OddCall(recorded=bytes(raw))
    try:
        loose = decode_leniently(_loose_call_decoder, raw)
        fields = {name: getattr(loose, name) for name in RecordedCall.__struct_fields__}
        user = decode_any(loose.userPrompt)
        if are_messages(user):
            fields["prompt"], user = loose.userPrompt, None
        fields["userPrompt"] = read_text(user)
        fields["systemPrompt"] = read_text(decode_any(loose.systemPrompt))
        fields["response"] = read_answer(decode_any(loose.response))
    except NotReadable as error:
        return OddCall(reason=error.reason, recorded=bytes(raw))
    except (msgspec.DecodeError, ValueError, RecursionError):
        return OddCall(recorded=bytes(raw))
    return RecordedCall(**fields)
