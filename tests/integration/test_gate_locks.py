"""A person changes a lineage while workers do: one waits for the other, and nobody is ended."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from babylon_tasks import pipeline
from babylon_tasks.records.lineages import LineageState
from babylon_tasks.records.steps import StepRequest, StepResult, Trainer
from babylon_tasks.store import experiments, lineages
from babylon_tasks.work import lineage_changes
from babylon_tasks.work.context import Context
from babylon_tasks.work.fleet import Fleet
from tests.clock import move_clock, wait_until_blocked
from tests.integration.test_exams import OnBeat, Opinions, another_step, gated, opinions, verdicts
from tests.integration.test_experiment import OWN, gate, history, play, shared, state
from tests.rows import one, position

__all__ = ["gate", "gated", "opinions"]
MakeContext = Callable[..., Context]


def pause(context: Context) -> None:
    lineage_changes.change_state(
        Fleet(context.database, context.settings, "me"), OWN, LineageState.PAUSED
    )


def state_of(context: Context) -> str:
    return str(one(context, "SELECT state FROM rl.lineages")["state"])


@pytest.fixture
def paused_before(
    make_context: MakeContext, monkeypatch: pytest.MonkeyPatch
) -> Callable[[Any, str], threading.Thread]:
    """Lets a person pause the lineage, and wait for a lock, before a worker's next call of this."""

    def before(module: Any, name: str) -> threading.Thread:
        other, real = make_context(publish="gate"), getattr(module, name)
        person = threading.Thread(target=pause, args=[other])

        def meanwhile(*arguments: Any) -> Any:
            monkeypatch.setattr(module, name, real)
            person.start()
            wait_until_blocked(other.settings.postgres())
            return real(*arguments)

        monkeypatch.setattr(module, name, meanwhile)
        return person

    return before


@pytest.mark.parametrize("hours", [0, 1])
def test_a_pause_beside_a_look_comes_after_it(
    gate: Context, paused_before: Callable[[Any, str], threading.Thread], hours: int
) -> None:
    """Its share is to start, or has started; the look has given it more agents from the next on."""
    pipeline.publish(gate)
    move_clock(gate, hours * 3600)
    play(gate, 0, 0.5, 0.5)
    person = paused_before(experiments, "go_on")
    pipeline.publish(gate)
    person.join()
    assert (state_of(gate), state(gate)) == ("paused", "stopped")
    assert shared(gate) is shared(gate, 1) is None


def test_nothing_begins_in_a_lineage_that_was_paused_meanwhile(gate: Context) -> None:
    """The publisher had asked which lineages are active."""
    pause(gate)
    pipeline.publish(gate)
    assert history(gate) == []


def test_a_pause_beside_a_claim_comes_after_it(
    gated: Context,
    opinions: Opinions,
    paused_before: Callable[[Any, str], threading.Thread],
) -> None:
    """The claim may move the head, which a pause has locked too."""
    another_step(gated, opinions)
    person = paused_before(lineages, "ensure")
    another_step(gated, opinions)
    person.join()
    assert state_of(gated) == "paused"
    assert verdicts(gated)[1].state == "passed"


class Pinning(Opinions):
    """Says from which weights its steps start."""

    def step(self, request: StepRequest, on_beat: OnBeat) -> StepResult:
        return msgspec.structs.replace(super().step(request, on_beat), base_revision="abc")


def test_a_pause_beside_the_first_commit_comes_after_it(
    gated: Context, trainer: Trainer, paused_before: Callable[[Any, str], threading.Thread]
) -> None:
    """The first step pins the lineage's base model, with the head locked."""
    person = paused_before(lineages, "pin_revision")
    another_step(gated, Pinning(trainer))
    person.join()
    assert (state_of(gated), position(gated)) == ("paused", (1, 0))
    assert one(gated, "SELECT base_revision FROM rl.lineages")["base_revision"] == "abc"


def test_a_pause_beside_that_of_the_gate_comes_after_it(
    gated: Context,
    opinions: Opinions,
    paused_before: Callable[[Any, str], threading.Thread],
) -> None:
    opinions.bad |= dict.fromkeys((1, 2, 3))
    for _ in range(3):
        another_step(gated, opinions)
    person = paused_before(lineages, "lock")
    another_step(gated, opinions)
    person.join()
    row = one(gated, "SELECT state, changed_by FROM rl.lineages")
    assert (row["state"], row["changed_by"]) == ("paused", "the gate")
    assert verdicts(gated)[3].state == "failed"
