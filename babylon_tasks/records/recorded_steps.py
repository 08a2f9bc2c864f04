"""`stepsJson` as the app records it, decoded once for all who read it.

A row holds its steps as JSON text, 20 to 300 KB each. Most of it (provider data) is not needed, and
a typed decoder skips it. What may tell the future (`action.result`, `action.correctness`,
`metadataJson`) is in no field, so it stays undecoded.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Literal, TypeVar

import msgspec

from babylon_tasks.text import one_line

# Only a malicious row exceeds these, and it would harm others: Postgres refuses an index entry that
# is too long, and hashing would take minutes.
_MAX_ID_BYTES = 1000
_MAX_CALLS = 100_000

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
    """A row as the database gives it; `steps` is None if it is larger than allowed."""

    trajectory_id: str
    agent_id: str
    bytes: int
    steps: str | None


# Left raw: older rows may hold any shape in these fields, and must stay usable all the same.
Odd = msgspec.Raw
NULL = Odd(b"null")


class RecordedCall(msgspec.Struct, gc=False):
    """One LLM call; the names are the app's."""

    systemPrompt: str | None = None  # noqa: N815
    userPrompt: str | None = None  # noqa: N815
    response: str | None = None
    modelVersion: Odd = NULL  # noqa: N815
    maxTokens: Odd = NULL  # noqa: N815
    logprobs: Odd = NULL
    reasoning: Odd = NULL
    purpose: Odd = NULL


class RecordedStep(msgspec.Struct, gc=False):
    """One step; `environmentState` is what the agent saw before it acted."""

    environmentState: Odd = Odd(b"{}")  # noqa: N815
    llmCalls: list[RecordedCall] | None = None  # noqa: N815
    action: Odd = Odd(b"{}")


_steps_decoder = msgspec.json.Decoder(list[RecordedStep])


def parse_steps(raw: RawTrace) -> list[RecordedStep]:
    """Decode a row's steps; there is at least one.

    Raises:
        Unusable: The row is too large, cut short, of another shape, or empty.
    """
    if len(raw.trajectory_id.encode()) > _MAX_ID_BYTES:
        raise Unusable("bad_id", f"trajectoryId is longer than {_MAX_ID_BYTES} bytes")
    if raw.steps is None:
        raise Unusable("too_large", f"stepsJson has {raw.bytes} bytes, above MAX_TRACE_BYTES")
    steps = _decode_steps(raw.steps)
    if not steps:
        raise Unusable("no_steps", "stepsJson is empty")
    parts = len(steps) + sum(len(step.llmCalls or ()) for step in steps)
    if parts > _MAX_CALLS:
        raise Unusable("too_large", f"stepsJson has {parts} steps and calls, above {_MAX_CALLS}")
    return steps


def decode_leniently(decoder: msgspec.json.Decoder[T], text: str | msgspec.Raw) -> T:
    """Decode with types; if that fails, decode once more without lone surrogates.

    JavaScript writes lone surrogates as escapes, which strict decoders refuse.

    Raises:
        msgspec.ValidationError: The JSON is of another shape.
        msgspec.DecodeError, ValueError, RecursionError: It is no JSON, or nested too deeply.
    """
    try:
        return decoder.decode(text)
    except msgspec.ValidationError:
        raise
    except (msgspec.DecodeError, UnicodeError):
        loose = json.loads(text if isinstance(text, str) else bytes(text))
        return decoder.decode(clean(json.dumps(loose, ensure_ascii=False)))


def clean(text: str) -> str:
    """Return the text as UTF-8 can carry it: a lone surrogate becomes U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _decode_steps(text: str) -> list[RecordedStep]:
    if text == "null":
        return []
    try:
        return decode_leniently(_steps_decoder, text)
    except msgspec.ValidationError as error:
        raise Unusable("wrong_shape", str(error)) from None
    except RecursionError:
        raise Unusable("bad_json", "stepsJson is nested too deeply") from None
    except (msgspec.DecodeError, ValueError) as error:
        raise Unusable("bad_json", str(error)) from None
