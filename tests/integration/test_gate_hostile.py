"""What a hostile operator does to a gate: forks, resets and settings in the middle, no agents."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from babylon_tasks import pipeline
from babylon_tasks.errors import StaleClaim
from babylon_tasks.records.lineages import LineageState
from babylon_tasks.records.steps import Trainer
from babylon_tasks.records.windows import window_id_at
from babylon_tasks.serving import promote
from babylon_tasks.store import experiments
from babylon_tasks.training.reset import reset
from babylon_tasks.work import lineage_changes
from babylon_tasks.work.context import Context
from babylon_tasks.work.fleet import Fleet
from tests.clock import move_clock
from tests.integration.test_exams import Opinions, another_step, gated, opinions, verdicts
from tests.integration.test_experiment import (
    OWN,
    answered,
    decisions,
    gate,
    history,
    nth,
    passed,
    play,
    scored,
    serves,
    shared,
    state,
    time_of,
)
from tests.rows import commit_steps, fork, position, query

__all__ = ["gate", "gated", "opinions"]
MakeContext = Callable[..., Context]


# --- scores that tell nothing ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("agents", "served", "candidate"),
    [(8, 0.5, 0.5), (8, 0.0, 1.0), (1, 0.2, 0.9)],
    ids=["all equal", "no spread", "one agent of each"],
)
def test_scores_that_tell_nothing_promote_nobody(
    gate: Context, agents: int, served: float, candidate: float
) -> None:
    pipeline.publish(gate)
    for number in range(6):
        window = nth(gate, number)
        steps = {f"s-{n}": 1 for n in range(agents)} | {f"c-{n}": 2 for n in range(agents)}
        answered(gate, window, steps)
        scored(gate, window, {a: [served if a[0] == "s" else candidate] for a in steps})
        pipeline.publish(gate)
    assert (state(gate), serves(gate), len(decisions(gate))) == ("undecided", 1, 6)


def test_one_agent_alone_decides_nothing(gate: Context) -> None:
    """It is drawn anew for each window, and nobody is there to compare it with."""
    pipeline.publish(gate)
    for number in range(6):
        window = nth(gate, number)
        answered(gate, window, {"alone": 1 + number % 2})
        scored(gate, window, {"alone": [0.9 * (number % 2)]})
    pipeline.publish(gate)
    assert (state(gate), serves(gate), shared(gate, 1)) == ("undecided", 1, None)


def test_agents_that_all_vanish_leave_it_to_the_next_step(
    gate: Context, make_context: MakeContext, trainer: Trainer
) -> None:
    pipeline.publish(gate)
    play(gate, 0, 0.5, 0.5)
    commit_steps(make_context(), trainer, 1, publish=False)
    passed(gate, 3)
    move_clock(gate, 5 * 3600)
    for number in (1, 2):
        scored(gate, nth(gate, number), {"unknown": [0.5]})
    assert pipeline.publish(gate) == ["v1.0.1", "v1.0.2"]  # nobody is there to try it on
    assert (state(gate), serves(gate), shared(gate, 1)) == ("undecided", 3, None)


# --- forks, resets and promotions in the middle -------------------------------------------------


def test_a_fork_of_what_is_tried_has_no_part_in_it(gate: Context) -> None:
    pipeline.publish(gate)
    child = fork(gate, "child", 2)
    pipeline.publish(child)
    for number in range(2):
        play(gate, number, 0.6, 0.3)
    pipeline.publish(gate)
    assert (state(gate), position(gate)) == ("rolled_back", (2, 1))
    with child.database.transaction() as tx:
        assert experiments.listing(tx, "child") == []
    assert position(child) == (2, 2)


def test_a_reset_there_and_back_ends_it(gate: Context) -> None:
    """The step is on the way to the head again before anybody has looked, but its share ended."""
    pipeline.publish(gate)
    move_clock(gate, 3600)
    reset(gate, "1", "wrong")
    reset(gate, "2", "wrong again")
    assert shared(gate) is None
    pipeline.publish(gate)
    assert (state(gate), serves(gate), shared(gate, 1)) == ("stopped", 1, None)


def test_a_lineage_that_retires_tries_nothing(gate: Context, make_context: MakeContext) -> None:
    pipeline.publish(gate)
    other = make_context(model_name="other")
    fleet = Fleet(other.database, other.settings, "me")
    lineage_changes.change_state(fleet, OWN, LineageState.RETIRED)
    assert (state(gate), history(gate)[0][0].reason) == ("stopped", "the lineage is retired")
    assert [row["percent"] for row in query(gate, "SELECT percent FROM rl.shares")] == [0]


def test_a_version_that_comes_to_serve_in_an_exam_changes_the_question(
    gated: Context, make_context: MakeContext, opinions: Opinions
) -> None:
    """By hand, or by a worker whose PUBLISH is `always`: the verdict is not written."""
    another_step(gated, opinions)

    def promoted() -> None:
        opinions.on_ask = lambda: None
        promote.promote(make_context(), "1", "I need it now")

    opinions.on_ask = promoted
    with pytest.raises(StaleClaim, match="or what serves, moved in its exam"):
        another_step(gated, opinions)
    assert verdicts(gated)[1].attempts == 0
    assert pipeline.train(gated, opinions)
    assert position(gated) == (2, 1)


# --- settings that change in the middle ----------------------------------------------------------


def test_from_the_gate_to_always_and_back(
    gate: Context, make_context: MakeContext, trainer: Trainer
) -> None:
    pipeline.publish(gate)
    always = make_context()
    assert pipeline.publish(always) == ["v1.0.1"]
    commit_steps(always, trainer, 1, publish=False)
    assert pipeline.publish(gate) == []  # it has no exam
    assert serves(gate) == 2
    passed(gate, 3)
    answered(gate, window_id_at(time_of(gate)), {"agent-1": 2})
    pipeline.publish(gate)
    assert (history(gate)[0][0].step, history(gate)[0][0].served_step, state(gate)) == (
        3, 2, "running",
    )  # fmt: skip
    assert pipeline.publish(make_context(publish="manual")) == []
    assert (state(gate), serves(gate), shared(gate, 1)) == ("stopped", 2, None)


def test_fewer_windows_than_it_has_had_end_it_with_the_next(
    gate: Context, make_context: MakeContext
) -> None:
    pipeline.publish(gate)
    for number in range(3):
        play(gate, number, 0.5, 0.5)
    pipeline.publish(gate)
    few = make_context(publish="gate", experiment_windows=1)
    pipeline.publish(few)
    assert state(gate) == "running"
    play(gate, 3, 0.5, 0.5)
    pipeline.publish(few)
    assert (state(gate), serves(gate)) == ("undecided", 1)


def test_experiments_that_are_switched_off_leave_the_running_one(
    gate: Context, make_context: MakeContext, trainer: Trainer
) -> None:
    """It ends by itself or by hand; the next step needs none."""
    pipeline.publish(gate)
    off = make_context(publish="gate", experiment_percent=0)
    assert pipeline.publish(off) == []
    assert state(gate) == "running"
    promote.share(off, "2", 0, "no more")
    commit_steps(make_context(), trainer, 1, publish=False)
    passed(gate, 3)
    assert pipeline.publish(off) == ["v1.0.1", "v1.0.2"]
    assert serves(gate) == 3
