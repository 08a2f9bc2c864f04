"""The backend that generates in this process: for machines without vLLM, and small models."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncGenerator, Collection
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from typing import Any, Literal, NamedTuple

from babylon_tasks.checkpoints.files import open_local
from babylon_tasks.checkpoints.proof import read_proof
from babylon_tasks.errors import BabylonError
from babylon_tasks.records.proofs import doubt
from babylon_tasks.text import first_line
from workers.serve.backend import ApiError, BackendAway, CannotServe, Question, Version
from workers.serve.embedded.answer_text import AnswerText
from workers.serve.embedded.answers import Answer
from workers.serve.embedded.base import Base
from workers.serve.embedded.bases import Bases
from workers.serve.embedded.engine import Engine
from workers.serve.embedded.lora import Adapter
from workers.serve.embedded.options import Options, read_options
from workers.serve.embedded.prompt import check_prompt, prompt_tokens
from workers.serve.embedded.request import Piece, Request
from workers.serve.embedded.sampler import Sampling
from workers.trainer.bars import need_no_semaphore

_MOST_BASES = 4  # base models in memory
_IDLE_SECONDS = 600.0  # without a request, after which one makes room for another


class _Loaded(NamedTuple):
    base: Base
    adapter: Adapter | None


class EmbeddedBackend:
    """A `Backend` on transformers, with one thread that generates for all requests.

    A seed repeats an answer whatever else is in the batch, as far as rounding lets it: sums of
    other shapes round otherwise, which moves a draw that falls on the border of two tokens.
    """

    kind: Literal["embedded"] = "embedded"
    name = "embedded"
    why_away = "no tokens come out"

    def __init__(self) -> None:
        need_no_semaphore()  # uvicorn ends by the signal that it was sent
        self._engine = Engine()
        self._bases = Bases()
        self._versions: dict[Version, _Loaded] = {}
        self._loading = asyncio.Lock()
        # Long prompts take seconds; whoever else needs a thread does not wait for them.
        self._tokenizing = ThreadPoolExecutor(2, "tokenizing")

    def serves(self, version: Version) -> bool:
        """Tell whether the weights are files, and not at W&B."""
        return version.inference_name is None and (
            version.step == 0 or version.checkpoint is not None
        )

    def check(self, question: Question) -> None:
        """Refuse what this engine cannot do.

        Raises:
            ApiError: 400, with the parameter's name.
        """
        read_options(question)
        check_prompt(question)

    async def look(self) -> bool:
        """Tell whether tokens come out."""
        return self._engine.alive()

    def loaded(self) -> Collection[Version]:
        """Return the versions that can be asked."""
        return tuple(self._versions)

    async def load(self, version: Version) -> None:
        """Load a version, and compare what it makes of the proof's text; nothing if it is loaded.

        Raises:
            CannotServe: Its files or its base model cannot be read or do not fit, or it does not
                answer as the trainer's.
        """
        async with self._loading:
            if version in self._versions:
                return
            if self._bases.find(version) is None:
                self._make_room()
            used = {loaded.base for loaded in self._versions.values()}
            base = await asyncio.to_thread(self._bases.get, version, used)
            adapter = None
            if version.step > 0:
                adapter = await self._load_adapter(version, base)
            self._versions[version] = _Loaded(base, adapter)

    def _make_room(self) -> None:
        """Forget a base model that no step needs, if there are many.

        Raises:
            CannotServe: All of them are used.
        """
        bases = {loaded.base for loaded in self._versions.values()}
        if len(bases) < _MOST_BASES:
            return
        needed = {loaded.base for version, loaded in self._versions.items() if version.step}
        oldest = min(bases - needed, key=lambda base: base.used_at, default=None)
        if oldest is None or time.monotonic() - oldest.used_at < _IDLE_SECONDS:
            raise CannotServe(
                f"{_MOST_BASES} base models are in memory, and all are used: serve with vLLM"
            )
        self._versions = {
            version: loaded
            for version, loaded in self._versions.items()
            if loaded.base is not oldest
        }

    async def unload(self, version: Version) -> None:
        """Forget a version; requests that run keep its weights until they end."""
        self._versions.pop(version, None)

    async def answer(self, version: Version, question: Question) -> dict[str, Any]:
        """Return the whole answer.

        Raises:
            ApiError: The request cannot be answered.
        """
        request, answer = await self._prepare(version, question)
        pieces = [piece async for piece in self._pieces(request)]
        return answer.whole(sorted(pieces, key=lambda piece: piece.row))

    async def stream(
        self, version: Version, question: Question
    ) -> AsyncGenerator[dict[str, Any], None]:
        """Yield the answer's chunks; closing the generator ends the rows at their next token.

        Raises:
            ApiError: The request cannot be answered.
        """
        request, answer = await self._prepare(version, question)
        begun = False
        async with aclosing(self._pieces(request)) as pieces:
            try:
                async for piece in pieces:
                    if not begun:
                        begun = True
                        for chunk in answer.first_chunks():
                            yield chunk
                    yield answer.chunk(piece)
            except BackendAway as error:
                if not begun:
                    raise
                raise ApiError(503, str(error)) from None  # another backend cannot go on with it
        for chunk in answer.last_chunks():
            yield chunk

    async def close(self) -> None:
        """End the thread; requests that run fail."""
        self._tokenizing.shutdown(wait=False, cancel_futures=True)
        await asyncio.to_thread(self._engine.close)
        self._versions.clear()

    async def _load_adapter(self, version: Version, base: Base) -> Adapter:
        if version.checkpoint is None:
            raise CannotServe(f"{version.name} has no files: its checkpoint was removed")
        try:
            folder = await asyncio.to_thread(open_local, version.checkpoint)
            proof = await asyncio.to_thread(read_proof, folder)
        except BabylonError as error:
            raise CannotServe(str(error)) from error
        adapter = await asyncio.to_thread(base.overlay.read, folder)
        if proof is not None:
            ids = proof.token_ids
            if not base.chat.facts.knows([*ids]) or len(ids) > base.chat.facts.positions:
                raise CannotServe(f"{version.name} was proven with another base model")
            try:
                run = self._engine.run
                ours = await asyncio.wrap_future(run(lambda: base.logprobs(ids, adapter)))
                bare = await asyncio.wrap_future(run(lambda: base.logprobs(ids, None)))
            except Exception as error:  # out of memory, say
                raise CannotServe(f"cannot prove {version.name}: {first_line(error)}") from error
            if reason := doubt(proof, ours, bare):
                raise CannotServe(f"{version.name} does not answer as itself: {reason}")
        return adapter

    async def _prepare(self, version: Version, question: Question) -> tuple[Request, Answer]:
        """Return the request with its rows, and the writer of its answer."""
        loaded = self._versions.get(version)
        if loaded is None:
            raise BackendAway(f"{version.name} is not loaded here")
        options = read_options(question)
        base, chat = loaded.base, loaded.base.chat
        base.used_at = time.monotonic()
        most = base.most_characters
        loop = asyncio.get_running_loop()
        prompt = await loop.run_in_executor(self._tokenizing, prompt_tokens, chat, question, most)
        room = chat.facts.positions - len(prompt)
        request = Request(
            base=base,
            adapter=loaded.adapter,
            prompt=prompt,
            max_tokens=min(options.wanted_tokens, room),
            streamed=question.stream,
        )
        for sampling in _samplings(options, question.kind):
            text = AnswerText(chat, options.stops, raw=question.kind == "text")
            request.add_row(sampling, text)
        if len(request.rows) * request.longest > base.cache_tokens:
            raise ApiError(
                400,
                f"{len(request.rows)} answers of {request.longest} tokens, the prompt included, "
                f"are more than the {base.cache_tokens} that fit into memory",
                param="n" if len(request.rows) > 1 else "max_tokens",
            )
        return request, Answer(version, question, options, chat, prompt)

    async def _pieces(self, request: Request) -> AsyncGenerator[Piece, None]:
        """Yield what the engine sends, until all rows have ended."""
        left = len(request.rows)
        self._engine.submit(request)
        try:
            while left:
                piece = await request.pieces.get()
                if isinstance(piece, ApiError):
                    raise piece
                left -= piece.finish_reason is not None
                yield piece
        finally:
            request.cancelled = True


def _samplings(options: Options, kind: Literal["chat", "text"]) -> list[Sampling]:
    """Return how each answer is drawn: with a seed, the second answer has one of its own."""
    temperature = 1.0 if options.temperature is None else options.temperature
    top_p = 1.0 if options.top_p is None else options.top_p
    samplings = []
    for number in range(options.n or 1):
        seed = None if options.seed is None else f"{options.seed}:{number}"
        drawn = random.Random(seed)  # noqa: S311 - no secret
        samplings.append(Sampling(temperature, top_p, drawn, options.alternatives(kind)))
    return samplings
