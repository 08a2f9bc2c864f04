"""Reads and writes `rl.calls` and `rl.assignments`: what the endpoint remembers of its answers."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

from babylon_tasks.records.captured import CallKey, CapturedCall, Remembered
from babylon_tasks.records.steps import Logprobs
from babylon_tasks.settings import DAY
from babylon_tasks.store.database import Connection
from babylon_tasks.store.queries import load

_SQL = load("calls")
ASSIGNMENT_DAYS = 90


class Assigned(NamedTuple):
    """An agent in a window, and the step of the lineage that answered it."""

    lineage: str
    window_id: str
    agent: str
    step: int


@dataclass(slots=True)
class Answers:
    """How many answers there were, and when the first and the last of them was asked for.

    `malformed` and `pinned` are among them, `failed` are requests without an answer beside them.
    """

    count: int
    first_at: datetime
    last_at: datetime
    failed: int = 0
    malformed: int = 0
    pinned: int = 0

    def add(self, other: Answers) -> None:
        """Count the other ones too."""
        self.count += other.count
        self.failed += other.failed
        self.malformed += other.malformed
        self.pinned += other.pinned
        self.first_at = min(self.first_at, other.first_at)
        self.last_at = max(self.last_at, other.last_at)


class Wanted(NamedTuple):
    """A recorded call that is looked for, its agent, and when its trace was written (Unix time)."""

    key: CallKey
    agent: str
    written_at: float | None


def add(connection: Connection, calls: Iterable[CapturedCall]) -> None:
    """Store answers, which `CapturedCall.why_not_kept` has nothing against."""
    with connection.cursor() as cursor, cursor.copy(_SQL["copy_calls"]) as copy:
        for call in calls:
            assert call.prompt_hash is not None
            copy.write_row((
                call.at, call.lineage, call.step, call.prompt_hash, call.response_hash, call.agent,
                call.backend, call.finish_reason, _array(call.token_ids), _array(call.logprobs),
                call.prompt_tokens, call.latency_ms, call.first_token_ms,
            ))  # fmt: skip


def add_assignments(connection: Connection, assigned: Mapping[Assigned, Answers]) -> None:
    """Count answers for the agents that got them."""
    each = list(assigned.items())
    connection.execute(
        _SQL["add_assignments"],
        {
            "lineages": [key.lineage for key, _ in each],
            "windows": [key.window_id for key, _ in each],
            "agents": [key.agent for key, _ in each],
            "steps": [key.step for key, _ in each],
            "answers": [answers.count for _, answers in each],
            "first": [answers.first_at for _, answers in each],
            "last": [answers.last_at for _, answers in each],
            "failed": [answers.failed for _, answers in each],
            "malformed": [answers.malformed for _, answers in each],
            "pinned": [answers.pinned for _, answers in each],
        },
    )


def any_kept(connection: Connection) -> bool:
    """Tell whether any answer is remembered."""
    row = connection.execute(_SQL["any_calls"]).fetchone()
    assert row is not None
    return bool(row["any"])


def find(
    connection: Connection, wanted: Sequence[Wanted], *, with_tokens: bool
) -> dict[int, Remembered]:
    """Return what is remembered of these calls, by their place among the wanted ones.

    Tokens and log-probabilities come only `with_tokens`.
    """
    found: dict[int, Remembered] = {}
    # In binary a log-probability is the very number that was written.
    with connection.cursor(binary=True) as cursor:
        cursor.execute(
            _SQL["find_calls"],
            {
                "prompts": [each.key.prompt_hash for each in wanted],
                "responses": [each.key.response_hash for each in wanted],
                "agents": [each.agent for each in wanted],
                "written": [each.written_at for each in wanted],
                "with_tokens": with_tokens,
            },
        )
        for row in cursor:
            logprobs = None
            if with_tokens:
                logprobs = Logprobs(tuple(row["token_ids"]), tuple(row["logprobs"]))
            version = f"{row['model_name']}@{row['step']}"
            found[row["n"] - 1] = Remembered(version, row["finish_reason"], logprobs)
    return found


def forget_some(connection: Connection, days: float, rows: int, at_once: int) -> bool:
    """Delete what is beyond the bounds, `at_once` answers at most; tell whether there may be more.

    Of several processes that come here at once, one does it.
    """
    mine = connection.execute(_SQL["one_forgets"]).fetchone()
    if not (mine and mine["mine"]):
        return False
    some = {"at_once": at_once}
    age = {"seconds": days * DAY}
    deleted = connection.execute(_SQL["forget_old_calls"], some | age).rowcount
    deleted += connection.execute(
        _SQL["forget_assignments"], some | {"days": ASSIGNMENT_DAYS}
    ).rowcount
    # First what is never less than the number of rows, and quickly found.
    for at_most, count, oldest in (
        ("span_of_calls", "count_calls", "forget_oldest_calls"),
        ("most_assignments", "count_assignments", "forget_oldest_assignments"),
    ):
        excess = _count(connection, at_most) - rows
        if excess > 0:
            excess = _count(connection, count) - rows
        if excess > 0:
            # A hundredth more, so that the rows need not be counted again each time.
            most = min(excess + rows // 100, at_once)
            deleted += connection.execute(_SQL[oldest], {"at_once": most}).rowcount
    return deleted >= at_once


def add_inferences(
    connection: Connection, answers: Mapping[tuple[str, int], int]
) -> set[tuple[str, int]]:
    """Count answers in the app's `trained_models`, by lineage and step; return those not counted.

    The app has their rows locked.
    """
    each = list(answers.items())
    connection.execute(_SQL["wait_for_nobody"])
    rows = connection.execute(
        _SQL["add_inferences"],
        {
            "lineages": [lineage for (lineage, _), _ in each],
            "steps": [step for (_, step), _ in each],
            "answers": [count for _, count in each],
        },
    ).fetchall()
    return {(row["model_name"], row["step"]) for row in rows}


def count_agents(connection: Connection, window_ids: Collection[str]) -> None:
    """Write into the app's `trained_models` how many agents each version answered there."""
    connection.execute(_SQL["wait_for_nobody"])
    connection.execute(_SQL["count_agents"], {"windows": list(window_ids)})


def _count(connection: Connection, query: str) -> int:
    row = connection.execute(_SQL[query]).fetchone()
    assert row is not None
    return int(row["calls"])


def _array(values: Sequence[float]) -> str:
    return f"{{{','.join(map(repr, values))}}}"
