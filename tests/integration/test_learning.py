"""Steps that stand still: `doctor` and `status` say so, and nothing says so of others."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from click.testing import CliRunner

from babylon_tasks.cli import status as cli_status
from babylon_tasks.cockpit import checks
from babylon_tasks.cockpit.learning import learning
from babylon_tasks.cockpit.status import database_status
from babylon_tasks.records.movement import LEAST_POLICY_CHANGE, STILL_STEPS, stands_still
from babylon_tasks.records.steps import Trainer
from babylon_tasks.store import steps
from babylon_tasks.work import lineage_changes
from babylon_tasks.work.context import Context
from babylon_tasks.work.fleet import Fleet
from tests.rows import commit_steps, query
from workers.watch.step_log import wandb_metrics


def moved(context: Context, changes: Sequence[float | None], **metrics: float) -> None:
    """Let the last steps have moved the policy so far, the oldest of them first."""
    rows = query(context, "SELECT step FROM rl.steps WHERE given_up_at IS NULL ORDER BY step")
    numbers = [row["step"] for row in rows][-len(changes) :]
    for step, change in zip(numbers, changes, strict=True):
        told = {"policy_change": change, **metrics} if change is not None else {}
        query(
            context,
            """UPDATE rl.steps SET metrics = metrics - 'policy_change' || %s::jsonb
                WHERE step = %s RETURNING 1""",
            json.dumps(told),
            step,
        )


def told_by(context: Context) -> checks.Finding:
    return checks.run("learning", learning, context.settings)


STILL = [0.0001 * number for number in range(STILL_STEPS)]  # up to 0.0009


def test_a_change_is_too_small_below_a_thousandth() -> None:
    assert [stands_still(change) for change in (None, 0.0, 0.00099, LEAST_POLICY_CHANGE, 2.0)] == [
        False, True, True, False, False,
    ]  # fmt: skip


def test_ten_steps_that_moved_nothing_are_a_warning(
    make_context: Callable[..., Context], trainer: Trainer
) -> None:
    context = make_context(learning_rate=2e-7)
    assert told_by(context).detail == "no step yet that says how far it moved its policy"
    commit_steps(context, trainer, STILL_STEPS)
    assert told_by(context).ok  # of noop, which says nothing
    moved(context, STILL)
    told = told_by(context)
    assert not told.ok
    assert told.detail == (
        "babylon-agent: the last 10 steps moved the log-probability of an answer by 0.0009 nats at "
        "most, less than 0.001: raise LEARNING_RATE (now 2e-07)"
    )
    commit_steps(context, trainer, 1)
    moved(context, [0.5])
    assert told_by(context) == checks.Finding(
        "learning", True, "babylon-agent: step 11 by 0.5 nats"
    )


@pytest.mark.parametrize("change", [None, 0.001, 3.0])
def test_one_step_of_ten_that_moved_or_does_not_say_is_no_warning(
    make_context: Callable[..., Context], trainer: Trainer, change: float | None
) -> None:
    context = make_context()
    commit_steps(context, trainer, STILL_STEPS)
    moved(context, [*STILL[:4], change, *STILL[5:]])
    assert told_by(context).ok
    moved(context, STILL)
    assert not told_by(context).ok


def test_nine_steps_are_too_few(context: Context, trainer: Trainer) -> None:
    commit_steps(context, trainer, STILL_STEPS - 1)
    moved(context, STILL[:-1])
    assert told_by(context).ok


def test_what_holds_the_steps_is_named_with_its_value(
    make_context: Callable[..., Context], trainer: Trainer
) -> None:
    """A penalty of 4 times 0.3 nats takes more of an advantage than a reward gives, 1."""
    context = make_context(passes=1, kl_penalty=4.0)
    commit_steps(context, trainer, STILL_STEPS)
    moved(context, STILL, kl=0.3, learning_rate=0.0005)
    assert told_by(context).detail.endswith(
        "raise LEARNING_RATE (now 0.0005, by the model's size), PASSES (now 1), or lower "
        "KL_PENALTY (now 4)"
    )
    moved(context, STILL, kl=0.2, learning_rate=0.0005)
    assert told_by(context).detail.endswith("PASSES (now 1)")


def test_only_active_lineages_and_steps_that_count_are_looked_at(
    make_context: Callable[..., Context], trainer: Trainer
) -> None:
    """Steps that were given up are not among the last ten; a lineage's own settings are named."""
    context = make_context()
    commit_steps(context, trainer, STILL_STEPS)
    moved(context, STILL)
    query(context, "UPDATE rl.steps SET given_up_at = now() WHERE step = 10 RETURNING 1")
    query(context, "UPDATE rl.heads SET step = 9, published_step = 9 RETURNING 1")
    assert told_by(context).ok
    commit_steps(context, trainer, 1)
    moved(context, STILL)
    assert not told_by(context).ok
    fleet = Fleet(context.database, context.settings, context.holder)
    lineage_changes.override(fleet, context.lineage.name, ["LEARNING_RATE=0.0000003"])
    assert "LEARNING_RATE (now 3e-07)" in told_by(context).detail
    query(context, "UPDATE rl.lineages SET state = 'paused' RETURNING 1")
    assert told_by(context).ok


def test_the_status_has_the_last_steps_change(context: Context, trainer: Trainer) -> None:
    def last_step() -> tuple[Any, Any]:
        found = database_status(context)["last_step"]
        return found["policy_change"], found["stands_still"]

    commit_steps(context, trainer, 1)
    assert last_step() == (None, False)
    moved(context, [0.00042])
    assert last_step() == (0.00042, True)
    moved(context, [0.5])
    assert last_step() == (0.5, False)


def test_the_command_has_a_line_for_a_step_that_stood_still(
    context: Context, trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli_status, "load_settings", lambda: context.settings)
    monkeypatch.setattr(cli_status, "queue_lengths", lambda _: {"cpu": 0})

    def shown(*options: str) -> str:
        done = CliRunner().invoke(cli_status.status, options, catch_exceptions=False)
        return done.output if options else " ".join(done.output.split())

    assert "stood still" not in shown()  # no step at all
    commit_steps(context, trainer, 1)
    moved(context, [0.0002])
    assert "policy change 0.0002 nats an answer" in shown()
    assert "less than 0.001 nats; `babylon doctor` says which setting to change" in shown()
    assert json.loads(shown("--json"))["last_step"]["stands_still"] is True
    moved(context, [0.2])
    assert "policy change 0.2 nats an answer" in shown()
    assert "stood still" not in shown()


def test_weights_and_biases_is_told(context: Context, trainer: Trainer) -> None:
    commit_steps(context, trainer, 1)
    moved(context, [0.25])
    with context.database.transaction() as tx:
        (row,) = steps.to_log(tx, context.lineage.name, 10)
    assert wandb_metrics(row)["train/policy_change"] == 0.25
