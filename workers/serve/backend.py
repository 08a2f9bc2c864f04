"""What answers: a version of a lineage, a question to it, and the backends that can answer it.

Answers and chunks are OpenAI's objects as decoded JSON (`chat.completion`, `text_completion`, and
their chunks). A choice also has `token_ids`, and its `logprobs` are before the temperature's
effect, where the backend can tell and the question is `captured`. The endpoint takes out what the
client did not ask for, and writes `model`.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from babylon_tasks.errors import BabylonError


@dataclass(frozen=True, slots=True)
class Version:
    """One immutable version of a lineage; step 0 is the base model, without files.

    `version` is as in `rl.steps` (`v1.0.12`), `checkpoint` a folder or URL. With `base_revision`
    only that revision of the base model will do. `inference_name` is W&B's name for the weights, if
    they are there.
    """

    lineage: str
    step: int
    version: str | None
    base_model: str
    base_revision: str | None = None
    checkpoint: str | None = None
    inference_name: str | None = None

    @property
    def name(self) -> str:
        """The name that every version has: `babylon-agent@12`."""
        return f"{self.lineage}@{self.step}"

    @property
    def full_name(self) -> str:
        """As the app's `trained_models` names it, `babylon-agent-v1.0.12`; `…@0` for the base."""
        return f"{self.lineage}-{self.version}" if self.version else self.name


@dataclass(frozen=True, slots=True)
class Question:
    """A request that was checked; `body` has what the client sent but `model`, `stream`, `user`.

    `captured`: the answer is to have token ids and log-probabilities, whoever asked for them.
    `failed_at` has the servers that failed or ended while they may have worked on it: maybe because
    of it, so one other is asked, and no third.
    """

    kind: Literal["chat", "text"]
    body: Mapping[str, Any]
    stream: bool
    captured: bool
    failed_at: list[str] = field(default_factory=list, compare=False)


class ApiError(BabylonError):
    """An error that the client is told, in the form of OpenAI's API."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.param, self.code = status, param, code
        self.headers = dict(headers or {})


class BackendAway(ApiError):
    """The backend does not answer, or ended before its first token: another may be asked."""

    def __init__(self, message: str) -> None:
        super().__init__(503, message, headers={"retry-after": "1"})


class CannotServe(BabylonError):
    """A version that this backend cannot load, or that did not answer as itself; says why."""


class Backend(Protocol):
    """One place that generates answers: a vLLM server, our own engine, or W&B."""

    name: str  # for metrics and messages; without a password
    why_away: str  # why the last look saw no life, for a person; without a secret

    @property
    def kind(self) -> Literal["vllm", "embedded", "wandb"]:
        """What sort it is."""
        ...

    def serves(self, version: Version) -> bool:
        """Tell whether versions of this sort are its own: by where the weights are."""
        ...

    def check(self, question: Question) -> None:
        """Raise an `ApiError` (400, with `param`) for what this backend cannot do."""
        ...

    async def look(self) -> bool:
        """Look whether it lives and what it has; called about once a second, and never raises."""
        ...

    def loaded(self) -> Collection[Version]:
        """Return the versions that it can answer by now, as far as the last look knows."""
        ...

    async def load(self, version: Version) -> None:
        """Load a version, and prove once that it answers as itself; nothing if it is loaded.

        Raises:
            CannotServe: It cannot be loaded, or answers as another.
            BackendAway: The backend does not answer.
        """
        ...

    async def unload(self, version: Version) -> None:
        """Forget a version that no request uses; never raises."""
        ...

    async def answer(self, version: Version, question: Question) -> dict[str, Any]:
        """Return the whole answer.

        Raises:
            ApiError: What the client is told.
        """
        ...

    def stream(self, version: Version, question: Question) -> AsyncGenerator[dict[str, Any], None]:
        """Yield the answer's chunks; closing the generator stops the generation.

        Raises:
            ApiError: As `answer`; BackendAway only before the first chunk.
        """
        ...

    async def close(self) -> None:
        """Let go of everything."""
        ...
