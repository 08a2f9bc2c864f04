"""W&B's inference as a backend: its trainer's versions, and base models; the key stays here."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Collection
from contextlib import aclosing
from typing import Any, Literal

from workers.serve.backend import ApiError, BackendAway, Question, Version
from workers.serve.upstream import Failed, Lost, Upstream
from workers.serve.vllm.question import PATHS, check, given

_AWAY_SECONDS = 5.0  # for which a server that did not answer counts as away
_MOST_FAILURES = 3  # in a row, of a server that can be reached; one may be about its question

# What is asked for besides; vLLM's, which W&B may refuse. Ids also for a key's budget, which counts
# them where an answer is cut; log-probabilities where an answer is to be remembered.
_WANTED = {"return_token_ids": True, "logprobs": True}


class _Asking:
    """A question under way: what is still asked for besides, and what was refused."""

    def __init__(self, wanted: set[str]) -> None:
        self.wanted, self.refused = set(wanted), set[str]()


class Wandb:
    """W&B holds the weights of its trainer's steps, and answers by their names.

    Args:
        upstream: The server.
        base_models: It answers as a lineage's step 0, too, by the base model's id: for where
            nothing else can, since its trainer needs what such answers tell to make step 1.
    """

    kind: Literal["wandb"] = "wandb"

    why_away = "it did not answer the last requests"

    def __init__(self, upstream: Upstream, *, base_models: bool) -> None:
        self.name = upstream.name
        self._base_models = base_models
        self._upstream = upstream
        self._loaded: set[Version] = set()
        self._wanted = set(_WANTED)  # without what W&B has refused
        self._away_at: float | None = None
        self._failures = 0  # in a row

    def serves(self, version: Version) -> bool:
        """Tell whether its weights are at W&B."""
        return version.inference_name is not None or (self._base_models and version.step == 0)

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
        asking = _Asking(self._wanted)
        while True:
            body, added = self._body(version, question, asking)
            try:
                answer = await self._upstream.post(PATHS[question.kind], body)
            except ApiError as error:
                self._note(error, added, asking)
                continue
            self._came(asking)
            if not isinstance(answer, dict) or "choices" not in answer:
                raise BackendAway(f"{self.name} answers in another form than OpenAI's")
            return answer

    async def stream(
        self, version: Version, question: Question
    ) -> AsyncGenerator[dict[str, Any], None]:
        """Yield the answer's chunks; see `Backend`."""
        asking = _Asking(self._wanted)
        begun = False
        while True:
            body, added = self._body(version, question, asking)
            try:
                async with aclosing(self._upstream.stream(PATHS[question.kind], body)) as chunks:
                    async for chunk in chunks:
                        begun = True
                        self._came(asking)
                        yield chunk
                return
            except ApiError as error:
                if begun:
                    raise
                self._note(error, added, asking)

    async def close(self) -> None:
        """Close the connections."""
        await self._upstream.close()

    def _body(
        self, version: Version, question: Question, asking: _Asking
    ) -> tuple[dict[str, Any], set[str]]:
        """Return the body to send, and the names of what we added to the client's."""
        asked = given(question)
        added = asking.wanted - asked.keys()
        if question.kind == "text" or not question.captured:
            added.discard("logprobs")  # there it is a number, and would show other tokens too
        wanted = {name: _WANTED[name] for name in added}
        body = {"temperature": 1.0, "top_p": 1.0, **asked, **wanted, "stream": question.stream}
        return {**body, "model": version.inference_name or version.base_model}, added

    def _note(self, error: ApiError, added: set[str], asking: _Asking) -> None:
        """Let the question be asked again without what we added, where that may be refused.

        The error's text does not decide: it may quote the client's. So what was refused is known by
        `param`, or once the same question is answered without it.

        Raises:
            ApiError: This error; it is about something else.
        """
        if isinstance(error, BackendAway):
            self._failures += 1
            if not isinstance(error, Failed | Lost) or self._failures >= _MOST_FAILURES:
                self._away_at = time.monotonic()
            raise error
        self._away_at, self._failures = None, 0
        if error.status not in (400, 422) or not added:
            raise error
        if error.param in added:
            self._wanted.discard(error.param)
            asking.wanted.discard(error.param)
        else:
            asking.refused = {name for name in added if name in str(error)} or added
            asking.wanted -= added

    def _came(self, asking: _Asking) -> None:
        """Note an answer: what it was asked without is not asked for again."""
        self._away_at, self._failures = None, 0
        self._wanted -= asking.refused
