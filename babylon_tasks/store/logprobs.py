"""Reads and writes `rl.logprobs`: log-probabilities that a server gave for recorded calls."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import msgspec

from babylon_tasks.records.steps import Call, Logprobs
from babylon_tasks.store.database import Connection
from babylon_tasks.store.queries import load

_SQL = load("logprobs")


class Asked(NamedTuple):
    """A call of a window, and the name of the model that was asked about it."""

    trajectory_id: str
    call_hash: str
    asked_of: str


def hash_of(call: Call) -> str:
    """Return the hash of what the agent saw and answered."""
    more = (call.messages or "", call.tools or "") if call.messages or call.tools else ()
    texts = msgspec.json.encode((call.system, call.user, call.response, *more))
    return hashlib.blake2b(texts, digest_size=16).hexdigest()


def add(
    connection: Connection,
    model_name: str,
    window_id: str,
    answers: Iterable[tuple[Asked, Logprobs]],
) -> None:
    """Store answers; a later answer about the same call replaces the earlier one."""
    rows = [
        {
            "model_name": model_name,
            "window_id": window_id,
            **asked._asdict(),
            "token_ids": list(logprobs.token_ids),
            "logprobs": list(logprobs.values),
        }
        for asked, logprobs in answers
    ]
    with connection.cursor() as cursor:
        cursor.executemany(_SQL["add_logprobs"], rows)


def asked(connection: Connection, model_name: str, window_id: str) -> set[Asked]:
    """Return the calls of a window that have stored answers."""
    rows = connection.execute(
        _SQL["asked_logprobs"], {"model_name": model_name, "window_id": window_id}
    ).fetchall()
    return {Asked(**row) for row in rows}


def read(connection: Connection, model_name: str, trajectory_id: str) -> dict[str, Logprobs]:
    """Return the log-probabilities of one trajectory, by the hash of the call."""
    rows = connection.execute(
        _SQL["read_logprobs"], {"model_name": model_name, "trajectory_id": trajectory_id}
    ).fetchall()
    return {
        row["call_hash"]: Logprobs(tuple(row["token_ids"]), tuple(row["logprobs"])) for row in rows
    }


def forget(connection: Connection, model_name: str, window_ids: Sequence[str]) -> None:
    """Delete the log-probabilities of these windows."""
    connection.execute(
        _SQL["forget_logprobs"], {"model_name": model_name, "window_ids": list(window_ids)}
    )
