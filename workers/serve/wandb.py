"""W&B's inference as a backend, for versions whose weights are at W&B; the key stays here."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Collection
from contextlib import aclosing
from typing import Any, Literal

from workers.serve.backend import ApiError, BackendAway, Question, Version
from workers.serve.upstream import Upstream
from workers.serve.vllm.question import PATHS, check, given

_AWAY_SECONDS = 5.0  # for which a server that did not answer counts as away

# What is asked for besides; vLLM's, which W&B may refuse. Ids also for a key's budget, which counts
# them where an answer is cut; log-probabilities where an answer is to be remembered.
_WANTED = {"return_token_ids": True, "logprobs": True}


class Wandb:
    """W&B holds the weights of its trainer's steps, and answers by their names."""

    kind: Literal["wandb"] = "wandb"

    why_away = "it did not answer the last request"

    def __init__(self, upstream: Upstream) -> None:
        self.name = upstream.name
        self._upstream = upstream
        self._loaded: set[Version] = set()
        self._wanted = set(_WANTED)  # without what W&B has refused
        self._away_at: float | None = None

    def serves(self, version: Version) -> bool:
        """Tell whether its weights are at W&B."""
        return version.inference_name is not None

    def check(self, question: Question) -> None:
        """Refuse what a server of vLLM's kind must not get."""
        check(question)

    async def look(self) -> bool:
        """Tell whether it answered last; nothing is asked, since each request costs."""
        return self._away_at is None or time.monotonic() - self._away_at >= _AWAY_SECONDS

    def loaded(self) -> Collection[Version]:
        """Return the versions that it was told of."""
        return self._loaded

    async def load(self, version: Version) -> None:
        """Take note of a version: W&B has it."""
        self._loaded.add(version)

    async def unload(self, version: Version) -> None:
        """Forget a version."""
        self._loaded.discard(version)

    async def answer(self, version: Version, question: Question) -> dict[str, Any]:
        """Return the whole answer; see `Backend`."""
        while True:
            body, added = self._body(version, question)
            try:
                answer = await self._upstream.post(PATHS[question.kind], body)
            except ApiError as error:
                self._note(error, added)
                continue
            self._away_at = None
            if not isinstance(answer, dict) or "choices" not in answer:
                raise BackendAway(f"{self.name} answers in another form than OpenAI's")
            return answer

    async def stream(
        self, version: Version, question: Question
    ) -> AsyncGenerator[dict[str, Any], None]:
        """Yield the answer's chunks; see `Backend`."""
        while True:
            body, added = self._body(version, question)
            try:
                async with aclosing(self._upstream.stream(PATHS[question.kind], body)) as chunks:
                    async for chunk in chunks:
                        self._away_at = None
                        yield chunk
                return
            except ApiError as error:
                self._note(error, added)

    async def close(self) -> None:
        """Close the connections."""
        await self._upstream.close()

    def _body(self, version: Version, question: Question) -> tuple[dict[str, Any], set[str]]:
        """Return the body to send, and the names of what we added to the client's."""
        asked = given(question)
        added = self._wanted - asked.keys()
        if question.kind == "text" or not question.captured:
            added.discard("logprobs")  # there it is a number, and would show other tokens too
        wanted = {name: _WANTED[name] for name in added}
        body = {"temperature": 1.0, "top_p": 1.0, **asked, **wanted, "stream": question.stream}
        return {**body, "model": version.inference_name}, added

    def _note(self, error: ApiError, added: set[str]) -> None:
        """Ask again without what W&B refuses and the client did not ask for; else raise.

        Raises:
            ApiError: This error; it is about something else.
        """
        if isinstance(error, BackendAway):
            self._away_at = time.monotonic()
        told = f"{error.param} {error}"
        refused = {name for name in added if name in told} if error.status in (400, 422) else set()
        if not refused:
            raise error
        self._wanted -= refused
