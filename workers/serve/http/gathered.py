"""What an answer was made of, gathered while it passes: for capture, budgets and metrics."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from babylon_tasks.records.call_hashes import prompt_hash, response_hash, text_hash
from babylon_tasks.records.captured import CapturedCall
from babylon_tasks.records.form import FormCheck, well_formed
from babylon_tasks.records.parts import NotReadable
from workers.serve.backend import Version
from workers.serve.http.requests import Asked

_OTHER_PIECES = ("tool_calls", "reasoning", "reasoning_content")
_MOST_CHECKED = 2**16  # characters at an answer's end whose form is looked at
_MOST_ARGUMENTS = 2**18  # characters of a conversation's calls that are read for its hash


@dataclass(slots=True)
class Choice:
    """What one choice said until now."""

    texts: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish_reason: str | None = None
    pieces: int = 0  # that came
    calls_tool: bool = False


class Gathered:
    """An answer under way."""

    def __init__(self, check: FormCheck = well_formed) -> None:
        self._well_formed = check
        self.began = datetime.now(UTC)
        self.began_at = time.monotonic()
        self.first_token_at: float | None = None
        self.choices: dict[int, Choice] = {}
        self.prompt_tokens = 0
        self._completion_tokens = 0

    def add(self, answer: dict[str, Any]) -> None:
        """Take in a chunk, or a whole answer, before anything is taken out of it."""
        usage = answer.get("usage")
        if usage:
            self.prompt_tokens = usage.get("prompt_tokens") or 0
            self._completion_tokens = usage.get("completion_tokens") or 0
        elif prompt := answer.get("prompt_token_ids"):  # a stream that is cut has no usage
            self.prompt_tokens = len(prompt)
        for one in answer.get("choices") or ():
            index = one.get("index") or 0
            choice = self.choices.get(index)
            if choice is None:
                choice = self.choices[index] = Choice()
            self._add_choice(choice, one)

    def _add_choice(self, choice: Choice, one: dict[str, Any]) -> None:
        said = one.get("delta") or one.get("message") or one
        text = said.get("content") or said.get("text")
        if text:
            choice.texts.append(text)
        if prompt := one.get("prompt_token_ids"):  # of a text, vLLM tells them here
            self.prompt_tokens = max(self.prompt_tokens, len(prompt))
        tokens = one.get("token_ids")
        piece = text or any(map(said.get, _OTHER_PIECES))
        choice.calls_tool = choice.calls_tool or bool(said.get("tool_calls"))
        if tokens:
            choice.token_ids += tokens
        if piece:
            choice.pieces += 1
        if (tokens or piece) and self.first_token_at is None:
            self.first_token_at = time.monotonic()
        logprobs = one.get("logprobs")
        if logprobs:
            if "token_logprobs" in logprobs:
                choice.logprobs += logprobs["token_logprobs"]
            else:
                choice.logprobs += [each["logprob"] for each in logprobs.get("content") or ()]
        choice.finish_reason = one.get("finish_reason") or choice.finish_reason

    @property
    def completion_tokens(self) -> int:
        """Tokens of all choices, as far as they are known: at least one for each piece."""
        known = sum(max(len(one.token_ids), one.pieces) for one in self.choices.values())
        return max(self._completion_tokens, known)

    @property
    def first_token_seconds(self) -> float | None:
        """Seconds from the request to the first token."""
        return None if self.first_token_at is None else self.first_token_at - self.began_at

    def seconds(self) -> float:
        """Return the seconds since the request."""
        return time.monotonic() - self.began_at

    def captured(self, version: Version, backend: str, asked: Asked) -> list[CapturedCall]:
        """Return the choices that came to their end; `backend` is its kind.

        The form counts where an agent asked by the lineage's own name, and got a text.
        """
        first = self.first_token_seconds if asked.question.stream else None
        latency_ms = round(self.seconds() * 1000)
        pinned = asked.model != version.lineage
        hashes: dict[int, bytes | None] = {}
        calls = []
        for index, choice in sorted(self.choices.items()):
            if choice.finish_reason is None:
                continue
            number = index // (asked.question.body.get("n") or 1)
            if number not in hashes:
                hashes[number] = _prompt_hash(asked, number)
            text = "".join(choice.texts)
            counts = asked.agent is not None and not pinned and not choice.calls_tool
            call = CapturedCall(
                at=self.began,
                lineage=version.lineage,
                step=version.step,
                agent=asked.agent,
                prompt_hash=hashes[number],
                response_hash=response_hash(text),
                backend=backend,
                finish_reason=choice.finish_reason,
                token_ids=choice.token_ids,
                logprobs=choice.logprobs,
                prompt_tokens=self.prompt_tokens,
                latency_ms=latency_ms,
                first_token_ms=None if first is None else round(first * 1000),
                pinned=pinned,
                malformed=counts and not self._well_formed(text[-_MOST_CHECKED:]),
            )
            calls.append(call)
        return calls


def _prompt_hash(asked: Asked, number: int) -> bytes | None:
    """Return the hash of the conversation, or of one of several prompts."""
    body = asked.question.body
    if asked.question.kind == "text":
        prompt = body["prompt"]
        several = isinstance(prompt, list) and not isinstance(prompt[0], int)
        return text_hash(prompt[number] if several else prompt)
    calls = (call for message in body["messages"] for call in message.get("tool_calls") or ())
    if sum(len(call["function"]["arguments"]) for call in calls) > _MOST_ARGUMENTS:
        return None
    try:
        return prompt_hash(body["messages"], body.get("tools"))
    except NotReadable:  # it has a picture, say
        return None
