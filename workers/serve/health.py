"""Says how the endpoint is: whether tokens come out, and whether it has what is promoted."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from workers.serve.backend import Version
from workers.serve.follower import Follower
from workers.serve.loader import Loader


@dataclass(frozen=True, slots=True)
class Health:
    """`live`: tokens come out. `ready`: what is promoted is loaded. `detail` says more, as JSON."""

    live: bool
    ready: bool
    detail: dict[str, Any]


def read_health(follower: Follower, loader: Loader, silent: dict[str, float]) -> Health:
    """Return the endpoint's health; nothing is asked.

    It is ready if a backend that is alive has the version that the deployment's own lineage answers
    with. What is old, or missing for another lineage, is told, and is no reason to send requests
    elsewhere.
    """
    own = follower.directory.entries.get(follower.own)
    ready = own is not None and _answers(loader, own.promoted)
    read_at = follower.read_at
    detail = {
        "lineages": {name: _lineage(follower, loader, name) for name in follower.rows.entries},
        "backends": {
            backend.name: {
                "alive": loader.alive(backend),
                "loaded": sorted(version.name for version in backend.loaded()),
            }
            for backend in loader.backends
        },
        "postgres": {
            "read_seconds_ago": None if read_at is None else round(time.monotonic() - read_at, 1),
            "error": follower.away,
        },
        "silent_seconds": {name: round(seconds) for name, seconds in silent.items()},
    }
    return Health(not silent, ready and not silent, detail)


def _lineage(follower: Follower, loader: Loader, name: str) -> dict[str, Any]:
    promoted = follower.rows.entries[name].promoted
    answers = follower.directory.entries[name].promoted
    failures = {
        backend.name: loader.failures[backend, promoted].reason
        for backend in loader.of(promoted)
        if (backend, promoted) in loader.failures
    }
    return {
        "promoted": promoted.name,
        "answers": answers.name,
        "loaded": _answers(loader, answers),
        "failures": failures,
    }


def _answers(loader: Loader, version: Version) -> bool:
    return any(loader.alive(each) and loader.has(each, version) for each in loader.of(version))
