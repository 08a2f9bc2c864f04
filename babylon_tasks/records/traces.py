"""Traces: what of a recorded run is trained on, and what scoring needs to know of it.

Market outcomes and everything else that tells the future stay undecoded here, so they cannot reach
a prompt that is trained on.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec

from babylon_tasks.records.calls import read_call
from babylon_tasks.records.cut_off import read_cut_off, recorded_version, tells_its_end
from babylon_tasks.records.parts import NotReadable
from babylon_tasks.records.recorded_steps import (
    NULL,
    RawTrace,
    RecordedCall,
    RecordedStep,
    Unusable,
    decode_leniently,
    parse_steps,
)
from babylon_tasks.records.steps import LEAST_LOGPROB, Call, Logprobs
from babylon_tasks.records.truncated import is_truncated

_MAX_DOLLARS = 1e15  # beyond it, sums are no longer numbers


class BadCall(NamedTuple):
    """A call that was done badly: its answer is `empty` or `truncated` (`reason`).

    `version` answered it, `text_bytes` are those of its prompt and its answer.
    """

    version: str
    reason: str
    text_bytes: int


def bad_call(version: str, reason: str, call: Call) -> BadCall:
    """Return what a call that was done badly is counted as."""
    return BadCall(version, reason, call.prompt_bytes() + len(call.response.encode()))


@dataclass(frozen=True, slots=True)
class Outcome:
    """What scoring needs of a trace, without its texts.

    `pnl` is in the game's dollars at the last step. `steps` counts the steps (upstream's
    "actions"), `failed` the steps whose action failed. `calls` counts the LLM calls, `left_out` the
    calls that teach nothing, by the reason. `text_bytes` counts the bytes of the other calls'
    prompts and responses. `content_hash` covers every prompt and response.

    `answered` counts the calls by the version of the model, without those of which it is not known.
    `badly` has those of the calls left out that could train as something done badly: of what
    version they are is known, and what the model said or that it ended. `floored` says why the run
    itself counts as done badly; such a run gets the lowest score of its group.

    Of the calls whose trace lacks the version or the log-probabilities, the endpoint remembers
    `captured`, and not `uncaptured`. An `exam_only` run never trains; one with `evaluation` (the
    app's `isEvaluation`) is none of its window's either.
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
    answered: Mapping[str, int] = field(default_factory=dict)
    badly: Sequence[BadCall] = ()
    floored: str | None = None
    captured: int = 0
    uncaptured: int = 0
    evaluation: bool = False
    exam_only: bool = False

    @property
    def trainable(self) -> bool:
        """Whether a call of it can be trained on."""
        return bool(self.text_bytes or self.badly)

    @property
    def bytes_to_train(self) -> int:
        """Bytes of the texts of all calls that can be trained on."""
        return self.text_bytes + sum(call.text_bytes for call in self.badly)


@dataclass(frozen=True, slots=True)
class Trace:
    """A decoded trace: its outcome, and the calls that can be trained on.

    `versions` has, for each call, the version of the model that answered, or None. `badly` has the
    calls that the outcome's `badly` tells of, in the same order. `nameless` has calls left out of
    which no version is recorded, each with the reason: as `repeated`, or as it would be in `badly`.
    """

    outcome: Outcome
    calls: list[Call]
    versions: list[str | None]
    badly: list[Call]
    nameless: Sequence[tuple[str, Call]] = ()


class _Action(msgspec.Struct, gc=False):
    success: bool = True


class _Environment(msgspec.Struct):
    agentPnL: msgspec.Raw = NULL  # noqa: N815


class _Token(msgspec.Struct, gc=False):
    token: str
    logprob: float


class _Logprobs(msgspec.Struct):
    content: list[_Token]


_environment_decoder = msgspec.json.Decoder(_Environment | None)
_logprobs_decoder = msgspec.json.Decoder(_Logprobs)
_action_decoder = msgspec.json.Decoder(_Action)
_string_decoder = msgspec.json.Decoder(str)
_number_decoder = msgspec.json.Decoder(int | float | str)
_pnl_decoder = msgspec.json.Decoder(int | float | str | None)
# Before what is hashed besides the two prompts and the response; no text is as long as these say.
_MORE, _UNREAD = b"\xff" * 8, b"\xfe" * 8
_TOKEN_ID = re.compile(r"token_id:([0-9]{1,9})")


def decode(raw: RawTrace, steps: Sequence[RecordedStep] | None = None) -> Trace:
    """Decode one row; `steps` are its parsed steps, if the caller already has them.

    Raises:
        Unusable: It is too large, cut short, of another shape, empty, or without a readable P&L.
    """
    steps = parse_steps(raw) if steps is None else steps
    calls = _Calls()
    for step in steps:
        for recorded in step.llmCalls or ():
            calls.add(recorded)
    outcome = Outcome(
        trajectory_id=raw.trajectory_id,
        agent_id=raw.agent_id,
        pnl=_final_pnl(steps),
        steps=len(steps),
        failed=sum(map(_failed, steps)),
        calls=len(calls.kept) + sum(calls.left_out.values()),
        left_out=calls.left_out,
        text_bytes=calls.text_bytes,
        content_hash=calls.digest.hexdigest(),
        answered=calls.answered,
        badly=[bad for bad, _ in calls.badly],
        evaluation=raw.evaluation,
    )
    badly = [call for _, call in calls.badly]
    return Trace(outcome, calls.kept, calls.versions, badly, calls.nameless)


class _Calls:
    """Collects the calls of one trace: keeps those to train on, counts the others, hashes all."""

    def __init__(self) -> None:
        self.kept: list[Call] = []
        self.versions: list[str | None] = []
        self.left_out: dict[str, int] = {}
        self.text_bytes = 0
        self.answered: dict[str, int] = {}
        self.badly: list[tuple[BadCall, Call]] = []
        self.nameless: list[tuple[str, Call]] = []
        self.digest = hashlib.blake2b(digest_size=16)
        self._seen: set[Call] = set()

    def add(self, recorded: RecordedCall) -> None:
        version = _string(recorded_version(recorded))
        if version is not None:
            self.answered[version] = self.answered.get(version, 0) + 1
        try:
            call = read_call(recorded)
        except NotReadable as error:
            self._hash(_UNREAD, msgspec.json.encode(recorded))
            self._leave_out(error.reason)
            if error.reason == "truncated":
                self._add_badly(version, "truncated", recorded, read_cut_off(recorded))
            return
        more = call.messages or call.tools
        # The decoders let no lone surrogate through, so encoding cannot fail.
        system, user, response = call.system.encode(), call.user.encode(), call.response.encode()
        if more:  # which release 0.1.0 does not read: its scores of such a trace are made anew
            self._hash(_MORE, (call.messages or "").encode())
            self._hash(_MORE, (call.tools or "").encode())
        self.digest.update(
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
        why_not = _why_not_train(call, recorded, self._seen)
        if why_not:
            self._leave_out(why_not)
            if _is_bad(why_not, call, recorded):
                self._add_badly(version, why_not, recorded, call)
            elif why_not == "repeated" and version is None:
                self.nameless.append((why_not, call))
            return
        self._seen.add(call)  # without log-probabilities: they do not make it another call
        logprobs = read_logprobs(recorded.logprobs)
        if logprobs is not None:
            call = msgspec.structs.replace(call, logprobs=logprobs)
        self.kept.append(call)
        self.versions.append(version)
        self.text_bytes += len(system) + len(user) + len(response)
        if more:
            self.text_bytes += call.prompt_bytes() - len(system) - len(user)

    def _add_badly(
        self, version: str | None, reason: str, recorded: RecordedCall, call: Call | None
    ) -> None:
        """Keep a call that was done badly, if there is something of it to train on."""
        ended = reason == "empty" or tells_its_end(recorded)
        if call is None or not call.has_prompt() or not (ended or call.response.strip()):
            return
        call = msgspec.structs.replace(call, ended=ended)
        if version is None:
            self.nameless.append((reason, call))
            return
        if call in self._seen:
            return
        self._seen.add(call)
        logprobs = read_logprobs(recorded.logprobs)
        if logprobs is not None:
            call = msgspec.structs.replace(call, logprobs=logprobs)
        self.badly.append((bad_call(version, reason, call), call))

    def _hash(self, mark: bytes, data: bytes) -> None:
        self.digest.update(b"".join((mark, len(data).to_bytes(8, "big"), data)))

    def _leave_out(self, reason: str) -> None:
        self.left_out[reason] = self.left_out.get(reason, 0) + 1


def _why_not_train(call: Call, recorded: RecordedCall, seen: set[Call]) -> str | None:
    if not call.response or call.response.isspace():
        return "empty"
    if not call.has_prompt():
        return "no_prompt"
    if call in seen:
        # The app records some calls twice. Only repeats within a trajectory are left out: two
        # agents with the same answer have different rewards, and their gradients must oppose.
        return "repeated"
    if is_truncated(call.response, _number(recorded.maxTokens)):
        return "truncated"
    return None


def _is_bad(why_not: str, call: Call, recorded: RecordedCall) -> bool:
    """Tell whether a call left out was done badly: not where only its length speaks against it.

    A length in characters guesses at one in tokens, which the model itself may have ended.
    """
    if why_not != "truncated":
        return why_not == "empty"
    return is_truncated(call.response, None) or not tells_its_end(recorded)


def _failed(step: RecordedStep) -> bool:
    try:
        return not _action_decoder.decode(step.action).success
    except (msgspec.DecodeError, RecursionError):
        return False  # unknown


def _string(value: msgspec.Raw) -> str | None:
    if value is NULL:
        return None
    try:
        return str(_string_decoder.decode(value))
    except (msgspec.DecodeError, UnicodeError):
        return None


def _number(value: msgspec.Raw) -> float | None:
    if value is NULL:
        return None
    try:
        return float(_number_decoder.decode(value))
    except (msgspec.DecodeError, ValueError, OverflowError):
        return None


def read_logprobs(value: msgspec.Raw) -> Logprobs | None:
    """Return log-probabilities in the form of OpenAI's API, with `token_id:N` as tokens.

    vLLM writes them so with `return_tokens_as_token_ids`. Tokens given as text are not usable:
    another tokenizer may have split the same text differently.
    """
    if value is NULL:
        return None
    try:
        content = _logprobs_decoder.decode(value).content
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return None
    matches = [_TOKEN_ID.fullmatch(each.token) for each in content]
    token_ids = tuple(int(match[1]) for match in matches if match)
    values = tuple(each.logprob for each in content if LEAST_LOGPROB <= each.logprob <= 0)
    if not len(token_ids) == len(values) == len(content) > 0:
        return None
    return Logprobs(token_ids, values)


def _final_pnl(steps: Sequence[RecordedStep]) -> float:
    """Return the P&L at the last step; 0 if the app recorded none, as upstream counts it.

    A step whose state is no object is passed over: it does not tell whether there was one.
    """
    for step in reversed(steps):
        try:
            environment = decode_leniently(_environment_decoder, step.environmentState)
        except (msgspec.DecodeError, ValueError, RecursionError):
            continue
        pnl = _dollars((environment or _Environment()).agentPnL)
        if not abs(pnl) <= _MAX_DOLLARS:  # false for NaN too
            raise Unusable("bad_pnl", "the last step's agentPnL is not a number of dollars")
        return pnl
    raise Unusable("bad_pnl", "no step has an environmentState that is an object")


def _dollars(raw: msgspec.Raw) -> float:
    try:
        return float(decode_leniently(_pnl_decoder, raw) or 0.0)
    except (msgspec.DecodeError, ValueError, OverflowError, RecursionError):
        return math.nan
