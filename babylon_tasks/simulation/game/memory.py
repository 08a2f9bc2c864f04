"""What the endpoint remembers of a played hour, which the app would not record."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

from babylon_tasks.records.call_hashes import prompt_hash, response_hash
from babylon_tasks.records.captured import CallKey
from babylon_tasks.simulation.agents import agent
from babylon_tasks.simulation.game.hour import Decision, Hour
from babylon_tasks.store import calls
from babylon_tasks.store.calls import Wanted
from babylon_tasks.store.database import Database

_WAIT_SECONDS = 5.0  # the endpoint writes several times a second
_LOOK_SECONDS = 0.02


def without_remembered(database: Database, hour: Hour, seed: int) -> Hour:
    """Return the hour without version, end and tokens of answers that our endpoint remembers.

    `seed` is the hour's.
    It waits a few seconds until they are in the database; what is not there then stays in the hour,
    so that it is recorded: the endpoint may not capture, or have another database.

    Raises:
        ServerUnavailable: Postgres does not answer.
    """
    wanted = [
        Wanted(_key(decision), agent(player.number, seed).id, None)
        for player, decisions in zip(hour.players, hour.decisions, strict=True)
        for decision in decisions
        if decision.answer.ours
    ]
    keys = _find(database, wanted)
    return replace(
        hour,
        decisions=[[_forgotten(one, keys) for one in decisions] for decisions in hour.decisions],
    )


def _find(database: Database, wanted: Sequence[Wanted]) -> set[CallKey]:
    """Return the keys of the answers that are there, as soon as all are."""
    ends_at = time.monotonic() + _WAIT_SECONDS
    while wanted:
        with database.transaction() as tx:
            found = calls.find(tx, wanted, with_tokens=False)
        if len(found) == len(wanted) or time.monotonic() > ends_at:
            return {wanted[place].key for place in found}
        time.sleep(_LOOK_SECONDS)
    return set()


def _key(decision: Decision) -> CallKey:
    return CallKey(prompt_hash(decision.messages), response_hash(decision.answer.text))


def _forgotten(decision: Decision, keys: set[CallKey]) -> Decision:
    answer = decision.answer
    if not answer.ours or _key(decision) not in keys:
        return decision
    return replace(
        decision, answer=replace(answer, version=None, logprobs=None, finish_reason=None)
    )
