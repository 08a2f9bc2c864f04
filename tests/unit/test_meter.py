"""The share of a request that is done, and the time that is left, by hand."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

pytest.importorskip("torch")
from babylon_tasks.records.steps import Progress
from babylon_tasks.records.time_left import time_left
from workers.trainer.torch import meter as meter_module
from workers.trainer.torch.flops import Passes
from workers.trainer.torch.meter import TRAINING_COST, Meter


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    one = Clock()
    monkeypatch.setattr(meter_module, "time", SimpleNamespace(monotonic=one.monotonic))
    return one


def go(meter: Meter, clock: Clock, seconds: float, *, loss: float | None = None) -> None:
    """One micro-batch of 2 sequences, 100 tokens, in so many seconds."""
    clock.now += seconds
    meter.add(2, 100, loss)


def test_tokens_forward_and_backward_weigh_more(clock: Clock) -> None:
    """4 rows of 200 tokens: two passes forward, one of training."""
    told: list[Progress] = []
    meter = Meter(4, 200, Passes(training=1, policy=2), told.append, span=(0.2, 1.0))
    meter.begin()
    go(meter, clock, 1.0)
    go(meter, clock, 1.0)
    meter.begin(training=True)
    go(meter, clock, 4.0, loss=0.5)
    go(meter, clock, 4.0, loss=0.4)
    meter.begin()
    go(meter, clock, 1.0)
    go(meter, clock, 1.0)
    whole = 4 + 2 * TRAINING_COST  # micro-batches, in those of a pass forward
    costs = [1, 2, 2 + TRAINING_COST, 2 + 2 * TRAINING_COST, whole - 1, whole]
    assert [one.share for one in told] == pytest.approx([0.2 + 0.8 * c / whole for c in costs])
    assert [one.done for one in told] == [2, 4, 6, 8, 10, 12]
    assert {one.total for one in told} == {12}
    assert [one.loss for one in told] == [None, None, 0.5, 0.4, 0.4, 0.4]
    assert [one.tokens_per_second for one in told] == [100, 100, 25, 25, 100, 100]
    # By the cost until training was measured, then as measured.
    assert [one.seconds_left for one in told] == [3 + 2 * TRAINING_COST, 2 + 2 * TRAINING_COST,
                                                  4 + 2, 2, 1, 0]  # fmt: skip


def test_nothing_is_said_of_the_rest_before_there_is_a_pace(clock: Clock) -> None:
    told: list[Progress] = []
    meter = Meter(4, 200, Passes(), told.append)
    meter.begin(training=True)
    go(meter, clock, 0.1)
    assert told[0].seconds_left is None
    assert time_left(0.5, 0.5) is None
    assert time_left(5.0, 0.0) is None
    assert time_left(5.0, 0.25) == 15.0


def test_a_repeated_pass_takes_back_no_more_than_itself(clock: Clock) -> None:
    """And the seconds of what ran out of memory count for no pace."""
    told: list[Progress] = []
    meter = Meter(4, 200, Passes(training=1, policy=1), told.append)
    meter.begin()
    go(meter, clock, 1.0)
    go(meter, clock, 1.0)
    meter.begin(training=True)
    go(meter, clock, 100.0, loss=0.7)
    clock.now += 50.0
    meter.again()
    go(meter, clock, 3.0)
    before, failed, repeated = told[1:]
    assert before.share is not None
    assert repeated.share is not None
    assert failed.share == repeated.share > before.share
    assert (repeated.done, repeated.loss) == (6, 0.7)
    assert repeated.seconds_left == 3.0
    assert repeated.tokens_per_second == pytest.approx(100 / 3)


def test_what_is_between_two_passes_belongs_to_the_first(clock: Clock) -> None:
    """The optimizer's step, and the wait for the GPU."""
    told: list[Progress] = []
    meter = Meter(2, 100, Passes(training=2), told.append)
    meter.begin(training=True)
    go(meter, clock, 1.0)
    clock.now += 1.0
    meter.begin(training=True)
    go(meter, clock, 1.0)
    assert told[0].seconds_left == 1.0
    meter = Meter(2, 100, Passes(training=3), told.append)
    meter.begin(training=True)
    go(meter, clock, 1.0)
    clock.now += 1.0
    meter.begin(training=True)
    go(meter, clock, 1.0)
    assert told[-1].seconds_left == 1.5
