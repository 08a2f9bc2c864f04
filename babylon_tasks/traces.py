"""Traces: what the app recorded of one agent's run, decoded as far as we need it.

A row of `trajectories` holds its steps as JSON text, 20 to 300 KB each, most of which (provider
data) nothing here reads: a typed decoder skips it. Market outcomes and everything else that tells
the future stay undecoded, so they cannot reach a prompt that is trained on.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from typing import Literal

import msgspec

from babylon_tasks.line import one_line
from babylon_tasks.training import Call

# What a row may say that an honest one never does, and that would cost others dearly: an index
# entry that Postgres refuses, minutes of hashing, sums that are no longer numbers.
_MAX_ID_BYTES = 1000
_MAX_CALLS = 100_000
_MAX_DOLLARS = 1e15

Reason = Literal["too_large", "bad_json", "wrong_shape", "no_steps", "bad_pnl", "bad_id"]


class Unusable(Exception):
    """A trace that must be set aside: `reason` is a short code, `detail` a line that says more."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = one_line(detail)


@dataclass(frozen=True, slots=True)
class RawTrace:
    """A row as the database gives it; `steps` is None where it is larger than allowed."""

    trajectory_id: str
    agent_id: str
    bytes: int
    steps: str | None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What scoring needs of a trace, without its texts.

    `pnl` is in the game's dollars at the last step; `steps` counts steps (upstream's "actions");
    `text_bytes` are the bytes of its trainable prompts and responses, 0 where nothing can be
    trained; `content_hash` covers every prompt and response.
    """

    trajectory_id: str
    agent_id: str
    pnl: float
    steps: int
    text_bytes: int
    content_hash: str


@dataclass(frozen=True, slots=True)
class Trace:
    """A decoded trace: its outcome, and the calls that can be trained on."""

    outcome: Outcome
    calls: list[Call]


class _Call(msgspec.Struct, gc=False):
    systemPrompt: str | None = None  # noqa: N815 - the app's names
    userPrompt: str | None = None  # noqa: N815
    response: str | None = None


class _Step(msgspec.Struct, gc=False):
    # Raw: only the last step's balance matters, and older rows hold odd values before it.
    environmentState: msgspec.Raw = msgspec.Raw(b"{}")  # noqa: N815
    llmCalls: list[_Call] | None = None  # noqa: N815


class _Environment(msgspec.Struct):
    agentPnL: int | float | str | None = 0.0  # noqa: N815


_steps_decoder = msgspec.json.Decoder(list[_Step])
_environment_decoder = msgspec.json.Decoder(_Environment | None)


def decode(raw: RawTrace) -> Trace:
    """Decode one row.

    Raises:
        Unusable: It is too large, cut short, of another shape, empty, or without a readable P&L.
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
    digest = hashlib.blake2b(digest_size=16)
    calls: list[Call] = []
    text_bytes = 0
    for step in steps:
        for call in step.llmCalls or ():
            texts = [_clean(t or "") for t in (call.systemPrompt, call.userPrompt, call.response)]
            encoded = [t.encode() for t in texts]
            for part in encoded:
                digest.update(len(part).to_bytes(8, "big"))
                digest.update(part)
            if texts[2].strip():
                calls.append(Call(*texts))
                text_bytes += sum(map(len, encoded))
    outcome = Outcome(
        trajectory_id=raw.trajectory_id,
        agent_id=raw.agent_id,
        pnl=_final_pnl(steps[-1]),
        steps=len(steps),
        text_bytes=text_bytes,
        content_hash=digest.hexdigest(),
    )
    return Trace(outcome, calls)


def _decode_steps(text: str) -> list[_Step]:
    if text == "null":
        return []
    try:
        return _steps_decoder.decode(text)
    except msgspec.ValidationError as error:
        raise Unusable("wrong_shape", str(error)) from None
    except RecursionError:
        raise Unusable("bad_json", "stepsJson is nested too deeply") from None
    except (msgspec.DecodeError, UnicodeError) as error:
        return _decode_leniently(text, error)


def _decode_leniently(text: str, first_error: Exception) -> list[_Step]:
    """JavaScript writes lone surrogates as escapes, which strict decoders refuse."""
    if "\\ud" not in text and "\\uD" not in text:
        raise Unusable("bad_json", str(first_error)) from None
    try:
        # Re-encoded without the surrogates, the typed decoder can read it.
        plain = json.dumps(json.loads(text), ensure_ascii=False)
        return _steps_decoder.decode(_clean(plain))
    except msgspec.ValidationError as error:
        raise Unusable("wrong_shape", str(error)) from None
    except RecursionError:
        raise Unusable("bad_json", "stepsJson is nested too deeply") from None
    except (ValueError, msgspec.DecodeError) as error:
        raise Unusable("bad_json", str(error)) from None


def _final_pnl(step: _Step) -> float:
    """P&L after the last step; 0 where the app recorded none, as upstream counts it."""
    try:
        environment = _environment_decoder.decode(step.environmentState)
        pnl = float((environment or _Environment()).agentPnL or 0.0)
    except (msgspec.DecodeError, ValueError, OverflowError):
        pnl = math.nan
    if not abs(pnl) <= _MAX_DOLLARS:  # false for NaN too
        raise Unusable("bad_pnl", "the last step's agentPnL is not a number of dollars")
    return pnl


def _clean(text: str) -> str:
    """Text that UTF-8 can carry: a lone surrogate becomes U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
