"""What is due, and what is not."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from babylon_tasks import pipeline
from babylon_tasks.errors import UserError
from babylon_tasks.store import windows as window_rows
from babylon_tasks.store.queries import load
from babylon_tasks.work.context import Context
from tests.clock import at_half_past
from tests.rows import add_request, add_trajectory, add_window, hours_ago, one, query, states


def test_complete_windows_with_enough_agents_are_due_once(context: Context) -> None:
    at_half_past(context)
    add_window(context, hours_ago(2))
    add_window(context, hours_ago(3), agents=2)
    add_window(context, hours_ago(4), agents=1)
    add_window(context, hours_ago(0))
    add_window(context, hours_ago(100))
    assert pipeline.produce(context) == [hours_ago(3), hours_ago(2)]
    assert pipeline.produce(context) == []
    assert states(context) == {hours_ago(2): "due", hours_ago(3): "due"}


def test_a_window_settles_before_it_is_due(make_context: Callable[..., Context]) -> None:
    slow, quick = make_context(settle_seconds=7200), make_context(settle_seconds=0)
    add_window(slow, hours_ago(1))
    assert pipeline.produce(slow) == []
    assert pipeline.produce(quick) == [hours_ago(1)]


def test_rows_that_never_count(context: Context) -> None:
    window = hours_ago(2)
    add_trajectory(context, window, "a")
    add_trajectory(context, window, "b", isTrainingData=False)
    add_trajectory(context, window, "c", isEvaluation=True)
    add_trajectory(context, window, "d", scenarioId="benchmark-1")
    add_trajectory(context, window, "e", scenarioId="market-decisions-7")
    add_trajectory(context, window, "a")
    assert pipeline.produce(context) == []


def test_older_rows_carry_the_window_in_scenario_id(context: Context) -> None:
    window = hours_ago(2)
    add_trajectory(context, None, "a", scenarioId=window)
    add_trajectory(context, None, "b", scenarioId=f"{window}-btc")
    # A run over the hour's edge: windowId alone decides, or it would count twice.
    add_trajectory(context, hours_ago(3), "c", scenarioId=window)
    add_trajectory(context, "not-a-window", "d", scenarioId=window)
    add_trajectory(context, None, "e", scenarioId=None)
    assert pipeline.produce(context) == [window]
    assert one(context, "SELECT agents, trajectories FROM rl.windows") == {
        "agents": 2,
        "trajectories": 2,
    }


def test_many_producers_make_one_row(make_context: Callable[..., Context]) -> None:
    workers = [make_context() for _ in range(4)]
    for hours in range(2, 22):
        add_window(workers[0], hours_ago(hours), agents=2)
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(pipeline.produce, workers))
    assert sorted(w for each in made for w in each) == sorted(hours_ago(h) for h in range(2, 22))


def test_late_rows_are_counted_and_not_trained(context: Context) -> None:
    window = hours_ago(2)
    add_window(context, window)
    pipeline.produce(context)
    pipeline.score(context)
    add_trajectory(context, window, "late")
    assert pipeline.produce(context) == []
    row = one(context, "SELECT state, agents, trajectories, late FROM rl.windows")
    assert row == {"state": "scored", "agents": 3, "trajectories": 3, "late": 1}


def test_a_skipped_window_opens_again_when_its_agents_grow(context: Context) -> None:
    window = hours_ago(2)
    add_window(context, window, spread=0.0)
    pipeline.produce(context)
    pipeline.score(context)
    assert states(context) == {window: "skipped"}
    add_trajectory(context, window, "agent-0")
    assert pipeline.produce(context) == []
    add_window(context, window, agents=5)
    assert pipeline.produce(context) == [window]


def test_malformed_agents_do_not_open_a_skipped_window_for_ever(context: Context) -> None:
    window = hours_ago(2)
    add_window(context, window, stepsJson="rubbish")
    pipeline.produce(context)
    pipeline.score(context)
    assert states(context) == {window: "skipped"}
    assert pipeline.produce(context) == []


def test_enqueue_by_name(context: Context) -> None:
    old = hours_ago(500)
    add_window(context, old)
    assert pipeline.enqueue(context, old).state == "due"
    assert pipeline.enqueue(context, old).state == "due"


@pytest.mark.parametrize(
    ("hours", "says"),
    [
        (0, "not complete"),
        (5, "no trajectories"),
        (7, "1 agents, needs 2"),
        (9, "1 are evaluation"),
    ],
)
def test_enqueue_says_why_not(context: Context, hours: int, says: str) -> None:
    at_half_past(context)
    add_window(context, hours_ago(0))
    add_window(context, hours_ago(7), agents=1)
    add_window(context, hours_ago(9), agents=1)
    add_trajectory(context, hours_ago(9), "agent-9", isEvaluation=True)
    with pytest.raises(UserError, match=says):
        pipeline.enqueue(context, hours_ago(hours))
    assert states(context) == {}


def test_listing_counts_what_has_no_row_and_reads_what_has(context: Context) -> None:
    at_half_past(context)
    add_window(context, hours_ago(2))
    pipeline.produce(context)
    add_window(context, hours_ago(3))
    add_window(context, hours_ago(4), agents=1)
    add_window(context, hours_ago(0), agents=2)
    with context.database.transaction() as tx:
        found = window_rows.listing(tx, context.lineage.name, context.settings)
    assert [(w.window_id, w.agents, w.trajectories, w.state) for w in found] == [
        (hours_ago(0), 2, 2, "open"),
        (hours_ago(2), 3, 3, "due"),
        (hours_ago(3), 3, 3, "ready"),
        (hours_ago(4), 1, 1, "few_agents"),
    ]


def test_produce_and_listing_use_the_index(context: Context) -> None:
    query(context, """INSERT INTO "User" (id, "updatedAt") VALUES ('nobody', now()) RETURNING 1""")
    query(
        context,
        """INSERT INTO trajectories (id, "trajectoryId", "agentId", "startTime", "endTime",
               "durationMs", "windowId", "stepsJson", "rewardComponentsJson", "metricsJson",
               "metadataJson", "totalReward", "episodeLength", "finalStatus", "updatedAt")
           SELECT g, g, 'nobody', now(), now(), 1, '2020-01-01T00:00', '[]', '{}', '{}', '{}', 0,
                  1, 'completed', now()
             FROM generate_series(1, 5000) g RETURNING 1""",
    )
    with context.database.transaction() as tx:
        tx.execute("ANALYZE trajectories")
        for name in ("produce_windows", "list_windows", "count_window"):
            plan = tx.execute(
                "EXPLAIN " + load("windows", "transitions")[name],
                {
                    **window_rows.counted_rows(context.settings),
                    "model_name": "m",
                    "model_names": ["m"],
                    "lookback_hours": [72] if name == "produce_windows" else 72,
                    "settle_seconds": [600] if name == "produce_windows" else 600,
                    "min_agents": [2] if name == "produce_windows" else 2,
                    "window_id": hours_ago(2),
                },
            ).fetchall()
            text = "\n".join(row["QUERY PLAN"] for row in plan)
            assert "rl_trajectories_window_idx" in text, f"{name}:\n{text}"
            assert "Seq Scan on trajectories" not in text


def test_an_odd_request_stops_neither_the_windows_nor_the_others(context: Context) -> None:
    for number, window in enumerate(["9999-12-31T23:00", "x" * 5000, f" {hours_ago(2)} "]):
        add_request(context, f"batch-{number}", window, "v1.0.0")
    add_window(context, hours_ago(2))
    assert pipeline.produce(context) == [hours_ago(2)]
    found = query(context, 'SELECT status FROM training_batches ORDER BY "batchId"')
    assert [f["status"] for f in found] == ["failed", "failed", "pending"]
    assert one(context, "SELECT batch_id FROM rl.windows")["batch_id"] == "batch-2"
