"""What the endpoint knows of its own state: for `/health/ready` and `/metrics`."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from workers.serve.backend import Backend, Version
from workers.serve.follower import Follower
from workers.serve.loader import Loader


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that is stale or away: `what`, for how long, and why; without secrets."""

    what: str
    since_seconds: float
    why: str


@dataclass(frozen=True, slots=True)
class Health:
    """What answers now.

    `ready`: a backend that lives has what the deployment's own lineage answers with. `promoted` has
    the step that each lineage's name answers with, `loaded` the names of the versions that each
    backend has. `postgres_seconds`: since Postgres was last read; None before. `promotions` counts
    the changes that were followed since the start.
    """

    ready: bool
    promoted: Mapping[str, int] = field(default_factory=dict)
    loaded: Mapping[str, Sequence[str]] = field(default_factory=dict)
    problems: Sequence[Problem] = ()
    postgres_seconds: float | None = None
    promotions: int = 0


def read_health(follower: Follower, loader: Loader, silent: Mapping[Backend, float]) -> Health:
    """Return the endpoint's state; nobody is asked. `silent` has seconds without a token."""
    own = follower.directory.entries.get(follower.own)
    read_at = follower.read_at
    return Health(
        ready=own is not None and _has(loader, own.promoted),
        promoted={name: each.promoted.step for name, each in follower.directory.entries.items()},
        loaded={
            backend.name: sorted(version.name for version in backend.loaded())
            for backend in loader.backends
        },
        problems=list(_problems(follower, loader, silent)),
        postgres_seconds=None if read_at is None else time.monotonic() - read_at,
        promotions=follower.moves,
    )


def _problems(
    follower: Follower, loader: Loader, silent: Mapping[Backend, float]
) -> Iterator[Problem]:
    now = time.monotonic()
    if follower.away is not None:
        since = now - (follower.read_at or follower.began_at)
        yield Problem("Postgres", since, follower.away)
    for backend, since in loader.away_since.items():
        yield Problem(backend.name, now - since, backend.why_away)
    for backend, seconds in silent.items():
        yield Problem(backend.name, seconds, "no tokens come though requests wait")
    for (backend, version), failure in loader.failures.items():
        if version in loader.wanted and loader.alive(backend):
            what = f"{version.name} on {backend.name}"
            yield Problem(what, now - failure.since, failure.reason)


def _has(loader: Loader, version: Version) -> bool:
    return any(loader.alive(each) and loader.has(each, version) for each in loader.of(version))
