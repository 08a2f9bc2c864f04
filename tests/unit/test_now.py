"""The page Now reads its servers in threads: one that hangs holds up nothing else."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Iterator

import pytest

from babylon_tasks.errors import ServerUnavailable
from workers.watch import now
from workers.watch.now import Answer, Source


@pytest.fixture
def released() -> Iterator[threading.Event]:
    event = threading.Event()
    yield event
    event.set()


def test_a_server_that_hangs_is_said_and_asked_once(
    monkeypatch: pytest.MonkeyPatch, released: threading.Event
) -> None:
    """However many browsers ask; and once it answers, the page has it."""
    monkeypatch.setattr(now, "_PATIENCE_SECONDS", 0.05)
    monkeypatch.setattr(now, "_FRESH_SECONDS", 0.0)
    asked: list[int] = []

    def read() -> str:
        asked.append(1)
        assert released.wait(20)
        return "figures"

    async def ask() -> tuple[Answer, Answer]:
        hanging, well = Source("Redis", read), Source("Postgres", lambda: "well")
        one, two = await asyncio.gather(hanging.ask(), hanging.ask())
        assert one == two
        assert len(asked) == 1
        monkeypatch.setattr(now, "_PATIENCE_SECONDS", 20.0)
        assert await well.ask() == Answer("well")
        released.set()
        return one, await hanging.ask()

    hung, answered = asyncio.run(ask())
    assert re.fullmatch("Redis has not answered for [0-9]+ s", hung.why_not or "")
    assert answered == Answer("figures")


def test_browsers_share_an_answer_for_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, asked = [1000.0], list[int]()
    monkeypatch.setattr("workers.watch.now.time.monotonic", lambda: clock[0])

    async def ask() -> list[int]:
        source = Source("Postgres", lambda: asked.append(1))
        counts = []
        for clock[0] in (1000.0, 1000.9, 1001.0):
            await source.ask()
            counts.append(len(asked))
        return counts

    assert asyncio.run(ask()) == [1, 1, 2]


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (ServerUnavailable("cannot reach Redis"), "cannot reach Redis"),
        (KeyError("a prompt"), "Redis: KeyError, see Flower's log"),
    ],
)
def test_an_error_is_one_line(error: Exception, says: str) -> None:
    def read() -> None:
        raise error

    assert asyncio.run(Source("Redis", read).ask()) == Answer(None, says)
