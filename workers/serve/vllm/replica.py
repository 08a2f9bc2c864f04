"""One vLLM server as a backend."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Collection, Mapping
from contextlib import aclosing
from typing import Any, Literal
from urllib.parse import urlsplit

from babylon_tasks.settings import Settings
from babylon_tasks.text import one_line
from workers.serve.backend import ApiError, BackendAway, CannotServe, Question, Version
from workers.serve.upstream import Failed, Lost, Upstream
from workers.serve.vllm import adapters
from workers.serve.vllm.adapters import LOOK_SECONDS, Card
from workers.serve.vllm.names import Adapter, open_adapter
from workers.serve.vllm.question import PATHS, body_of, check
from workers.serve.vllm.rows import Rows
from workers.serve.vllm.signs import Signs

log = logging.getLogger(__name__)

# Of errors: our key is refused, or what is between the endpoint and vLLM says that it is away.
_NOT_BEGUN = (401, 403, 502, 503, 504)

PROBE_SECONDS = 60.0  # as long as a first request may compile
_ENGINE_ENDED = "EngineCore encountered an issue"  # of all requests, until the server ends too


class Replica:
    """A vLLM server that has the base model; adapters are loaded into it while it runs.

    Args:
        upstream: The server.
        most_adapters: That it has at once; vLLM's `--max-cpu-loras` must be at least as many.
    """

    kind: Literal["vllm"] = "vllm"

    def __init__(self, upstream: Upstream, most_adapters: int) -> None:
        self.name = upstream.name
        self.why_away = "it was not asked yet"
        self._upstream, self._most_adapters = upstream, most_adapters
        self._base: Card | None = None  # as the last look saw it
        self._cards: Mapping[str, Card] = {}
        self._served: dict[Version, str] = {}  # and their names in vLLM
        self._adapters: dict[Version, Adapter] = {}  # of those with weights of their own
        self._proven_bases: set[str] = set()
        self._base_values: adapters.BaseValues = {}
        self._loading = asyncio.Lock()
        self._signs = Signs()
        self._rows = Rows()
        self._probing: asyncio.Task[None] | None = None
        self._engine_ended = False  # as an answer said, since the last look
        self._unproven: set[str] = set()  # names of adapters without a proof, which were told of

    def serves(self, version: Version) -> bool:
        """Tell whether its weights are ours; those of W&B's trainer are at W&B."""
        return version.inference_name is None

    def check(self, question: Question) -> None:
        """Refuse what vLLM must not get; whatever else it cannot do, it says itself."""
        check(question)

    async def look(self) -> bool:
        """Look whether the server lives and what it has."""
        before = list(self._served.items())
        try:
            base, cards = await adapters.cards(self._upstream)
            if self._signs.doubtful():
                metrics = await self._upstream.get("/metrics", LOOK_SECONDS)
                if not self._signs.counted(metrics):
                    self.why_away = "no tokens come out"
                    self._probe(base.id)
                    return False
        except BackendAway as error:
            self.why_away = str(error)
            return False
        except ApiError as error:
            self.why_away = f"it answers {error.status}: is it the URL of a vLLM server?"
            return False
        except ValueError:
            self.why_away = "it answers in another form than vLLM: is it the URL of a vLLM server?"
            return False
        if self._base is not None and (base.id, base.root) != (self._base.id, self._base.root):
            self._proven_bases.clear()
            self._base_values.clear()
        self._base, self._cards, self._engine_ended = base, cards, False
        for version, name in before:  # what was loaded meanwhile is not in `cards`
            if name != base.id and name not in cards:  # it was started again, maybe with another
                self._base_values.clear()
                self._forget(version)
        await self._drop_what_has_no_files()
        return True

    def _probe(self, base: str) -> None:
        """Ask for a token meanwhile: nobody else asks a server that hangs, so none would come."""
        if self._probing is not None and not self._probing.done():
            return

        async def ask() -> None:
            body = {"model": base, "prompt": "a", "max_tokens": 1}
            with contextlib.suppress(ApiError):
                await self._upstream.post(PATHS["text"], body, PROBE_SECONDS)
                self._signs.came()

        self._probing = asyncio.create_task(ask())

    def loaded(self) -> Collection[Version]:
        """Return the versions that were loaded and proven, and that vLLM still has."""
        return self._served.keys()

    async def load(self, version: Version) -> None:
        """Load a version, unless it is, and prove it.

        Raises:
            CannotServe: Its files, this server's base model or its flags do not fit; or it answers
                as another.
            BackendAway: The server does not answer.
        """
        async with self._loading:
            if version in self._served:
                return
            if self._base is None and not await self.look():
                raise BackendAway(f"{self.name} does not answer")
            assert self._base is not None
            if version.checkpoint is None:
                self._require_base(version, self._base)
                self._served[version] = self._base.id
                return
            await self._load_adapter(version, self._base)

    async def _load_adapter(self, version: Version, base: Card) -> None:
        if len(self._adapters) >= self._most_adapters:
            raise CannotServe(
                f"{self.name} has {len(self._adapters)} adapters already (SERVE_ADAPTERS)"
            )
        adapter = await asyncio.to_thread(open_adapter, version)
        card = self._cards.get(adapter.name)
        if card is not None and card.root != str(adapter.folder):
            await self._unload(adapter.name)  # loaded from a copy that may be gone
        await self._load_proven(version, adapter, base)
        self._served[version], self._adapters[version] = adapter.name, adapter

    async def _load_proven(self, version: Version, adapter: Adapter, base: Card) -> None:
        """Load it, and again where another endpoint takes it away before it is proven."""
        for tries_left in (2, 1, 0):
            await adapters.load(self._upstream, adapter)
            try:
                await self._prove(version, adapter, base)
            except adapters.NameLost:
                if not tries_left:
                    raise
            except CannotServe:
                await self._unload(adapter.name)
                raise
            else:
                return

    async def _prove(self, version: Version, adapter: Adapter, base: Card) -> None:
        if adapter.proof is None:
            self._require_base(version, base)
            if adapter.name not in self._unproven:
                self._unproven.add(adapter.name)
                log.warning(
                    "%s: %s has no proof, since an older release trained it: it is taken as it is",
                    self.name, version.name,
                )  # fmt: skip
            return
        with self._rows.asking(adapter=True):
            reason = await adapters.doubt_of(
                self._upstream, base.id, adapter.name, adapter.proof, self._base_values
            )
        if reason is not None:
            raise CannotServe(f"{self.name} does not answer as {version.name}: {reason}")
        self._proven_bases.add(version.base_model)

    def _require_base(self, version: Version, base: Card) -> None:
        """Refuse a version of another base model, by its name where no proof has told.

        Raises:
            CannotServe: It is of another.
        """
        known = version.base_model in self._proven_bases
        if not known and not adapters.same_model(base.root, version.base_model):
            raise CannotServe(
                f"{self.name} has the model {base.root}, but {version.lineage} is trained on "
                f"{version.base_model}: start vLLM with --model {version.base_model}"
            )

    async def unload(self, version: Version) -> None:
        """Take a version out of the server."""
        name = self._forget(version)
        if name is not None and version.checkpoint is not None:
            await self._unload(name)

    async def answer(self, version: Version, question: Question) -> dict[str, Any]:
        """Return the whole answer; see `Backend`."""
        body = body_of(question, self._name_of(version))
        with self._signs.asking(), self._rows.asking(adapter=version.checkpoint is not None) as row:
            try:
                answer = await self._upstream.post(PATHS[question.kind], body)
            except ApiError as error:
                raise self._told(version, question, error) from error
            self._signs.came()
        if not isinstance(answer, dict) or "choices" not in answer:
            raise BackendAway(f"{self.name} answers in another form than OpenAI's")
        row.check(answer, question)
        return answer

    async def stream(
        self, version: Version, question: Question
    ) -> AsyncGenerator[dict[str, Any], None]:
        """Yield the answer's chunks; closing it closes the connection, and vLLM ends the work."""
        body = body_of(question, self._name_of(version))
        with self._signs.asking(), self._rows.asking(adapter=version.checkpoint is not None) as row:
            try:
                async with aclosing(self._upstream.stream(PATHS[question.kind], body)) as chunks:
                    async for chunk in chunks:
                        self._signs.came()
                        row.check(chunk, question)
                        yield chunk
            except ApiError as error:
                raise self._told(version, question, error) from error

    async def close(self) -> None:
        """Close the connections; what is loaded stays, for the next endpoint."""
        if self._probing is not None:
            self._probing.cancel()
            await asyncio.gather(self._probing, return_exceptions=True)
        await self._upstream.close()

    def _name_of(self, version: Version) -> str:
        name = self._served.get(version)
        if self._engine_ended:
            raise BackendAway(f"{self.name} has no engine")
        if name is None:
            raise BackendAway(f"{self.name} does not have {version.name}")
        return name

    def _told(self, version: Version, question: Question, error: ApiError) -> ApiError:
        """Hide from clients what is between the endpoint and vLLM, and bound what a question harms.

        As its engine ends, vLLM answers 500 to whatever is under way, and is gone then. So another
        server is asked after a 500; but once, since the question itself may be what ends engines.
        """
        if error.status == 404:  # it was started again, or another endpoint took the name away
            self._forget(version)
            return BackendAway(f"{self.name} has lost the version")
        failed = isinstance(error, Failed) and error.said_status not in _NOT_BEGUN
        self._engine_ended |= isinstance(error, Failed) and error.said.startswith(_ENGINE_ENDED)
        if failed or isinstance(error, Lost):
            if question.failed_at:
                return ApiError(502, str(error), code="backend_failed")
            question.failed_at.append(self.name)
        return error

    def _forget(self, version: Version) -> str | None:
        self._adapters.pop(version, None)
        return self._served.pop(version, None)

    async def _drop_what_has_no_files(self) -> None:
        """Take adapters away whose files are gone.

        vLLM reads an adapter again that it had to make room for, and where the files are gone its
        engine ends, with all requests in it.
        """
        held = list(self._adapters.items())
        gone = await asyncio.to_thread(lambda: [one for one in held if not one[1].keep()])
        for version, _ in gone:
            log.warning("%s: the files of %s are gone", self.name, version.name)
            self._forget(version)
        for name in {adapter.name for _, adapter in gone}:
            await self._unload(name)

    async def _unload(self, name: str) -> None:
        """Take a name away, unless another version has it: the same weights, say, once pinned."""
        if name in self._served.values():
            return
        try:
            await adapters.unload(self._upstream, name)
        except ApiError as error:
            log.info("%s: %s is not unloaded: %s", self.name, name, one_line(str(error)))


def replicas(settings: Settings) -> list[Replica]:
    """Return the servers of VLLM_URLS; they are named by host and port."""
    key, seconds = settings.vllm_api_key, settings.serve_seconds
    return [
        Replica(Upstream(url, key, _host_of(url), seconds), settings.serve_adapters)
        for url in settings.vllm_servers()
    ]


def _host_of(url: str) -> str:
    return urlsplit(url).netloc.rpartition("@")[2]
