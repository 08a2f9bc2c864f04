"""Completes recorded traces with what the endpoint remembers of their calls."""

from __future__ import annotations

from collections.abc import Sequence

from babylon_tasks.records.captured import Remembered, completed, incomplete_calls, key_of
from babylon_tasks.records.recorded_steps import RawTrace
from babylon_tasks.records.steps import Call
from babylon_tasks.records.traces import Trace
from babylon_tasks.store import calls
from babylon_tasks.store.calls import Wanted
from babylon_tasks.store.database import Database

_CALLS_AT_ONCE = 512
_BYTES_AT_ONCE = 16_000_000


class Batch:
    """Traces that are looked up together: as many as memory may hold."""

    def __init__(self) -> None:
        self.traces: list[tuple[RawTrace, Trace]] = []
        self._calls = self._bytes = 0

    def add(self, raw: RawTrace, trace: Trace) -> bool:
        """Add a trace; tell whether the batch is full."""
        self.traces.append((raw, trace))
        self._calls += trace.outcome.calls
        self._bytes += raw.bytes or 0
        return self._calls >= _CALLS_AT_ONCE or self._bytes >= _BYTES_AT_ONCE


def complete(
    database: Database, traces: Sequence[tuple[RawTrace, Trace]], *, with_tokens: bool
) -> list[Trace]:
    """Return the traces with versions and ends that are remembered, and log-probabilities.

    The latter only `with_tokens`. Where nothing is remembered they stay as they are.

    Raises:
        ServerUnavailable: Postgres does not answer.
    """
    if not traces:
        return []
    with database.transaction() as tx:
        if not calls.any_kept(tx):
            return [trace for _, trace in traces]
    places: list[tuple[int, Call]] = []  # of each wanted call: its trace's number, and itself
    wanted: list[Wanted] = []
    for number, (raw, trace) in enumerate(traces):
        for call in incomplete_calls(trace):
            if key := key_of(call):
                places.append((number, call))
                wanted.append(Wanted(key, raw.agent_id, raw.written_at))
    found: list[dict[Call, Remembered]] = [{} for _ in traces]
    if wanted:
        with database.transaction() as tx:
            for place, remembered in calls.find(tx, wanted, with_tokens=with_tokens).items():
                number, call = places[place]
                found[number][call] = remembered
    return [completed(trace, found[n]) for n, (_, trace) in enumerate(traces)]
