"""Puts the endpoint together from the settings, and runs it: read this file first."""

from __future__ import annotations

import argparse
import contextlib
import signal
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from babylon_tasks.errors import ServerUnavailable
from babylon_tasks.logs import configure_logging
from babylon_tasks.records.form import load_form_check
from babylon_tasks.records.lineages import Lineage
from babylon_tasks.settings import Settings, load_settings
from babylon_tasks.store import lineages
from babylon_tasks.store.database import Database
from babylon_tasks.work.signals import stop
from workers.serve import directory
from workers.serve.backends import make_backends
from workers.serve.capture import Capture
from workers.serve.directory import Directory
from workers.serve.follower import Follower
from workers.serve.http.app import Endpoint
from workers.serve.http.completions import Completions, Memory
from workers.serve.http.keys import Keys, is_loopback
from workers.serve.http.limits import Limits
from workers.serve.http.metrics import Metrics
from workers.serve.http.server import listen
from workers.serve.loader import Loader
from workers.serve.router import Router

_ANSWER_SECONDS = 3.0  # for Postgres, which nobody waits for
_DRAIN_SECONDS = 18.0  # for answers under way at the end: supervisors kill after 30


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
    configure_logging(settings.log_level, settings.log_format)
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
    memory = Memory(
        capture.add,
        capture.add_failed,
        settings.capture_calls,
        load_form_check(settings.form_check),
    )
    completions = Completions(router, metrics, limits, memory)

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


def _captured(capture: Capture) -> Mapping[str, int]:
    counts = capture.counts
    return {
        "captured": counts.captured,
        **{f"dropped_{reason}": count for reason, count in dict(counts.dropped).items()},
    }
