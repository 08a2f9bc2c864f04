"""How `babylon up` starts a role again that ends."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from babylon_tasks.errors import UserError
from babylon_tasks.local import supervisor
from babylon_tasks.local.supervisor import Role, Stack


class Clock:
    """In the place of `time`, and moved by the test."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(supervisor, "time", made)
    return made


def run(stack: Stack, clock: Clock, seconds: int) -> None:
    """Call it once a second; whatever was started has ended at the next call."""
    for _ in range(seconds):
        for child in stack._running.values():
            child.process.wait(timeout=20)
        stack.keep_running()
        clock.now += 1


def test_what_ends_at_once_is_started_after_longer_and_longer_pauses(
    tmp_path: Path, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    role = Role("crashing", ("-S", "-c", "print('started'); raise SystemExit(1)"))
    with caplog.at_level(logging.WARNING), Stack([role], tmp_path, {}) as stack:
        run(stack, clock, 300)
        starts = (tmp_path / "crashing.log").read_text().count("started")
        # After 1, 2, 4, 8, 16, 32, 60, 60 … seconds, each noticed a second later.
        assert starts == 1 + 6 + 3
        pauses = [record.args[2] for record in caplog.records if isinstance(record.args, tuple)]
        assert pauses[:8] == [1, 2, 4, 8, 16, 32, 60, 60]


def test_what_ran_for_long_is_started_again_soon(tmp_path: Path, clock: Clock) -> None:
    role = Role("steady", ("-S", "-c", "print('started'); raise SystemExit(1)"))
    with Stack([role], tmp_path, {}) as stack:
        run(stack, clock, 40)
        before = (tmp_path / "steady.log").read_text().count("started")
        (child,) = stack._running.values()
        child.start_again_at = None
        child.started_at = clock.now - 3600  # it ran for an hour
        run(stack, clock, 3)
        assert (tmp_path / "steady.log").read_text().count("started") == before + 1


def test_a_role_that_refuses_to_start_ends_all(tmp_path: Path, clock: Clock) -> None:
    code = "import sys; sys.stderr.write('say why\\n'); raise SystemExit(2)"
    role = Role("picky", ("-S", "-c", code))
    with (
        pytest.raises(UserError, match=r"^picky: say why$"),
        Stack([role], tmp_path, {}) as stack,
    ):
        run(stack, clock, 2)
