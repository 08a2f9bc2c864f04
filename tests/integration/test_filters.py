"""Filters from rows to samples: who is scored, what is counted, what trains."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from babylon_tasks import loop, pipeline
from babylon_tasks.filters import STAGES
from babylon_tasks.keeper import Keeper
from babylon_tasks.score import score_claimed
from babylon_tasks.scoring.choose import WITHOUT_JUDGE
from babylon_tasks.store import windows as window_rows
from babylon_tasks.training import Sample
from babylon_tasks.worker import Worker
from tests.integration.test_train import Scripted
from tests.rows import (
    add_request,
    add_trajectory,
    add_window,
    hours_ago,
    one,
    query,
    states,
    steps,
)
from workers.trainer_client import TrainerProcess

MakeWorker = Callable[..., Worker]


def run(pnl: float, count: int = 6, failed: int = 0, *extra: dict[str, Any]) -> str:
    """`stepsJson` of some steps of which the first ones failed; the last one has more calls."""
    recorded = json.loads(steps(pnl, count))
    for step in recorded[:failed]:
        step["action"]["success"] = False
    recorded[-1]["llmCalls"] += extra
    return json.dumps(recorded)


def call(response: str, **more: Any) -> dict[str, Any]:
    return {"systemPrompt": "You trade.", "userPrompt": "More?", "response": response, **more}


def scored_ids(worker: Worker) -> list[str]:
    rows = query(worker, "SELECT trajectory_id FROM rl.scores ORDER BY trajectory_id")
    return [row["trajectory_id"] for row in rows]


def funnel_of(worker: Worker) -> dict[str, int]:
    """The only window's counts, having checked that those of its trajectories add up."""
    row = one(worker, "SELECT funnel, trajectories FROM rl.windows")
    funnel: dict[str, int] = row["funnel"]
    known = {*STAGES, *(reason for reasons in STAGES.values() for reason in reasons)}
    assert set(funnel) <= known
    left_out = sum(funnel.get(reason, 0) for reason in STAGES["trajectories"])
    assert funnel["trajectories"] == row["trajectories"]
    assert funnel["trajectories"] - left_out == funnel["scored"] == len(scored_ids(worker))
    return {name: count for name, count in funnel.items() if count}


def trained(worker: Worker, trainer: TrainerProcess) -> dict[str, Sample]:
    """The samples of the next step by trajectory."""
    found: list[Sample] = []
    report = pipeline.train(worker, Scripted(trainer, lambda _, samples: found.extend(samples)))
    assert report is not None
    return {sample.trajectory_id: sample for sample in found}


def test_each_filter_leaves_out_its_own(make_worker: MakeWorker, trainer: TrainerProcess) -> None:
    worker = make_worker(min_actions=5, max_failed_share=0.4)
    window = hours_ago(2)
    first = add_trajectory(worker, window, "a", stepsJson=run(-200))
    second = add_trajectory(worker, window, "b", stepsJson=run(300))
    edge = add_trajectory(worker, window, "c", stepsJson=run(100, 5, 2))  # 2 of 5 are 0.4
    add_trajectory(worker, window, "d", stepsJson=run(500, 4))
    add_trajectory(worker, window, "e", stepsJson=run(500, 5, 3))
    # Another run of the same agent with the same calls, and one with other calls.
    add_trajectory(worker, window, "a", stepsJson=run(-150))
    other = add_trajectory(worker, window, "a", stepsJson=run(-100, 7))
    add_trajectory(worker, window, "f", stepsJson="[{")
    add_trajectory(worker, window, "g", stepsJson="[]")
    add_trajectory(worker, window, "h", stepsJson=run(900), isTrainingData=False)
    add_trajectory(worker, window, "i", stepsJson=run(900), isEvaluation=True)
    pipeline.produce(worker)
    assert pipeline.score(worker) == [window]
    assert scored_ids(worker) == sorted([first, second, edge, other])
    assert funnel_of(worker) == {
        "trajectories": 9,
        "unreadable": 2,
        "few_actions": 1,
        "failed_actions": 1,
        "duplicate": 1,
        "scored": 4,
        "calls": 6 + 6 + 5 + 7,
    }
    samples = trained(worker, trainer)
    assert sorted(samples) == sorted([first, second, edge, other])
    assert sum(len(sample.calls) for sample in samples.values()) == 24
    used = query(worker, 'SELECT "trajectoryId" AS id FROM trajectories WHERE "usedInTraining"')
    assert sorted(row["id"] for row in used) == sorted(samples)


def test_the_calls_that_are_counted_out_do_not_train(
    worker: Worker, trainer: TrainerProcess
) -> None:
    window = hours_ago(2)
    cut = call('{"action": "BUY", "why": "becau')
    long = call("and so on " * 80, maxTokens=200)
    first = add_trajectory(
        worker, window, "a", stepsJson=run(-200, 3, 0, call(""), call(" "), cut, call("SELL"))
    )
    second = add_trajectory(
        worker, window, "b", stepsJson=run(300, 3, 0, call("SELL"), call("SELL"), long)
    )
    add_trajectory(worker, window, "c", stepsJson=steps(100, 3, response=""))
    pipeline.produce(worker)
    pipeline.score(worker)
    funnel = funnel_of(worker)
    assert funnel == {
        "trajectories": 3,
        "scored": 3,
        "calls": 7 + 6 + 3,
        "empty": 2 + 3,
        "truncated": 2,
        "repeated": 1,
    }
    samples = trained(worker, trainer)
    # c has a score, of which nobody learns: it had nothing to say.
    assert sorted(samples) == sorted([first, second])
    calls = [each for sample in samples.values() for each in sample.calls]
    left_out = sum(funnel[reason] for reason in ("empty", "truncated", "repeated"))
    assert funnel["calls"] - left_out == len(calls) == 8
    assert {each.response for each in calls} == {"BUY YES", "SELL"}
    # The same words of two agents are two calls: their rewards differ.
    assert sum(each.response == "SELL" for each in calls) == 2


@pytest.mark.parametrize(
    ("changes", "reason"), [({"dropout": 0.5}, "dropout"), ({"max_per_window": 8}, "over_maximum")]
)
def test_what_is_drawn_is_scored_and_trained_and_nothing_else(
    make_worker: MakeWorker, trainer: TrainerProcess, changes: dict[str, Any], reason: str
) -> None:
    worker = make_worker(**changes)
    window = hours_ago(2)
    ids = add_window(worker, window, agents=30, spread=20.0)
    pipeline.produce(worker)
    pipeline.score(worker)
    names = scored_ids(worker)
    funnel = funnel_of(worker)
    assert funnel[reason] == 30 - len(names) > 0
    assert len(names) == 8 or reason == "dropout"
    assert set(names) < set(ids)
    # Scored again, after one more came: the same ones, but where it has taken a place.
    late = add_trajectory(worker, window, "late", stepsJson=steps(1000))
    query(worker, "UPDATE rl.windows SET state = 'due' RETURNING 1")
    assert pipeline.score(worker) == [window]
    again = scored_ids(worker)
    assert set(again) <= {*names, late}
    assert len(again) >= len(names)
    assert sorted(trained(worker, trainer)) == again


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"min_actions": 5}, "1 agents with usable traces, needs 2"),
        ({"min_actions": 7}, "0 agents with usable traces, needs 2"),
        ({"min_agents_per_window": 3, "min_actions": 3}, "2 agents with usable traces, needs 3"),
    ],
)
def test_a_window_that_filters_make_too_small_is_skipped(
    make_worker: MakeWorker, trainer: TrainerProcess, changes: dict[str, Any], why: str
) -> None:
    worker = make_worker(**changes)
    window = hours_ago(2)
    add_trajectory(worker, window, "a", stepsJson=run(-200, 6))
    add_trajectory(worker, window, "b", stepsJson=run(300, 4))
    add_trajectory(worker, window, "c", stepsJson=run(300, 2))
    add_request(worker, "batch-1", window, "v1.0.0")
    pipeline.produce(worker)
    pipeline.score(worker)
    assert states(worker) == {window: "skipped"}
    assert one(worker, "SELECT reason FROM rl.windows")["reason"] == why
    funnel = one(worker, "SELECT funnel FROM rl.windows")["funnel"]
    assert funnel["trajectories"] == 3 == funnel["few_actions"] + funnel["scored"]
    assert scored_ids(worker) == []
    request = one(worker, "SELECT status, error FROM training_batches")
    assert request["status"] == "failed"
    assert why in request["error"]
    assert pipeline.train(worker, trainer) is None


def test_scores_of_before_a_filter_do_not_train(
    make_worker: MakeWorker, trainer: TrainerProcess
) -> None:
    """A setting was changed while a window waited, and the window is scored again."""
    before, after = make_worker(), make_worker(min_actions=5)
    window = hours_ago(2)
    short = add_trajectory(before, window, "a", stepsJson=run(-200, 3))
    long = [add_trajectory(before, window, f"b{n}", stepsJson=run(300.0 * n, 6)) for n in range(2)]
    pipeline.produce(before)
    pipeline.score(before)
    assert scored_ids(before) == sorted([short, *long])
    query(before, "UPDATE rl.windows SET state = 'due' RETURNING 1")
    assert pipeline.score(after) == [window]
    assert scored_ids(after) == sorted(long)
    assert funnel_of(after)["few_actions"] == 1
    assert sorted(trained(after, trainer)) == sorted(long)


def test_the_correctness_scorer_is_given_only_what_is_kept(make_worker: MakeWorker) -> None:
    worker = make_worker(scoring="correctness", min_actions=5)
    window = hours_ago(2)
    kept = [add_trajectory(worker, window, f"a{n}", stepsJson=run(100, 6 + n, n)) for n in range(3)]
    add_trajectory(worker, window, "b", stepsJson=run(-200, 3))
    pipeline.produce(worker)
    assert pipeline.score(worker) == [window]
    rows = query(worker, "SELECT * FROM rl.scores ORDER BY trajectory_id")
    assert [row["trajectory_id"] for row in rows] == sorted(kept)
    assert {row["scorer"] for row in rows} == {"correctness"}
    # No markets, a constant P&L: 0.5 · 0.5 + 0.3 · 0.5 + 0.2 · (1 - n failed of 6 + n)
    assert [row["score"] for row in rows] == pytest.approx(
        [0.4 + 0.2, 0.4 + 0.2 * 6 / 7, 0.4 + 0.2 * 6 / 8]
    )
    assert states(worker) == {window: "scored"}


def versioned(pnl: float, *versions: str | None) -> str:
    """`stepsJson` of one step, with a call by each of these versions."""
    calls = [
        call(f"BUY {n}", **({} if version is None else {"modelVersion": version}))
        for n, version in enumerate(versions)
    ]
    recorded = json.loads(steps(pnl, 1))
    recorded[0]["llmCalls"] = calls
    return json.dumps(recorded)


@pytest.mark.parametrize(("most", "left"), [(None, 5), (1, 5), (0, 4)])
def test_calls_by_versions_too_far_behind_the_head_do_not_train(
    make_worker: MakeWorker, trainer: TrainerProcess, most: int | None, left: int
) -> None:
    worker = make_worker(max_staleness=most)
    for hours in (5, 4):  # v1.0.0 is step 1, v1.0.1 the head
        add_window(worker, hours_ago(hours))
        pipeline.produce(worker)
        pipeline.score(worker)
        assert pipeline.train(worker, trainer)
    window = hours_ago(2)
    versions = ("v1.0.0", "v1.0.1", "babylon-agent-v1.0.1", None, "v9.9.9")
    for n in range(2):
        add_trajectory(worker, window, f"agent-{n}", stepsJson=versioned(100.0 * n, *versions))
    pipeline.produce(worker)
    pipeline.score(worker)
    assert pipeline.train(worker, trainer)
    row = one(worker, "SELECT funnel FROM rl.windows WHERE window_id = %s", window)
    assert row["funnel"]["stale"] == 2 * (5 - left)
    assert row["funnel"]["sequences"] == 2 * left
    # v1.0.0 is one step old, v1.0.1 none, by either of its names.
    metrics = one(worker, "SELECT metrics FROM rl.steps WHERE step = 3")["metrics"]
    assert metrics["staleness_known"] == 2 * (left - 2)
    assert metrics["staleness_mean"] == pytest.approx(1 / 3 if left == 5 else 0)
    assert metrics["staleness_max"] == (1 if left == 5 else 0)
    before = one(worker, "SELECT metrics FROM rl.steps WHERE step = 2")["metrics"]
    assert before["staleness_known"] == 0
    assert "staleness_mean" not in before


def test_a_window_whose_calls_are_all_stale_is_skipped_and_counted(
    make_worker: MakeWorker, trainer: TrainerProcess
) -> None:
    worker = make_worker(max_staleness=0)
    for hours in (5, 4):
        add_window(worker, hours_ago(hours))
        pipeline.produce(worker)
        pipeline.score(worker)
        assert pipeline.train(worker, trainer)
    window = hours_ago(2)
    for n in range(2):
        steps_json = versioned(100.0 * n, "v1.0.0", "v1.0.0")
        add_trajectory(worker, window, f"agent-{n}", stepsJson=steps_json)
    pipeline.produce(worker)
    pipeline.score(worker)
    assert pipeline.train(worker, trainer) is None
    row = one(worker, "SELECT state, funnel FROM rl.windows WHERE window_id = %s", window)
    assert row["state"] == "skipped"
    assert (row["funnel"]["stale"], row["funnel"]["without_calls"]) == (4, 2)


def test_rows_are_counted_once_each_also_where_only_their_scenario_names_the_window(
    worker: Worker,
) -> None:
    window, other = hours_ago(2), hours_ago(3)
    add_trajectory(worker, None, "a", scenarioId=f"{window}-btc")
    add_trajectory(worker, None, "b", scenarioId=window, isEvaluation=True, isTrainingData=False)
    add_trajectory(worker, other, "c", scenarioId=window)
    add_trajectory(worker, window, "d", scenarioId="benchmark-1")
    with worker.database.transaction() as tx:
        assert window_rows.count_excluded(tx, worker.settings, window) == {
            "not_training_data": 1,
            "evaluation": 0,
            "excluded": 1,
            "trajectories": 3,
        }


def test_a_window_that_is_wanted_otherwise_after_its_claim_is_left_alone(worker: Worker) -> None:
    window = hours_ago(2)
    add_window(worker, window)
    pipeline.produce(worker)
    settings = worker.settings
    with worker.database.transaction() as tx:
        claimed = window_rows.claim_due(tx, settings, worker.holder, 16, None, WITHOUT_JUDGE)
    pipeline.enqueue(worker, window, scoring="ruler")
    with Keeper(worker.database, settings, list(claimed.values())) as keeper:
        assert loop.run(score_claimed(worker, keeper, claimed)) == []
    assert states(worker) == {window: "due"}
    assert query(worker, "SELECT * FROM rl.leases") == []
