"""Which lineages a machine leaves to others, and for how long."""

from __future__ import annotations

import pytest

from babylon_tasks.errors import LineageAtFault, MachineAtFault
from workers import unable
from workers.unable import LEAST_REST_SECONDS, Unable


class Clock:
    """Time that the test moves."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(unable, "time", made)
    return made


def rest_of(failing: Unable, clock: Clock, lineage: str) -> int:
    """Seconds, whole ones, until the lineage may be tried again."""
    began = clock.now
    while lineage in failing.lineages():
        clock.now += 1
    return round(clock.now - began)


def test_each_failure_rests_twice_as_long_up_to_an_hour(clock: Clock) -> None:
    failing, rests = Unable(), []
    for _ in range(10):
        failing.failed("a", 30)
        rests.append(rest_of(failing, clock, "a"))
    assert rests == [30, 60, 120, 240, 480, 960, 1920, 3600, 3600, 3600]
    failing.trained("a")
    failing.failed("a", 30)
    assert rest_of(failing, clock, "a") == 30


def test_other_lineages_are_tried_meanwhile(clock: Clock) -> None:
    failing = Unable()
    failing.failed("a", 30)
    clock.now += 10
    failing.failed("b", 30)
    assert failing.lineages() == {"a", "b"}
    clock.now += 20
    assert failing.lineages() == {"b"}


@pytest.mark.parametrize(("retry_seconds", "rest"), [(0, LEAST_REST_SECONDS), (7200, 7200)])
def test_a_rest_is_as_long_as_the_setting_and_never_nothing(
    clock: Clock, retry_seconds: float, rest: float
) -> None:
    failing = Unable()
    failing.failed("a", retry_seconds)
    assert rest_of(failing, clock, "a") == rest


def test_two_lineages_that_fail_and_none_between_are_the_machines_fault(clock: Clock) -> None:
    failing = Unable()
    assert not failing.machine()
    for _ in range(3):
        failing.failed("a", 30)
    assert not failing.machine()
    failing.failed("b", 30)
    assert failing.machine()
    failing.trained("c")
    assert not failing.machine()
    assert failing.lineages() == {"a", "b"}  # what the others need is still missing here


def test_a_machine_at_fault_does_nothing_more_at_that_stage(clock: Clock) -> None:
    failing = Unable()
    failing.stop("train", "a", MachineAtFault("every window failed"))
    clock.now += 1_000_000
    failing.trained("b")
    assert failing.stopped("train") == "every window failed"
    assert failing.machine()
    assert failing.stopped("score") is None


def test_a_lineage_at_fault_stops_alone(clock: Clock) -> None:
    failing = Unable()
    failing.stop("score", "a", LineageAtFault("every window of a failed"))
    clock.now += 1_000_000
    assert failing.stopped("score") is None
    assert failing.lineages("score") == {"a"}
    assert failing.lineages() == set()
    assert not failing.machine()
