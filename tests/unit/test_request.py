"""How tasks ended that nobody has heard, as the worker's main process tells it again."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from typing import Any

import pytest

from workers import request


class Redis:
    """Takes events, with somebody who hears them, or nobody."""

    def __init__(self) -> None:
        self.heard, self.taken = True, list[float]()

    def publish(self, dispatcher: object, event: str, fields: Mapping[str, Any]) -> bool:
        self.taken.append(fields["timestamp"])
        return self.heard


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Redis:
    server = Redis()
    monkeypatch.setattr(request, "publish_event", server.publish)
    return server


def unheard(monkeypatch: pytest.MonkeyPatch, times: list[float]) -> deque[Any]:
    kept = deque(("task-failed", {"timestamp": at}) for at in times)
    monkeypatch.setattr(request, "_unheard", kept)
    return kept


def test_ends_are_told_in_their_order_and_not_for_ever(
    server: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, now = time.time() - request.GIVE_UP_SECONDS - 1, time.time()
    kept = unheard(monkeypatch, [old, now, now + 1])
    server.heard = False
    request.tell_again(None)
    assert server.taken == [now]
    assert len(kept) == 2
    server.heard = True
    request.tell_again(None)
    assert server.taken == [now, now, now + 1]
    assert not kept


def test_a_heartbeat_does_not_wait_for_many_of_them(
    server: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Redis may be slow, and the worker does nothing else meanwhile."""
    times = [time.time() + number for number in range(request.MOST)]
    kept = unheard(monkeypatch, times)
    request.tell_again(None)
    assert len(server.taken) < 50
    for _ in times:
        request.tell_again(None)
    assert server.taken == times
    assert not kept
