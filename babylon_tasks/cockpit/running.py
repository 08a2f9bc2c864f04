"""What runs now: one entry for each holder of leases and lineage, of all that it holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import msgspec

from babylon_tasks.records.doing import Doing
from babylon_tasks.records.workers import Worker
from babylon_tasks.store.leases import Running


@dataclass(frozen=True, slots=True)
class Work:
    """A piece of work: what it is, who does it, and since when."""

    doing: Doing
    holder: str
    since: datetime


def in_order(held: Sequence[Running]) -> list[Work]:
    """Return the work behind these leases, which are in the order in which they were taken.

    A holder that scores has a lease of each window, and one of the judge if it asks that: this is
    one piece of work. Of a holder that has not said what it does, the leases tell.
    """
    groups: dict[tuple[str, str, bool], list[Running]] = {}
    for lease in held:
        kind, lineage, _ = _parts(lease.resource)
        groups.setdefault((lease.holder, lineage, kind == "model"), []).append(lease)
    return [_work(lineage, leases) for (_, lineage, _), leases in groups.items()]


def figures(work: Work, workers: Sequence[Worker], now: datetime) -> dict[str, Any]:
    """Return a piece of work for a program, with how long it has run by the database's clock.

    `worker` is the name of the worker that does it, None where that is not known.
    """
    queue = "gpu" if work.doing.stage in ("train", "exam") else "cpu"
    return {
        **msgspec.structs.asdict(work.doing),
        "queue": queue,
        "worker": work.doing.worker or _only_one(work, queue, workers),
        "title": work.doing.title(),
        "progress": work.doing.progress(),
        "holder": work.holder,
        "since": work.since,
        "seconds": round(max((now - work.since).total_seconds(), 0.0), 1),
    }


def _only_one(work: Work, queue: str, workers: Sequence[Worker]) -> str | None:
    """Name the one worker that it can be; who has just begun has not said it yet."""
    host = work.holder.rpartition(":")[0]
    names = [each.name for each in workers if each.host == host and queue in each.queues]
    return names[0] if len(names) == 1 else None


def _work(lineage: str, leases: Sequence[Running]) -> Work:
    told = [lease.doing for lease in leases if lease.doing is not None]
    return Work(told[-1] if told else _guess(lineage, leases), leases[0].holder, leases[0].since)


def _guess(lineage: str, leases: Sequence[Running]) -> Doing:
    kinds = [_parts(lease.resource) for lease in leases]
    if any(kind == "model" for kind, _, _ in kinds):
        return Doing("train", lineage)
    judged = any(kind == "judge" for kind, _, _ in kinds)
    windows = sorted(window for kind, _, window in kinds if kind == "window")
    return Doing("judge" if judged else "score", lineage, windows)


def _parts(resource: str) -> tuple[str, str, str]:
    """Return the kind of a lease's resource, the lineage, and the window's id if it is of one."""
    kind, lineage, *rest = resource.split("/", 2)
    return kind, lineage, rest[0] if rest else ""
