"""Odd values and rows of rl.lineages written by hand: one lineage is hit, never the others."""

from __future__ import annotations

from collections.abc import Callable

import psycopg
import pytest

from babylon_tasks import pipeline
from babylon_tasks.cockpit.lineages import list_lineages, read_lineage_story
from babylon_tasks.errors import UserError
from babylon_tasks.records.lineages import LineageState
from babylon_tasks.records.steps import Trainer
from babylon_tasks.store import leases
from babylon_tasks.work import lineage_changes
from babylon_tasks.work.context import Context
from babylon_tasks.work.fleet import Fleet
from tests.rows import add_window, commit_steps, hours_ago, query

OWN = "babylon-agent"


def fleet_of(context: Context) -> Fleet:
    return Fleet(context.database, context.settings, "test")


def by_hand(context: Context, statement: str) -> None:
    query(context, f"{statement} RETURNING 1")


def due_windows(context: Context, *hours: int) -> Fleet:
    fleet = fleet_of(context)
    for hour in hours:
        add_window(context, hours_ago(hour))
    pipeline.produce(*fleet.active())
    return fleet


def next_to_score(fleet: Fleet) -> list[str]:
    return [context.lineage.name for context in fleet.in_turn("score")]


@pytest.mark.parametrize("weight", ["1_0", " 2", "1e1", "+3.", "0.5"])
def test_a_weight_is_what_the_settings_read(context: Context, weight: str) -> None:
    """Python reads numbers that Postgres refuses; the fleet must not stop for them."""
    lineage_changes.create(fleet_of(context), "odd", None, None, [f"LINEAGE_WEIGHT={weight}"])
    fleet = due_windows(context, 2)
    assert sorted(next_to_score(fleet)) == [OWN, "odd"]
    assert [row.weight for row in list_lineages(fleet)] == [None, weight]


@pytest.mark.parametrize("weight", ["x", "", "NaN", "-1", "1e999"])
def test_an_override_that_is_refused_leaves_out_its_lineage_alone(
    context: Context, weight: str
) -> None:
    lineage_changes.create(fleet_of(context), "odd", None, None, [])
    fleet = due_windows(context, 2)
    by_hand(
        context,
        "UPDATE rl.lineages SET config = jsonb_build_object('LINEAGE_WEIGHT', "
        f"'{weight}'::text) WHERE name = 'odd'",
    )
    assert sorted(next_to_score(fleet)) == ([OWN, "odd"] if weight == "" else [OWN])
    assert [row.name for row in list_lineages(fleet)] == [OWN, "odd"]
    lineage_changes.override(fleet, "odd", ["LINEAGE_WEIGHT="])
    assert sorted(next_to_score(fleet)) == [OWN, "odd"]


@pytest.mark.parametrize(
    "config", ["[]", "null", "7", '"x"', '{"DROPOUT": 0.5}', '{"AGENTS": null}', '{"A": {}}']
)
def test_overrides_are_an_object_of_texts(context: Context, config: str) -> None:
    lineage_changes.create(fleet_of(context), "odd", None, None, [])
    with pytest.raises(psycopg.errors.CheckViolation):
        by_hand(context, f"UPDATE rl.lineages SET config = '{config}' WHERE name = 'odd'")


def test_a_lineage_without_turns_takes_turns_all_the_same(context: Context) -> None:
    fleet_of(context).active()
    by_hand(
        context,
        "INSERT INTO rl.lineages (name, base_model, created_by, created_at)"
        " VALUES ('hand', 'm', 'me', now() - interval '1 year')",
    )
    fleet = due_windows(context, *range(2, 6))
    first = []
    for _ in range(4):
        turn = next(fleet.in_turn("score"))
        first.append(turn.lineage.name)
        assert len(pipeline.score(turn, limit=1)) == 1
    assert first == [OWN, "hand", OWN, "hand"]


def test_lineages_that_come_from_each_other_end(context: Context, trainer: Trainer) -> None:
    commit_steps(context, trainer, 2)
    fleet = fleet_of(context)
    lineage_changes.fork(fleet, f"{OWN}@2", "fork", [])
    by_hand(
        context,
        f"UPDATE rl.lineages SET forked_from = 'fork', forked_step = 2 WHERE name = '{OWN}'",
    )
    for name, step in ((OWN, "v9.9.9"), ("fork", "v9.9.9"), ("fork", "2")):
        assert read_lineage_story(fleet, name).lineage.name == name
        with pytest.raises(UserError, match="has no version or step"):
            lineage_changes.fork(fleet, f"{name}@{step}", "new", [])


@pytest.mark.parametrize("name", ["../evil", "a/b", "", "x" * 65, "é"])
def test_a_malformed_name_is_left_out_alone(context: Context, trainer: Trainer, name: str) -> None:
    """It would be part of the path of the files, and no command takes it."""
    by_hand(
        context,
        f"INSERT INTO rl.lineages (name, base_model, created_by) VALUES ('{name}', 'm', 'me')",
    )
    fleet = due_windows(context, 2)
    assert next_to_score(fleet) == [OWN]
    pipeline.score(context)
    assert pipeline.train(context, trainer)
    by_hand(
        context, f"INSERT INTO rl.heads (model_name, step, base_model) VALUES ('{name}', 1, 'm')"
    )
    assert [each.lineage.name for each in fleet.to_publish()] == [OWN]


def test_the_step_that_trains_as_its_lineage_retires_finds_its_files(
    make_context: Callable[..., Context], trainer: Trainer
) -> None:
    parent = make_context(keep_checkpoints=1)
    commit_steps(parent, trainer, 3)
    fleet = fleet_of(parent)
    lineage_changes.fork(fleet, f"{OWN}@1", "fork", [])
    with parent.database.transaction() as tx:
        lease = leases.acquire(tx, "model/fork", "another worker", 60)
        assert lease
    lineage_changes.change_state(fleet, "fork", LineageState.RETIRED)
    commit_steps(parent, trainer, 1)
    removed = "SELECT step FROM rl.steps WHERE removed_at IS NOT NULL ORDER BY step"
    assert query(parent, removed) == []
    with parent.database.transaction() as tx:
        leases.release(tx, [lease])
    commit_steps(parent, trainer, 1)
    assert query(parent, removed) == [{"step": 1}, {"step": 2}]
