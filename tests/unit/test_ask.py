"""Waiting for our own endpoint to follow a promotion."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from babylon_tasks.errors import ServerUnavailable
from babylon_tasks.local import ask


def told(monkeypatch: pytest.MonkeyPatch, *answers: Any) -> list[str]:
    """Let the endpoint tell these states, one a look, a minute apart; the URLs asked."""
    urls: list[str] = []

    def get(url: str, timeout: float) -> httpx.Response:
        urls.append(url)
        answer = answers[len(urls) - 1]
        if isinstance(answer, Exception):
            raise answer
        return httpx.Response(200, json=answer)

    monkeypatch.setattr(ask.httpx, "get", get)
    clock = SimpleNamespace(monotonic=lambda: 60.0 * len(urls), sleep=lambda seconds: None)
    monkeypatch.setattr(ask, "time", clock)
    return urls


def state(**promoted: int) -> dict[str, Any]:
    return {"status": "ok", "health": {"promoted": promoted}}


def test_it_waits_for_the_promoted_step(monkeypatch: pytest.MonkeyPatch) -> None:
    urls = told(monkeypatch, state(agent=1), state(agent=2))
    ask.wait_until_served("http://x", "agent", 2)
    assert urls == ["http://x/health/ready"] * 2


@pytest.mark.parametrize(
    ("answers", "line"),
    [
        ([state(agent=1)] * 3, "does not come to serve agent@2"),
        ([state()] * 3, "does not come to serve agent@2"),
        ([{"status": "ok"}], "does not tell its state"),
        ([["ok"]], "does not tell its state"),
        ([httpx.ConnectError("refused")], "does not tell its state: refused"),
    ],
)
def test_it_gives_up_in_one_line(
    monkeypatch: pytest.MonkeyPatch, answers: list[Any], line: str
) -> None:
    told(monkeypatch, *answers)
    with pytest.raises(ServerUnavailable, match=line):
        ask.wait_until_served("http://x", "agent", 2)
