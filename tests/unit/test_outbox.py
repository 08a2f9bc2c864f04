"""The thread that tells Redis, with a Redis that answers, is away, or is frozen."""

from __future__ import annotations

import threading
import time
from typing import cast

import pytest

from workers import outbox
from workers.outbox import Message, Outbox, Sender


class Redis:
    """Takes what a sender sends."""

    def __init__(self) -> None:
        self.taken: list[str] = []
        self.stored = 0
        self.away, self.heard = False, True
        self.thawed = threading.Event()
        self.thawed.set()

    def send(self, message: Message) -> bool:
        self.thawed.wait(10)
        if self.away:
            raise ConnectionError("no Redis")
        self.taken.append(message.event)
        self.stored += message.state is not None
        return self.heard


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "_AGAIN_SECONDS", 0.01)
    monkeypatch.setattr(outbox, "_PROGRESS_SECONDS", 0.05)
    monkeypatch.setattr(outbox, "_REPEAT_SECONDS", 0.01)


def put(box: Outbox, server: Redis, *events: str) -> None:
    sender = cast("Sender", server)
    for event in events:
        box.put(Message(sender, event, {}, progress=event.startswith("at")))


def await_last(server: Redis, event: str) -> None:
    deadline = time.monotonic() + 5
    while not server.taken or server.taken[-1] != event:
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_all_but_old_progress_is_sent_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "_PROGRESS_SECONDS", 60.0)  # no second one in this test
    box, server = Outbox(), Redis()
    server.thawed.clear()
    put(box, server, "received", "started", "at 1", "at 2", "at 3")
    server.thawed.set()
    await_last(server, "at 3")
    put(box, server, "at 4", "at 5", "succeeded")
    box.flush(5)
    assert server.taken == ["received", "started", "at 3", "succeeded"]


def test_progress_is_not_sent_more_often_than_it_may() -> None:
    box, server = Outbox(), Redis()
    since = time.monotonic()
    for number in range(3):
        put(box, server, f"at {number}")
        await_last(server, f"at {number}")
    assert time.monotonic() - since >= 0.1
    assert server.taken == ["at 0", "at 1", "at 2"]


def test_what_must_be_told_is_told_when_redis_is_back() -> None:
    box, server, other = Outbox(), Redis(), Redis()
    server.away = True
    put(box, server, "received", "at 1", "succeeded")
    put(box, other, "received")
    box.flush(0.1)
    assert server.taken == other.taken == []
    server.away = False
    box.flush(5)
    assert server.taken == ["received", "succeeded"]
    assert other.taken == ["received"]


def test_nobody_waits_for_a_frozen_redis() -> None:
    box, server = Outbox(), Redis()
    server.thawed.clear()
    since = time.monotonic()
    put(box, server, "received", *(f"at {number}" for number in range(1000)))
    box.flush(0.1)
    assert time.monotonic() - since < 5
    server.thawed.set()
    box.flush(5)
    assert server.taken == ["received"]  # what progress is left over, nobody needs any more


def test_how_work_ended_is_said_until_somebody_hears_it() -> None:
    box, server = Outbox(), Redis()
    server.heard = False
    put(box, server, "task-received")
    sender = cast("Sender", server)
    box.put(Message(sender, "task-retried", {}, "RETRY", "away"))
    deadline = time.monotonic() + 5
    while server.taken.count("task-retried") < 3:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    server.heard = True
    put(box, server, "task-started")
    await_last(server, "task-retried")
    put(box, server, "task-succeeded")
    box.flush(5)
    assert server.taken[-1] == "task-succeeded"
    assert server.taken.count("task-received") == server.stored == 1


def test_how_work_ended_does_not_wait_for_the_end_of_progress(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The next work may tell more while Redis takes what it told before."""
    monkeypatch.setattr(outbox, "_PROGRESS_SECONDS", 0.0)
    box, server = Outbox(), Redis()
    server.heard = False
    real = server.send

    def send(message: Message) -> bool:
        if message.event == "at":
            put(box, server, "at")
        return real(message)

    monkeypatch.setattr(server, "send", send)
    put(box, server, "task-succeeded", "at")
    deadline = time.monotonic() + 5
    while server.taken.count("task-succeeded") < 3:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    monkeypatch.setattr(server, "send", real)


def test_it_is_not_said_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "GIVE_UP_SECONDS", 0.0)
    box, server = Outbox(), Redis()
    server.heard = False
    put(box, server, "task-succeeded")
    box.flush(5)
    assert not box._unheard
