"""How the gate stands: what `status`, `doctor`, the report and `models list` read of it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

import pytest

from babylon_tasks.cockpit import gate as words
from babylon_tasks.cockpit import versions
from babylon_tasks.cockpit.promotions import promotion
from babylon_tasks.cockpit.report import read_reports, summarize
from babylon_tasks.cockpit.status import database_status
from babylon_tasks.errors import UserError
from babylon_tasks.records.experiments import Standing
from babylon_tasks.records.gates import Gate
from babylon_tasks.records.lineages import LineageState
from babylon_tasks.records.promotions import PromotionKind
from babylon_tasks.records.steps import Trainer
from babylon_tasks.store import gates, promotions, steps
from babylon_tasks.work import lineage_changes
from babylon_tasks.work.context import Context
from babylon_tasks.work.fleet import Fleet
from tests.rows import add_exam, add_experiment, add_look, commit_steps, fork, query

OWN = "babylon-agent"
STANDING = Standing(5, 30, 10, 0.0123, -0.004, 0.0286, 12)


@pytest.fixture
def gated(make_context: Callable[..., Context]) -> Context:
    return make_context(publish="gate")


def by_hand(context: Context, statement: str) -> None:
    query(context, f"{statement} RETURNING 1")


def gate(context: Context) -> Gate:
    with context.database.transaction() as tx:
        return gates.read(tx, [context.lineage.name])[context.lineage.name]


def states(context: Context) -> dict[int, str]:
    with context.database.transaction() as tx:
        return versions.states(tx, OWN, steps.listing(tx, OWN))


def serve(context: Context, step: int) -> None:
    with context.database.transaction() as tx:
        promotions.move(tx, OWN, step, PromotionKind.PROMOTE, ("test", "by hand"))


def three_steps(context: Context, trainer: Trainer) -> None:
    """Step 1 serves, step 3 is the head."""
    commit_steps(context, trainer, 3, publish=False)
    by_hand(context, "UPDATE rl.heads SET published_step = 1, gated = true")


def test_a_lineage_without_rows_has_a_quiet_gate(context: Context) -> None:
    assert gate(context) == Gate(OWN, False, 0, None, 0, [], 0, None, None, None, None)


def test_the_head_awaits_its_exam_until_it_has_a_verdict_or_serves(
    context: Context, trainer: Trainer
) -> None:
    three_steps(context, trainer)
    assert (gate(context).awaits_exam, gate(context).attempts) == (3, 0)
    assert states(context) == {3: "head, awaits exam", 2: "kept", 1: "served"}
    add_exam(context, 3)
    by_hand(context, "UPDATE rl.exams SET state = 'open', decided_at = NULL, attempts = 2")
    assert (gate(context).awaits_exam, gate(context).attempts) == (3, 2)
    by_hand(context, "UPDATE rl.exams SET state = 'passed', decided_at = now()")
    assert (gate(context).awaits_exam, gate(context).passed) == (None, [3])
    by_hand(context, "DELETE FROM rl.exams")
    serve(context, 3)
    assert gate(context).awaits_exam is None


def test_steps_that_passed_wait_to_serve(context: Context, trainer: Trainer) -> None:
    three_steps(context, trainer)
    for step in (1, 2, 3):
        add_exam(context, step)
    assert gate(context).passed == [3, 2]
    assert states(context) == {3: "head, passed", 2: "passed", 1: "served"}
    id_ = add_experiment(context, 2)
    assert gate(context).passed == [3], "what is tried waits no more"
    assert states(context)[2] == "experiment"
    by_hand(context, "UPDATE rl.experiments SET state = 'undecided', ended_at = now()")
    assert gate(context).passed == [3]
    assert states(context)[2] == "undecided"
    by_hand(context, f"UPDATE rl.experiments SET state = 'rolled_back' WHERE id = {id_}")
    assert gate(context).passed == [], "what continues a step that did harm does not serve"
    assert states(context)[2] == "rolled back"
    by_hand(context, "UPDATE rl.steps SET trainer = 'serverless'")
    assert gate(context).passed == [3], "W&B goes on from it all the same"
    by_hand(context, "UPDATE rl.steps SET given_up_at = now() WHERE step > 1")
    assert gate(context).passed == []


def test_failures_in_a_row_and_the_last_of_them(context: Context, trainer: Trainer) -> None:
    commit_steps(context, trainer, 4, publish=False)
    add_exam(context, 1, "failed", "the first reason")
    add_exam(context, 2)
    assert gate(context).failures == 0, "one passed since"
    add_exam(context, 3, "failed", "form fell")
    add_exam(context, 4, "failed", "kl grew")
    found = gate(context)
    assert found.failed is not None
    assert (found.failures, found.failed.step, found.failed.reason) == (2, 4, "kl grew")
    assert states(context)[3] == "failed"
    by_hand(context, "UPDATE rl.steps SET given_up_at = now() WHERE step IN (2, 3)")
    assert (states(context)[3], states(context)[2]) == ("failed", "given up")


def test_the_gates_own_pause_takes_no_failure_away_and_a_person_does(
    context: Context, trainer: Trainer
) -> None:
    commit_steps(context, trainer, 3, publish=False)
    for step in (1, 2, 3):
        add_exam(context, step, "failed", "form fell")
    by_hand(
        context,
        "UPDATE rl.lineages SET state = 'paused', changed_by = 'the gate', "
        "changed_at = clock_timestamp()",
    )
    found = gate(context)
    assert found.failures == 3
    assert found.paused_at is not None
    with pytest.raises(UserError, match=r"paused 2.*3 steps in a row failed.*3 in a row: form"):
        promotion(context.settings)
    fleet = Fleet(context.database, context.settings, "test")
    lineage_changes.change_state(fleet, OWN, LineageState.ACTIVE)
    found = gate(context)
    assert (found.failures, found.paused_at) == (0, None)
    assert found.failed is not None


def test_how_the_experiment_stands(context: Context, gated: Context, trainer: Trainer) -> None:
    three_steps(context, trainer)
    add_exam(gated, 2)
    ended = add_experiment(gated, 2, "undecided", "24 windows showed nothing")
    add_look(gated, ended, "2026-01-01T00:00", STANDING, "undecided")
    add_exam(gated, 3)
    id_ = add_experiment(gated, 3)
    assert gate(gated).experiment is not None
    assert gate(gated).experiment.standing is None  # type: ignore[union-attr]
    add_look(gated, id_, "2026-01-01T02:00", Standing(2, 9, 3, None, None, None, None), "go on")
    # An earlier window that was scored again: its look is the newest, of all windows.
    add_look(gated, id_, "2026-01-01T01:00", STANDING, "more agents")
    status = database_status(gated)
    found = status["gate"]["experiment"]
    assert (found["step"], found["served_step"], found["percent"]) == (3, 1, 20)
    assert (found["difference"], found["low"], found["high"]) == (0.0123, -0.004, 0.0286)
    assert (found["windows"], found["windows_left"]) == (5, 12)
    assert status["gate"]["last_experiment"]["step"] == 2
    assert status["gate_says"] == words.sentences(gate(gated), gated.settings)
    assert "window 5 of 24: +0.0123 a run (-0.004 to +0.0286)" in status["gate_says"][0]
    assert summarize(gated, read_reports(gated))["gate"] == status["gate"]


def test_the_story_of_a_step_has_its_exam_and_its_experiments(
    context: Context, gated: Context, trainer: Trainer
) -> None:
    three_steps(context, trainer)
    add_exam(gated, 2)
    first = add_experiment(gated, 2, "stopped", "by hand")
    second = add_experiment(gated, 2)
    for window in ("2026-01-01T01:00", "2026-01-01T00:00"):
        add_look(gated, second, window, STANDING, "go on")
    story = versions.read_version_story(gated, "v1.0.1")
    assert (story.step.step, story.state) == (2, "experiment")
    assert story.exam is not None
    assert story.exam.reason == "no figure is worse"
    assert [each.id for each, _ in story.experiments] == [second, first]
    assert [look.window_id for look in story.experiments[0][1]] == [
        "2026-01-01T00:00", "2026-01-01T01:00",
    ]  # fmt: skip
    with pytest.raises(UserError, match="step 0 is the base model"):
        versions.read_version_story(gated, "0")
    child = fork(gated, "child", 2)
    inherited = versions.read_version_story(child, "2")
    assert (inherited.state, inherited.exam) == ("inherited", story.exam)


def test_one_query_reads_all_gates(context: Context, gated: Context, trainer: Trainer) -> None:
    three_steps(context, trainer)
    add_exam(gated, 3, "failed", "form fell")
    fork(gated, "child", 1)
    with gated.database.transaction() as tx:
        found = gates.read(tx, [OWN, "child", "nobody"])
    assert {name: each.served_step for name, each in found.items()} == {
        OWN: 1, "child": 1, "nobody": 0,
    }  # fmt: skip
    assert {name: each.failures for name, each in found.items()} == {
        OWN: 1, "child": 0, "nobody": 0,
    }  # fmt: skip


def test_doctor_says_how_steps_come_to_serve(
    make_context: Callable[..., Context], context: Context, gated: Context, trainer: Trainer
) -> None:
    assert promotion(gated.settings) == "every step that passes its exam is promoted"
    assert promotion(make_context().settings) == "every new step is promoted"
    manual = make_context(publish="manual").settings
    assert promotion(manual) == "steps are promoted by hand alone"
    three_steps(context, trainer)
    add_exam(gated, 2)
    passed = "and may be promoted (`babylon models promote 2`)"
    assert promotion(manual) == f"{OWN}: step 3 awaits its exam, step 2 passed its exam {passed}"
    fork(gated, "child", 1)
    lineage_changes.override(
        Fleet(gated.database, gated.settings, "t"), "child", ["PUBLISH=always"]
    )
    by_hand(gated, "DELETE FROM rl.exams")
    serve(gated, 3)
    assert promotion(gated.settings) == (
        f"{OWN}: every step that passes its exam is promoted; child: every new step is promoted"
    )
    by_hand(gated, f"UPDATE rl.heads SET promotion_paused_at = now() WHERE model_name = '{OWN}'")
    assert f"{OWN}: promotion is paused since {datetime.now(UTC):%Y}" in promotion(gated.settings)
