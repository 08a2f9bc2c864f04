"""Filters from rows to samples: who is scored, what is counted, what trains."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from babylon_tasks import pipeline
from babylon_tasks.cockpit.story import read_story
from babylon_tasks.errors import UserError
from babylon_tasks.records.steps import Sample
from babylon_tasks.scoring.filters import EVALUATIONS, FLOORED, STAGES
from babylon_tasks.scoring.registry import WITHOUT_JUDGE
from babylon_tasks.scoring.stage import score_claimed
from babylon_tasks.store import transitions
from babylon_tasks.store import windows as window_rows
from babylon_tasks.store.windows import DueQuery
from babylon_tasks.work import aio
from babylon_tasks.work.context import Context
from babylon_tasks.work.leases import LeaseKeeper
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
from workers.gpu.client import TrainerProcess

MakeContext = Callable[..., Context]


def run(pnl: float, count: int = 6, failed: int = 0, *extra: dict[str, Any]) -> str:
    """`stepsJson` of some steps of which the first ones failed; the last one has more calls."""
    recorded = json.loads(steps(pnl, count))
    for step in recorded[:failed]:
        step["action"]["success"] = False
    recorded[-1]["llmCalls"] += extra
    return json.dumps(recorded)


def call(response: str, **more: Any) -> dict[str, Any]:
    return {"systemPrompt": "You trade.", "userPrompt": "More?", "response": response, **more}


def scored_ids(context: Context) -> list[str]:
    rows = query(context, "SELECT trajectory_id FROM rl.scores ORDER BY trajectory_id")
    return [row["trajectory_id"] for row in rows]


def funnel_of(context: Context) -> dict[str, int]:
    """The only window's counts, having checked that those of its trajectories add up."""
    row = one(context, "SELECT funnel, trajectories FROM rl.windows")
    funnel: dict[str, int] = row["funnel"]
    known = {*STAGES, *FLOORED.values(), *(each for some in STAGES.values() for each in some)}
    known.add(EVALUATIONS)
    assert set(funnel) <= known
    left_out = sum(funnel.get(reason, 0) for reason in STAGES["trajectories"])
    assert funnel["trajectories"] == row["trajectories"]
    assert funnel["trajectories"] - left_out == funnel["scored"]
    assert funnel["scored"] + funnel.get(EVALUATIONS, 0) == len(scored_ids(context))
    return {name: count for name, count in funnel.items() if count}


def trained(context: Context, trainer: TrainerProcess) -> dict[str, Sample]:
    """The samples of the next step by trajectory."""
    found: list[Sample] = []
    report = pipeline.train(context, Scripted(trainer, lambda _, samples: found.extend(samples)))
    assert report is not None
    return {sample.trajectory_id: sample for sample in found}


def test_each_filter_leaves_out_its_own(make_context: MakeContext, trainer: TrainerProcess) -> None:
    context = make_context(min_actions=5, max_failed_share=0.4)
    window = hours_ago(2)
    first = add_trajectory(context, window, "a", stepsJson=run(-200))
    second = add_trajectory(context, window, "b", stepsJson=run(300))
    edge = add_trajectory(context, window, "c", stepsJson=run(100, 5, 2))  # 2 of 5 are 0.4
    add_trajectory(context, window, "d", stepsJson=run(500, 4))
    add_trajectory(context, window, "e", stepsJson=run(500, 5, 3))
    # Another run of the same agent with the same calls, and one with other calls.
    add_trajectory(context, window, "a", stepsJson=run(-150))
    other = add_trajectory(context, window, "a", stepsJson=run(-100, 7))
    add_trajectory(context, window, "f", stepsJson="[{")
    add_trajectory(context, window, "g", stepsJson="[]")
    add_trajectory(context, window, "h", stepsJson=run(900), isTrainingData=False)
    examined = add_trajectory(context, window, "i", stepsJson=run(900), isEvaluation=True)
    pipeline.produce(context)
    assert pipeline.score(context) == [window]
    assert scored_ids(context) == sorted([first, second, edge, other, examined])
    assert funnel_of(context) == {
        "trajectories": 9,
        "unreadable": 2,
        "few_actions": 1,
        "failed_actions": 1,
        "duplicate": 1,
        "scored": 4,
        "evaluations": 1,
        "calls": 6 + 6 + 5 + 7,
    }
    samples = trained(context, trainer)
    assert sorted(samples) == sorted([first, second, edge, other])
    assert sum(len(sample.calls) for sample in samples.values()) == 24
    used = query(context, 'SELECT "trajectoryId" AS id FROM trajectories WHERE "usedInTraining"')
    assert sorted(row["id"] for row in used) == sorted(samples)


def test_the_calls_that_are_counted_out_do_not_train(
    context: Context, trainer: TrainerProcess
) -> None:
    window = hours_ago(2)
    cut = call('{"action": "BUY", "why": "becau')
    long = call("and so on " * 80, maxTokens=200)
    first = add_trajectory(
        context, window, "a", stepsJson=run(-200, 3, 0, call(""), call(" "), cut, call("SELL"))
    )
    second = add_trajectory(
        context, window, "b", stepsJson=run(300, 3, 0, call("SELL"), call("SELL"), long)
    )
    add_trajectory(context, window, "c", stepsJson=steps(100, 3, response=""))
    pipeline.produce(context)
    pipeline.score(context)
    funnel = funnel_of(context)
    assert funnel == {
        "trajectories": 3,
        "scored": 3,
        "calls": 7 + 6 + 3,
        "empty": 2 + 3,
        "truncated": 2,
        "repeated": 1,
    }
    samples = trained(context, trainer)
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
    make_context: MakeContext, trainer: TrainerProcess, changes: dict[str, Any], reason: str
) -> None:
    context = make_context(**changes)
    window = hours_ago(2)
    ids = add_window(context, window, agents=30, spread=20.0)
    pipeline.produce(context)
    pipeline.score(context)
    names = scored_ids(context)
    funnel = funnel_of(context)
    assert funnel[reason] == 30 - len(names) > 0
    assert len(names) == 8 or reason == "dropout"
    assert set(names) < set(ids)
    # Scored again, after one more came: the same ones, but where it has taken a place.
    late = add_trajectory(context, window, "late", stepsJson=steps(1000))
    query(context, "UPDATE rl.windows SET state = 'due' RETURNING 1")
    assert pipeline.score(context) == [window]
    again = scored_ids(context)
    assert set(again) <= {*names, late}
    assert len(again) >= len(names)
    assert sorted(trained(context, trainer)) == again


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"min_actions": 5}, "1 agents with usable traces, needs 2"),
        ({"min_actions": 7}, "0 agents with usable traces, needs 2"),
        ({"min_agents_per_window": 3, "min_actions": 3}, "2 agents with usable traces, needs 3"),
    ],
)
def test_a_window_that_filters_make_too_small_is_skipped(
    make_context: MakeContext, trainer: TrainerProcess, changes: dict[str, Any], why: str
) -> None:
    context = make_context(**changes)
    window = hours_ago(2)
    add_trajectory(context, window, "a", stepsJson=run(-200, 6))
    add_trajectory(context, window, "b", stepsJson=run(300, 4))
    add_trajectory(context, window, "c", stepsJson=run(300, 2))
    add_request(context, "batch-1", window, "v1.0.0")
    pipeline.produce(context)
    pipeline.score(context)
    assert states(context) == {window: "skipped"}
    assert one(context, "SELECT reason FROM rl.windows")["reason"] == why
    funnel = one(context, "SELECT funnel FROM rl.windows")["funnel"]
    assert funnel["trajectories"] == 3 == funnel["few_actions"] + funnel["scored"]
    assert scored_ids(context) == []
    request = one(context, "SELECT status, error FROM training_batches")
    assert request["status"] == "failed"
    assert why in request["error"]
    assert pipeline.train(context, trainer) is None


def test_scores_of_before_a_filter_do_not_train(
    make_context: MakeContext, trainer: TrainerProcess
) -> None:
    """A setting was changed while a window waited, and the window is scored again."""
    before, after = make_context(), make_context(min_actions=5)
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


def test_the_correctness_scorer_is_given_only_what_is_kept(make_context: MakeContext) -> None:
    context = make_context(scoring="correctness", min_actions=5)
    window = hours_ago(2)
    kept = [
        add_trajectory(context, window, f"a{n}", stepsJson=run(100, 6 + n, n)) for n in range(3)
    ]
    add_trajectory(context, window, "b", stepsJson=run(-200, 3))
    pipeline.produce(context)
    assert pipeline.score(context) == [window]
    rows = query(context, "SELECT * FROM rl.scores ORDER BY trajectory_id")
    assert [row["trajectory_id"] for row in rows] == sorted(kept)
    assert {row["scorer"] for row in rows} == {"correctness"}
    # No markets, a constant P&L: 0.5 · 0.5 + 0.3 · 0.5 + 0.2 · (1 - n failed of 6 + n)
    assert [row["score"] for row in rows] == pytest.approx(
        [0.4 + 0.2, 0.4 + 0.2 * 6 / 7, 0.4 + 0.2 * 6 / 8]
    )
    assert states(context) == {window: "scored"}


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
    make_context: MakeContext, trainer: TrainerProcess, most: int | None, left: int
) -> None:
    context = make_context(max_staleness=most)
    for hours in (5, 4):  # v1.0.0 is step 1, v1.0.1 the head
        add_window(context, hours_ago(hours))
        pipeline.produce(context)
        pipeline.score(context)
        assert pipeline.train(context, trainer)
    window = hours_ago(2)
    versions = ("v1.0.0", "v1.0.1", "babylon-agent-v1.0.1", None, "v9.9.9")
    for n in range(2):
        add_trajectory(context, window, f"agent-{n}", stepsJson=versioned(100.0 * n, *versions))
    pipeline.produce(context)
    pipeline.score(context)
    assert pipeline.train(context, trainer)
    row = one(context, "SELECT funnel FROM rl.windows WHERE window_id = %s", window)
    assert row["funnel"]["stale"] == 2 * (5 - left)
    assert row["funnel"]["sequences"] == 2 * left
    # v1.0.0 is one step old, v1.0.1 none, by either of its names.
    metrics = one(context, "SELECT metrics FROM rl.steps WHERE step = 3")["metrics"]
    assert metrics["staleness_known"] == 2 * (left - 2)
    assert metrics["staleness_mean"] == pytest.approx(1 / 3 if left == 5 else 0)
    assert metrics["staleness_max"] == (1 if left == 5 else 0)
    before = one(context, "SELECT metrics FROM rl.steps WHERE step = 2")["metrics"]
    assert before["staleness_known"] == 0
    assert "staleness_mean" not in before


def test_a_window_whose_calls_are_all_stale_is_skipped_and_counted(
    make_context: MakeContext, trainer: TrainerProcess
) -> None:
    context = make_context(max_staleness=0)
    for hours in (5, 4):
        add_window(context, hours_ago(hours))
        pipeline.produce(context)
        pipeline.score(context)
        assert pipeline.train(context, trainer)
    window = hours_ago(2)
    for n in range(2):
        steps_json = versioned(100.0 * n, "v1.0.0", "v1.0.0")
        add_trajectory(context, window, f"agent-{n}", stepsJson=steps_json)
    pipeline.produce(context)
    pipeline.score(context)
    assert pipeline.train(context, trainer) is None
    row = one(context, "SELECT state, funnel FROM rl.windows WHERE window_id = %s", window)
    assert row["state"] == "skipped"
    assert (row["funnel"]["stale"], row["funnel"]["without_calls"]) == (4, 2)


def test_rows_are_counted_once_each_also_where_only_their_scenario_names_the_window(
    context: Context,
) -> None:
    window, other = hours_ago(2), hours_ago(3)
    add_trajectory(context, None, "a", scenarioId=f"{window}-btc")
    add_trajectory(context, None, "b", scenarioId=window, isEvaluation=True, isTrainingData=False)
    add_trajectory(context, other, "c", scenarioId=window)
    add_trajectory(context, window, "d", scenarioId="benchmark-1")
    with context.database.transaction() as tx:
        assert window_rows.count_excluded(tx, context.settings, window) == {
            "not_training_data": 1,
            "evaluation": 0,
            "excluded": 1,
            "other_agents": 0,
            "trajectories": 3,
        }


def test_only_agents_that_a_pattern_names_are_read_scored_and_trained(
    make_context: MakeContext, trainer: TrainerProcess
) -> None:
    context = make_context(agents="a-%, b\\_1,zzz")
    window = hours_ago(2)
    for n, other in enumerate(("b", "bx1", "A-1", "xa-1")):
        add_trajectory(context, window, other, stepsJson=run(1000.0 * n))
    broken = add_trajectory(context, window, "other", stepsJson="[{")
    ours = [
        add_trajectory(context, window, agent, stepsJson=run(100.0 * n))
        for n, agent in enumerate(("a-1", "a-", "b_1"))
    ]
    examined = add_trajectory(context, window, "zzz", stepsJson=run(900), isEvaluation=True)
    pipeline.produce(context)
    assert pipeline.score(context) == [window]
    assert scored_ids(context) == sorted([*ours, examined])
    assert funnel_of(context) == {"trajectories": 3, "scored": 3, "evaluations": 1, "calls": 18}
    row = one(context, "SELECT agents, trajectories FROM rl.windows")
    assert row == {"agents": 3, "trajectories": 3}
    aside = query(context, "SELECT trajectory_id FROM rl.quarantine")
    assert broken not in [each["trajectory_id"] for each in aside]
    rows = read_story(context, window, with_scores=False).rows
    assert {reason: count for reason, count in rows.items() if count} == {
        "trajectories": 9,
        "evaluation": 1,
        "other_agents": 5,
    }
    assert sorted(trained(context, trainer)) == sorted(ours)


def test_agents_that_were_taken_out_after_the_scoring_do_not_train(
    make_context: MakeContext, trainer: TrainerProcess
) -> None:
    window = hours_ago(2)
    before = make_context()
    _, *kept = add_window(before, window, agents=3)
    pipeline.produce(before)
    assert pipeline.score(before) == [window]
    after = make_context(agents="agent-1,agent-2")
    assert sorted(trained(after, trainer)) == sorted(kept)
    assert one(after, "SELECT funnel FROM rl.windows")["funnel"]["gone"] == 1


def test_a_window_without_enough_of_its_agents_says_so(make_context: MakeContext) -> None:
    context = make_context(agents="agent-0", min_agents_per_window=4)
    window = hours_ago(2)
    add_window(context, window, agents=3)
    with pytest.raises(UserError, match=r"of its 3 trajectories .* 2 of other agents$"):
        pipeline.enqueue(context, window)


def test_a_window_that_is_wanted_otherwise_after_its_claim_is_left_alone(context: Context) -> None:
    window = hours_ago(2)
    add_window(context, window)
    pipeline.produce(context)
    due = DueQuery(context.lineage.name, context.settings.scoring, list(WITHOUT_JUDGE), None)
    with context.database.transaction() as tx:
        claimed = transitions.claim_due(tx, due, context.holder, 16, 30)
    pipeline.enqueue(context, window, scoring="ruler")
    with LeaseKeeper(context, list(claimed.values())) as keeper:
        assert aio.run(score_claimed(context, keeper, claimed)) == []
    assert states(context) == {window: "due"}
    assert query(context, "SELECT * FROM rl.leases") == []
