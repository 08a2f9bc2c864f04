"""Puts the endpoint together from the settings, and runs it: read this file first."""

from __future__ import annotations

import argparse
import contextlib
import signal
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

from babylon_tasks.errors import ServerUnavailable, UserError
from babylon_tasks.logs import configure_logging
from babylon_tasks.records.lineages import Lineage
from babylon_tasks.settings import Settings, load_settings
from babylon_tasks.store import lineages
from babylon_tasks.store.database import Database
from babylon_tasks.work.signals import stop
from workers.serve import directory
from workers.serve.backend import Backend
from workers.serve.capture import Capture
from workers.serve.directory import Directory
from workers.serve.follower import Follower
from workers.serve.http.app import Endpoint
from workers.serve.http.completions import Completions
from workers.serve.http.keys import Keys, is_loopback
from workers.serve.http.limits import Limits
from workers.serve.http.metrics import Metrics
from workers.serve.http.server import listen
from workers.serve.loader import Loader
from workers.serve.router import Router
from workers.serve.upstream import Upstream
from workers.serve.vllm.process import Served, VllmProcess
from workers.serve.vllm.replica import Replica
from workers.serve.wandb import Wandb

_ANSWER_SECONDS = 3.0  # for Postgres, which nobody waits for
_VLLM_LOG = Path(".babylon/logs/vllm.log")
_DRAIN_SECONDS = 25.0  # for answers under way at the end: supervisors kill after 30


def run() -> None:
    """Run the endpoint until SIGINT or SIGTERM.

    Raises:
        UserError: It cannot start; the message says what to do.
    """
    signal.signal(signal.SIGTERM, stop)  # the server's own handler comes first, then this one
    parser = argparse.ArgumentParser(
        prog="python -m workers.serve",
        description="Answers agents over OpenAI's API with what is promoted; see docs/serving.md.",
    )
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000, help="0 takes a free one")
    arguments = parser.parse_args()
    settings = load_settings()
    configure_logging(settings.log_level)
    loopback = is_loopback(arguments.host)
    keys = Keys(Database(settings.postgres(), _ANSWER_SECONDS), settings.serve_api_key, loopback)
    keys.require_one(arguments.host)
    endpoint = make_endpoint(settings, keys)
    listen(endpoint, arguments.host, arguments.port, _DRAIN_SECONDS)


def make_endpoint(settings: Settings, keys: Keys) -> Endpoint:
    """Make the endpoint; its parts begin with the server, and end with it.

    Raises:
        UserError: Nothing here can answer; the message says what to do.
    """
    rows = Database(settings.postgres(), _ANSWER_SECONDS)
    own = _own_lineage(settings, rows)
    backends = make_backends(settings, own)
    loader = Loader(backends.all, settings.serve_adapters)

    def read(before: Directory) -> Directory:
        with rows.transaction() as tx:
            return directory.read(tx, own, before)

    follower = Follower(read, loader, own.name, settings.serve_adapters)
    router = Router(follower, loader, settings.serve_seconds)
    capture = Capture(settings)
    metrics = Metrics()
    metrics.watch(router.health, lambda: _captured(capture), lambda: capture.queued)
    limits = Limits(requests=settings.serve_requests, answer_seconds=settings.serve_seconds)
    completions = Completions(router, metrics, limits, capture.add, settings.capture_calls)

    @asynccontextmanager
    async def capturing() -> AsyncIterator[None]:
        try:
            yield
        finally:
            capture.close()

    @asynccontextmanager
    async def following() -> AsyncIterator[None]:
        if backends.process:
            await backends.process.start()
        await follower.start()
        try:
            yield
        finally:
            await follower.close()
            await loader.close()
            if backends.process:
                await backends.process.stop()

    # What answers under way need ends after them: the first to begin is the last to end.
    services = (capturing(), following(), keys.kept_fresh())
    return Endpoint(router, completions, keys, metrics, limits, services)


def _own_lineage(settings: Settings, rows: Database) -> Lineage:
    """Return the lineage of the settings, as its row has it: with the revision that is pinned."""
    own = Lineage.of_deployment(settings)
    with contextlib.suppress(ServerUnavailable), rows.transaction() as tx:
        return next(iter(lineages.read(tx, [own.name])), own)
    return own


@dataclass(frozen=True, slots=True)
class Backends:
    """What can answer; `process` is the vLLM server that is ours to run."""

    all: Sequence[Backend]
    process: VllmProcess | None


def make_backends(settings: Settings, own: Lineage) -> Backends:
    """Return what can answer, by the settings: vLLM or our own engine, and W&B with its key.

    Raises:
        UserError: The packages of our own engine are missing, or VLLM_PYTHON cannot be run.
    """
    backends: list[Backend] = []
    process = None
    if urls := settings.vllm_servers():
        backends += [_vllm_at(settings, url) for url in urls]
    elif settings.vllm_python:
        process = _vllm_process(settings, own)
        backends.append(Replica(process.upstream(), settings.serve_adapters))
    elif settings.trainer != "serverless" or settings.wandb_api_key is None:
        backends.append(_embedded())
    if settings.wandb_api_key is not None:
        url = settings.serverless_url.rstrip("/").removesuffix("/v1")
        backends.append(Wandb(Upstream(url, settings.wandb_api_key, "W&B", settings.serve_seconds)))
    return Backends(backends, process)


def _embedded() -> Backend:
    missing = [name for name in ("torch", "transformers", "peft") if find_spec(name) is None]
    if missing:
        raise UserError(
            f"{missing[0]} is not installed: set VLLM_URLS, or pip install 'babylon-tasks[train]'"
        )
    from workers.serve.embedded.backend import EmbeddedBackend  # late: torch takes seconds

    return EmbeddedBackend()


def _vllm_at(settings: Settings, url: str) -> Backend:
    host = urlsplit(url).netloc.rpartition("@")[2]  # without a password
    upstream = Upstream(url, settings.vllm_api_key, host, settings.serve_seconds)
    return Replica(upstream, settings.serve_adapters)


def _vllm_process(settings: Settings, own: Lineage) -> VllmProcess:
    served = Served(own.base_model, own.base_revision, settings.lora_rank, settings.serve_adapters)
    return VllmProcess(settings, served, _VLLM_LOG)


def _captured(capture: Capture) -> Mapping[str, int]:
    counts = capture.counts
    return {
        "captured": counts.captured,
        **{f"dropped_{reason}": count for reason, count in counts.dropped.items()},
    }
