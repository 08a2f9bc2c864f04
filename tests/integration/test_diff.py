"""What changed between two steps or lineages, worked out by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from babylon_tasks import pipeline
from babylon_tasks.cockpit.diff import Data, read_diff
from babylon_tasks.errors import UserError
from babylon_tasks.records.steps import Trainer
from babylon_tasks.work import lineage_changes
from babylon_tasks.work.context import Context
from babylon_tasks.work.fleet import Fleet
from tests.rows import add_window, hours_ago, query, scored_windows

CALLS = 3  # of each trajectory


@pytest.fixture
def fleet(context: Context, trainer: Trainer) -> Fleet:
    """babylon-agent has steps 1 to 3; bold, forked from 1, has step 2 over the windows of 2 and 3.

    The step n of babylon-agent is over the window of n + 1 hours ago, with n + 1 agents.
    """
    for step in (1, 2, 3):
        add_window(context, hours_ago(step + 1), agents=step + 1)
        _train(context, trainer)
    fleet = Fleet(context.database, context.settings, context.holder)
    lineage_changes.fork(fleet, "babylon-agent@1", "bold", ["KL_PENALTY=0.5", "SCORING=heuristic"])
    _train(fleet.context("bold"), trainer)
    return fleet


def _train(context: Context, trainer: Trainer) -> None:
    pipeline.produce(context)
    pipeline.score(context)
    assert pipeline.train(context, trainer)


def test_two_lineages_from_their_common_step(fleet: Fleet) -> None:
    diff = read_diff(fleet, "babylon-agent", "bold")
    assert (diff.a.step, diff.b.step) != (None, None)
    assert [(side.lineage.name, side.head) for side in (diff.a, diff.b)] == [
        ("babylon-agent", 3),
        ("bold", 2),
    ]
    assert diff.common is not None
    assert (diff.common.model_name, diff.common.step) == ("babylon-agent", 1)
    assert diff.overrides == {"KL_PENALTY": (None, "0.5"), "SCORING": (None, "heuristic")}
    assert diff.recipe == {"KL_PENALTY": (0.0, 0.5)}
    windows = [hours_ago(3), hours_ago(4)]
    assert diff.data[0] == Data(2, windows, 3 + 4, 0)
    assert (diff.data[1].steps, sorted(diff.data[1].windows)) == (1, sorted(windows))
    assert diff.metrics["sequences"] == (4 * CALLS, 7 * CALLS)
    assert diff.metrics["trainable_tokens"] == (0, 0)


def test_two_steps_of_one_line(fleet: Fleet) -> None:
    diff = read_diff(fleet, "v1.0.0", "3")
    assert diff.common is not None
    assert diff.common.step == 1
    assert diff.data == (Data(0, [], 0, 0), Data(2, [hours_ago(3), hours_ago(4)], 7, 0))
    assert (diff.recipe, diff.overrides) == ({}, {})


def test_the_names_of_a_step(fleet: Fleet) -> None:
    """The inherited step of a fork is that of the lineage which it was forked from."""
    diff = read_diff(fleet, "bold@v1.0.0", "babylon-agent@1")
    assert (diff.a.step, diff.a.lineage.name) == (diff.b.step, "bold")
    diff = read_diff(fleet, "0", "bold@2")
    assert (diff.a.step, diff.common, diff.recipe) == (None, None, None)
    assert diff.data[1].steps == 2
    assert diff.metrics["sequences"] == (None, 7 * CALLS)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("4", "babylon-agent has no version or step '4'"),
        ("v9.0.0", "babylon-agent has no version or step 'v9.0.0'"),
        ("bolder", "babylon-agent has no version or step 'bolder'"),
        ("bold@3", "bold has no version or step '3'"),
        ("bolder@1", "no lineage is called bolder"),
        ("9" * 40, "has no version or step"),
        ("@", "no lineage is called"),
    ],
)
def test_what_is_not_there(fleet: Fleet, name: str, why: str) -> None:
    with pytest.raises(UserError, match=why):
        read_diff(fleet, "1", name)


def test_a_step_of_release_0_1_0(fleet: Fleet, context: Context) -> None:
    """It has no recipe, and its parent is the step before."""
    query(
        context,
        """UPDATE rl.steps SET recipe = '{}', parent_step = NULL
            WHERE model_name = 'babylon-agent' RETURNING 1""",
    )
    diff = read_diff(fleet, "3", "bold")
    assert diff.recipe is None
    assert diff.common is not None
    assert diff.common.step == 1
    assert diff.data[0].steps == 2


def test_before_the_first_step(context: Context) -> None:
    fleet = Fleet(context.database, context.settings, context.holder)
    diff = read_diff(fleet, "babylon-agent", "babylon-agent@0")
    assert (diff.a.step, diff.b.step, diff.common, diff.metrics) == (None, None, None, {})


def test_a_branch_that_was_given_up(
    context: Context, make_context: Callable[..., Any], trainer: Trainer
) -> None:
    """Both branches from step 1; the numbers go on, whatever the head."""
    for hours in (2, 3):
        scored_windows(context, hours)
        assert pipeline.train(context, trainer)
    query(context, "UPDATE rl.heads SET step = 1 RETURNING 1")
    again = make_context(learning_rate=0.5)
    scored_windows(again, 4)
    assert pipeline.train(again, trainer)
    diff = read_diff(Fleet(context.database, context.settings, context.holder), "2", "3")
    assert diff.common is not None
    assert diff.common.step == 1
    assert diff.recipe == {"LEARNING_RATE": (None, 0.5)}
    assert [each.windows for each in diff.data] == [[hours_ago(3)], [hours_ago(4)]]
