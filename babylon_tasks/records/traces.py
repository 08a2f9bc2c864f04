"""Traces: what the app recorded of one agent's run, decoded as far as we need it.

A row of `trajectories` holds its steps as JSON text, 20 to 300 KB each, most of which (provider
data) nothing here reads: a typed decoder skips it. Market outcomes and everything else that tells
the future stay undecoded, so they cannot reach a prompt that is trained on.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import msgspec

from babylon_tasks.records.steps import LEAST_LOGPROB, Call, Logprobs
from babylon_tasks.text import one_line

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

    `pnl` is in the game's dollars at the last step; `steps` counts steps (upstream's "actions"),
    `failed` those whose action failed; `calls` counts LLM calls, and `left_out` those that teach
    nothing, by the reason; `text_bytes` are the bytes of the other ones' prompts and responses;
    `content_hash` covers every prompt and response.
    """

    trajectory_id: str
    agent_id: str
    pnl: float
    steps: int
    failed: int
    calls: int
    left_out: Mapping[str, int]
    text_bytes: int
    content_hash: str


@dataclass(frozen=True, slots=True)
class Trace:
    """A decoded trace: its outcome, and the calls that can be trained on.

    `versions` has the model version that each of the calls says it was answered by, or None.
    """

    outcome: Outcome
    calls: list[Call]
    versions: list[str | None]


# Raw: what older rows hold in these may be of any shape, and must not cost the row.
_Odd = msgspec.Raw
_NULL = _Odd(b"null")


class _Call(msgspec.Struct, gc=False):
    systemPrompt: str | None = None  # noqa: N815 - the app's names
    userPrompt: str | None = None  # noqa: N815
    response: str | None = None
    modelVersion: _Odd = _NULL  # noqa: N815
    maxTokens: _Odd = _NULL  # noqa: N815
    logprobs: _Odd = _NULL


class _Step(msgspec.Struct, gc=False):
    environmentState: _Odd = _Odd(b"{}")  # noqa: N815 - only the last one's is read
    llmCalls: list[_Call] | None = None  # noqa: N815
    action: _Odd = _Odd(b"{}")


class _Action(msgspec.Struct, gc=False):
    success: bool = True


class _Environment(msgspec.Struct):
    agentPnL: int | float | str | None = 0.0  # noqa: N815


class _Token(msgspec.Struct, gc=False):
    token: str
    logprob: float


class _Logprobs(msgspec.Struct):
    content: list[_Token]


_steps_decoder = msgspec.json.Decoder(list[_Step])
_environment_decoder = msgspec.json.Decoder(_Environment | None)
_logprobs_decoder = msgspec.json.Decoder(_Logprobs)
_action_decoder = msgspec.json.Decoder(_Action)
_string_decoder = msgspec.json.Decoder(str)
_number_decoder = msgspec.json.Decoder(int | float | str)
_json_decoder = msgspec.json.Decoder(msgspec.Raw)
_TOKEN_ID = re.compile(r"token_id:([0-9]{1,9})")

_CHARACTERS_A_TOKEN = 3.5  # of English and JSON at least, in common vocabularies
_SENTENCE_ENDS = frozenset(".!?…\"'\u201d\u2019)]}*`:;|>")


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
    versions: list[str | None] = []
    left_out: dict[str, int] = {}
    seen: set[Call] = set()
    text_bytes = 0
    for step in steps:
        for recorded in step.llmCalls or ():
            call = Call(
                recorded.systemPrompt or "", recorded.userPrompt or "", recorded.response or ""
            )
            # The decoders let no lone surrogate through: all of it can be encoded.
            system, user, response = (
                call.system.encode(),
                call.user.encode(),
                call.response.encode(),
            )
            digest.update(
                b"".join(
                    (
                        len(system).to_bytes(8, "big"),
                        system,
                        len(user).to_bytes(8, "big"),
                        user,
                        len(response).to_bytes(8, "big"),
                        response,
                    )
                )
            )
            why_not = _why_not_train(call, recorded, seen)
            if why_not:
                left_out[why_not] = left_out.get(why_not, 0) + 1
                continue
            seen.add(call)  # as it stands: what was recorded beside it makes it no other
            logprobs = _logprobs(recorded.logprobs)
            if logprobs is not None:
                call = msgspec.structs.replace(call, logprobs=logprobs)
            calls.append(call)
            versions.append(_string(recorded.modelVersion))
            text_bytes += len(system) + len(user) + len(response)
    outcome = Outcome(
        trajectory_id=raw.trajectory_id,
        agent_id=raw.agent_id,
        pnl=_final_pnl(steps[-1]),
        steps=len(steps),
        failed=sum(map(_failed, steps)),
        calls=len(calls) + sum(left_out.values()),
        left_out=left_out,
        text_bytes=text_bytes,
        content_hash=digest.hexdigest(),
    )
    return Trace(outcome, calls, versions)


def _why_not_train(call: Call, recorded: _Call, seen: set[Call]) -> str | None:
    if not call.response or call.response.isspace():
        return "empty"
    if call in seen:
        # The app records some calls twice. Only within a trajectory: two agents who said the same
        # have rewards of their own, and their gradients belong against each other.
        return "repeated"
    if is_truncated(call.response, _number(recorded.maxTokens)):
        return "truncated"
    return None


def is_truncated(response: str, max_tokens: float | None) -> bool:
    """Whether a response was cut off by its token limit; the app does not record why it ended.

    It was if it is JSON that ends too early, or a code block without its end, or as long as
    `max_tokens` make it (3.5 characters a token) without an end of a sentence.
    """
    text = response.strip()
    if text[:1] in ("{", "["):
        try:
            _json_decoder.decode(text)
        except msgspec.DecodeError as error:
            # "12." and "-" are invalid numbers to it, wanting at the byte after the last.
            if str(error).endswith(("truncated", f"(byte {len(text.encode())})")):
                return True
            # Else it only begins like JSON: "[BUY] because …".
        except RecursionError:
            return False
        else:
            return False
    if text.count("```") % 2:
        return True
    if max_tokens is None or not max_tokens > 0:  # NaN is no limit either
        return False
    return len(text) >= max_tokens * _CHARACTERS_A_TOKEN and text[-1] not in _SENTENCE_ENDS


def _failed(step: _Step) -> bool:
    try:
        return not _action_decoder.decode(step.action).success
    except (msgspec.DecodeError, RecursionError):
        return False  # not known


def _string(value: msgspec.Raw) -> str | None:
    if value is _NULL:
        return None
    try:
        return str(_string_decoder.decode(value))
    except (msgspec.DecodeError, UnicodeError):
        return None


def _number(value: msgspec.Raw) -> float | None:
    if value is _NULL:
        return None
    try:
        return float(_number_decoder.decode(value))
    except (msgspec.DecodeError, ValueError, OverflowError):
        return None


def _logprobs(value: msgspec.Raw) -> Logprobs | None:
    """As OpenAI's API gives them, with `token_id:N` for tokens (vLLM's return_tokens_as_token_ids).

    Texts of tokens are none: another tokenizer may have cut the same text otherwise.
    """
    if value is _NULL:
        return None
    try:
        content = _logprobs_decoder.decode(value).content
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return None
    found = [_TOKEN_ID.fullmatch(each.token) for each in content]
    token_ids = tuple(int(match[1]) for match in found if match)
    values = tuple(each.logprob for each in content if LEAST_LOGPROB <= each.logprob <= 0)
    if not len(token_ids) == len(values) == len(content) > 0:
        return None
    return Logprobs(token_ids, values)


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
        return _steps_decoder.decode(clean(plain))
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


def clean(text: str) -> str:
    """Text that UTF-8 can carry: a lone surrogate becomes U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
