"""What Flower may show of an error: nothing that quotes a trace."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from types import SimpleNamespace
from typing import Any, cast

import pytest
from celery.events.state import State
from celery.exceptions import Retry

from babylon_tasks.errors import (
    BabylonError,
    LineageAtFault,
    MachineAtFault,
    NotRecorded,
    Retryable,
    ServerRefused,
    ServerUnavailable,
    UserError,
)
from babylon_tasks.work.machine_faults import QUOTES
from workers import outage, row
from workers.outbox import Message
from workers.row import Unexpected, presentable, row_of

PROMPT = "what an agent was asked"
SWEEP = cast("Any", SimpleNamespace(name="babylon.sweep"))


def raised(error: Exception) -> Exception:
    try:
        raise error
    except (BabylonError, ValueError, OSError) as caught:
        return caught


@pytest.mark.parametrize(
    ("error", "shown"),
    [
        (UserError("set TRAIN_RL_LOCAL=true"), "set TRAIN_RL_LOCAL=true"),
        (NotRecorded("no trace has log-probabilities"), "no trace has log-probabilities"),
        (
            Retryable(f"the trainer failed: KeyError: '{PROMPT}' (KeyError at workers/x.py:3)"),
            "the trainer failed: KeyError at workers/x.py:3; the worker's log has all of it",
        ),
        (MachineAtFault(f"3 windows failed here{QUOTES}{PROMPT}"), "3 windows failed here"),
        (LineageAtFault(f"3 windows failed here{QUOTES}{PROMPT}"), "3 windows failed here"),
    ],
)
def test_our_own_errors_are_shown_without_what_they_quote(error: BabylonError, shown: str) -> None:
    found = presentable(raised(error))
    assert (type(found), str(found)) == (type(error), shown)


def test_other_errors_are_shown_by_type_and_place() -> None:
    found = presentable(raised(ValueError(f"not a number: {PROMPT}")))
    assert isinstance(found, Unexpected)
    assert str(found).startswith("ValueError at test_rows.py:")
    assert PROMPT not in str(found)


def test_a_full_disk_is_shown_with_its_file() -> None:
    found = presentable(raised(OSError(28, "No space left on device", "/checkpoints/x")))
    assert str(found) == "OSError: [Errno 28] No space left on device: '/checkpoints/x'"


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Message]]:
    """What rows tell."""
    said: list[Message] = []
    box = SimpleNamespace(put=said.append, flush=lambda seconds: None)
    monkeypatch.setattr(row, "Sender", lambda task: None)
    monkeypatch.setattr(row, "this_outbox", lambda: box)
    yield said
    outage.note_end()


def test_a_flower_that_was_started_since_knows_when_the_work_began(said: list[Message]) -> None:
    begun_at = time.time()
    told = row.Row(cast("Any", SimpleNamespace(name="babylon.train")))
    told.begin("babylon-agent: step 13")
    told.say("train 31 %")
    seen = State().Task("id")
    seen.event("STARTED", said[-1].at, said[-1].at, dict(said[-1].fields))
    assert begun_at <= seen.started == seen.received <= said[-1].at


def keep_house(said: list[Message], error: Exception | None, title: str = "") -> list[str]:
    """Do what a sweep does, which meets this error; return the events that it tells."""
    said.clear()
    with (
        suppress(Retry, UserError),
        row_of(SWEEP) as r,
    ):
        if title:
            r.begin(title)
        if error:
            raise error
    return [message.event for message in said]


def test_housekeeping_makes_one_row_an_outage(said: list[Message]) -> None:
    begun = ["task-received", "task-started"]
    away, refused = ServerUnavailable("Postgres is away"), ServerRefused("no such user")
    assert keep_house(said, away) == [*begun, "task-retried"]
    assert keep_house(said, away) == []
    assert keep_house(said, refused) == []
    assert keep_house(said, away, "3 windows are due") == [*begun, "task-retried"]
    assert keep_house(said, None) == []
    assert keep_house(said, refused) == begun  # its end is for the main process
    with pytest.raises(Retry), row_of(SWEEP):
        raise refused
    assert keep_house(said, UserError("mend it")) == begun
