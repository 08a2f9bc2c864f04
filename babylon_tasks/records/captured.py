"""What the endpoint remembers of its answers, and how a recorded trace is completed by it.

The app records texts. The endpoint knows the tokens, their log-probabilities, the version that
answered and why the answer ended. The two are joined by the hashes of prompt and answer.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import NamedTuple

import msgspec

from babylon_tasks.records.call_hashes import call_prompt_hash, response_hash
from babylon_tasks.records.endings import CUT_OFF, plain
from babylon_tasks.records.parts import NotReadable
from babylon_tasks.records.steps import LEAST_LOGPROB, Call, Logprobs
from babylon_tasks.records.traces import BadCall, Trace, bad_call
from babylon_tasks.records.truncated import is_truncated

_MOST_TOKEN_ID = 2**31 - 1
_ENDED = ("stop", "eos", "end_turn")  # the model itself ended its answer


@dataclass(frozen=True, slots=True)
class CapturedCall:
    """One answer of the endpoint; without any of its texts.

    Args:
        at: When it was asked for, with a time zone; it is of that hour's window.
        lineage, step: The version that answered.
        agent: As the request names it, if it does.
        prompt_hash: None if the prompt cannot be read (`call_hashes.prompt_hash`).
        backend: Its kind: vllm, embedded or wandb.
        token_ids: Of the answer; none if the backend does not tell them.
        logprobs: One for each, before the temperature's effect.
        first_token_ms: None if it was not streamed.
        pinned: It was asked for by the version's own name, not by the lineage's.
        malformed: FORM_CHECK refuses it.
    """

    at: datetime
    lineage: str
    step: int
    agent: str | None
    prompt_hash: bytes | None
    response_hash: bytes
    backend: str
    finish_reason: str | None
    token_ids: Sequence[int]
    logprobs: Sequence[float]
    prompt_tokens: int
    latency_ms: int
    first_token_ms: int | None = None
    pinned: bool = False
    malformed: bool = False

    def why_not_kept(self) -> str | None:
        """Return why its tokens are of no use for training; None: they are."""
        if self.prompt_hash is None:
            return "unreadable_prompt"
        if not self.token_ids:
            return "no_tokens"
        if len(self.token_ids) != len(self.logprobs) or None in self.logprobs:
            return "odd_logprobs"
        if not math.isfinite(sum(self.logprobs)):  # NaN has no order, so this comes first
            return "odd_logprobs"
        if min(self.logprobs) < LEAST_LOGPROB or max(self.logprobs) > 0:
            return "odd_logprobs"
        if min(self.token_ids) < 0 or max(self.token_ids) > _MOST_TOKEN_ID:
            return "odd_logprobs"
        return None


@dataclass(frozen=True, slots=True)
class FailedCall:
    """A request by the lineage's own name that ended with an error; fields as in CapturedCall."""

    at: datetime
    lineage: str
    step: int
    agent: str


class CallKey(NamedTuple):
    """The hashes by which a recorded call is found again."""

    prompt_hash: bytes
    response_hash: bytes


class Remembered(NamedTuple):
    """What is remembered of one answer; `logprobs` is None where it was not asked for."""

    version: str
    finish_reason: str | None
    logprobs: Logprobs | None

    @property
    def cut_off(self) -> bool:
        """Whether the answer ended before the model ended it."""
        return plain(self.finish_reason or "") in CUT_OFF

    @property
    def ended(self) -> bool:
        """Whether the model itself ended it, without a call of a tool."""
        return plain(self.finish_reason or "") in _ENDED


def key_of(call: Call) -> CallKey | None:
    """Return the key of a call, or None if it can have none."""
    try:
        return CallKey(call_prompt_hash(call), response_hash(call.response))
    except NotReadable:
        return None


def incomplete_calls(trace: Trace) -> Iterator[Call]:
    """Yield the calls of a trace of which more may be remembered than was recorded."""
    for call, version in zip(trace.calls, trace.versions, strict=True):
        if version is None or call.logprobs is None:
            yield call
    yield from trace.badly
    yield from (call for _, call in trace.nameless)


def completed(trace: Trace, found: Mapping[Call, Remembered]) -> Trace:
    """Return the trace with what is remembered of its calls; what was recorded wins.

    A call that was cut off, and does not look so, becomes one that was done badly.
    """
    return _Completion(trace, found).trace()


class _Completion:
    """Completes one trace."""

    def __init__(self, trace: Trace, found: Mapping[Call, Remembered]) -> None:
        self._trace, self._found = trace, found
        self._calls: list[Call] = []
        self._versions: list[str | None] = []
        self._badly: list[tuple[BadCall, Call]] = []
        self._seen: set[Call] = set()
        self._left_out = Counter(trace.outcome.left_out)
        self._answered = Counter(trace.outcome.answered)
        self._captured = self._uncaptured = self._moved_bytes = 0

    def trace(self) -> Trace:
        trace = self._trace
        for bad, call in zip(trace.outcome.badly, trace.badly, strict=True):
            self._complete_bad(bad.version, bad.reason, call)
        for call, version in zip(trace.calls, trace.versions, strict=True):
            self._complete(call, version)
        for reason, call in trace.nameless:
            if known := self._found.get(call):
                self._answered[known.version] += 1
                if reason != "repeated":
                    self._complete_bad(known.version, reason, call)
        outcome = replace(
            trace.outcome,
            left_out=dict(self._left_out),
            answered=dict(self._answered),
            text_bytes=trace.outcome.text_bytes - self._moved_bytes,
            badly=[bad for bad, _ in self._badly],
            captured=self._captured,
            uncaptured=self._uncaptured,
        )
        return Trace(outcome, self._calls, self._versions, [call for _, call in self._badly])

    def _complete(self, call: Call, version: str | None) -> None:
        if version is not None and call.logprobs is not None:
            self._keep(call, version)
            return
        known = self._found.get(call)
        if known is None:
            self._uncaptured += 1
            self._keep(call, version)
            return
        self._captured += 1
        if version is None:
            version = known.version
            self._answered[version] += 1
        if known.cut_off:
            self._left_out["truncated"] += 1
            self._moved_bytes += call.prompt_bytes() + len(call.response.encode())
            self._complete_bad(version, "truncated", call)
        else:
            self._keep(_with_logprobs(call, known), version)

    def _keep(self, call: Call, version: str | None) -> None:
        self._calls.append(call)
        self._versions.append(version)

    def _complete_bad(self, version: str, reason: str, call: Call) -> None:
        """Keep a call that was done badly, unless it was not, or nothing of it can be trained."""
        known = self._found.get(call)
        if (
            known
            and known.ended
            and reason == "truncated"
            and not is_truncated(call.response, None)
        ):
            return  # only its length spoke against it
        if known and known.finish_reason is not None:
            if not (known.ended or (known.cut_off and call.response.strip())):
                return
            call = msgspec.structs.replace(call, ended=known.ended)
        plain_call = msgspec.structs.replace(call, logprobs=None)
        if plain_call in self._seen:
            return
        self._seen.add(plain_call)
        if known:
            call = _with_logprobs(call, known)
        self._badly.append((bad_call(version, reason, call), call))


def _with_logprobs(call: Call, known: Remembered) -> Call:
    if call.logprobs is not None or known.logprobs is None:
        return call
    return msgspec.structs.replace(call, logprobs=known.logprobs)
