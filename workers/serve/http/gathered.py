"""What an answer was made of, gathered while it passes: for capture, budgets and metrics."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from workers.serve.backend import Question, Version


@dataclass(frozen=True, slots=True)
class CapturedAnswer:
    """One whole answer of a model; a request with `n` has several.

    `logprobs` belong to `token_ids`; both are empty where the backend did not tell. `text` is the
    answer's content, without calls of tools. `backend` is its kind. `index` is the choice's: with a
    list of prompts that of prompt `index // n`.
    """

    version: Version
    backend: str
    question: Question
    agent: str | None
    key: str | None
    index: int
    text: str
    finish_reason: str
    token_ids: Sequence[int]
    logprobs: Sequence[float]
    prompt_tokens: int
    latency_seconds: float
    first_token_seconds: float | None


@dataclass(slots=True)
class Choice:
    """What one choice said until now."""

    texts: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish_reason: str | None = None


class Gathered:
    """An answer under way."""

    def __init__(self) -> None:
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
        tokens = one.get("token_ids")
        if tokens:
            choice.token_ids += tokens
        if (tokens or text or said.get("tool_calls")) and self.first_token_at is None:
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
        """Tokens of all choices, as far as they are known."""
        known = sum(len(choice.token_ids) for choice in self.choices.values())
        return max(self._completion_tokens, known)

    @property
    def first_token_seconds(self) -> float | None:
        """Seconds from the request to the first token."""
        return None if self.first_token_at is None else self.first_token_at - self.began_at

    def seconds(self) -> float:
        """Return the seconds since the request."""
        return time.monotonic() - self.began_at

    def captured(
        self, version: Version, backend: str, question: Question, asker: tuple[str | None, ...]
    ) -> list[CapturedAnswer]:
        """Return the choices that came to their end; `asker` is agent and key."""
        agent, key = asker
        latency = self.seconds()
        return [
            CapturedAnswer(
                version=version,
                backend=backend,
                question=question,
                agent=agent,
                key=key,
                index=index,
                text="".join(choice.texts),
                finish_reason=choice.finish_reason,
                token_ids=choice.token_ids,
                logprobs=choice.logprobs,
                prompt_tokens=self.prompt_tokens,
                latency_seconds=latency,
                first_token_seconds=self.first_token_seconds,
            )
            for index, choice in sorted(self.choices.items())
            if choice.finish_reason
        ]
