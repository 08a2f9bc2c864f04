"""No reward by absence: what a version of the lineage did badly gets the lowest reward."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
from msgspec import UNSET

from babylon_tasks import pipeline
from babylon_tasks.cli.window_screen import funnel_lines, version_lines
from babylon_tasks.cockpit.story import read_story
from babylon_tasks.records.steps import Sample
from babylon_tasks.records.versions import Distances, Versions
from babylon_tasks.scoring.compare import choose_windows, compare
from babylon_tasks.store import steps
from babylon_tasks.store import windows as window_rows
from babylon_tasks.training.recipe import digest_of
from babylon_tasks.work import aio
from babylon_tasks.work.context import Context
from babylon_tasks.work.samples import Staleness, collect
from tests import judge_server
from tests.integration.test_filters import call, funnel_of, run, scored_ids
from tests.integration.test_train import Scripted
from tests.rows import add_trajectory, commit_steps, hours_ago, one, query, states
from workers.gpu.client import TrainerProcess
from workers.watch.step_log import wandb_metrics

MakeContext = Callable[..., Context]


def by(version: str | None, steps_json: str) -> str:
    """The same `stepsJson`, every call of it by this version."""
    recorded = json.loads(steps_json)
    for step in recorded:
        for each in step["llmCalls"]:
            if version is not None:
                each["modelVersion"] = version
    return json.dumps(recorded)


def scores_of(context: Context, window: str) -> dict[str, float]:
    rows = query(context, "SELECT trajectory_id, score FROM rl.scores WHERE window_id = %s", window)
    return {row["trajectory_id"]: row["score"] for row in rows}


def trained(context: Context, trainer: TrainerProcess) -> list[Sample]:
    found: list[Sample] = []
    report = pipeline.train(context, Scripted(trainer, lambda _, samples: found.extend(samples)))
    assert report is not None
    return found


def collected_again(context: Context, window: str, folder: Path) -> str:
    """The digest of the samples that a replay of step 2 would read."""
    name = context.lineage.name
    with context.database.transaction() as tx:
        windows = window_rows.read(tx, name, [window])
        versions = Versions(name, {("babylon-agent", "v1.0.0"): 1})
        staleness = Staleness(context.settings, versions, Distances(steps.parents(tx, name), 1))
    path = folder / "samples.jsonl"
    aio.run(collect(context, windows, staleness, path))
    return digest_of(path).sha256


@pytest.mark.parametrize("scoring", ["heuristic", "correctness"])
def test_a_version_that_fails_on_purpose_gets_the_lowest_reward(
    make_context: MakeContext, trainer: TrainerProcess, scoring: str
) -> None:
    commit_steps(make_context(), trainer, 1)  # v1.0.0
    context = make_context(scoring=scoring, min_actions=3)
    window = hours_ago(9)
    good = [
        add_trajectory(context, window, f"a{n}", stepsJson=by("gpt-4o", run(200.0 * n, 6 + n, n)))
        for n in range(3)
    ]
    # They would have the best scores, if they were scored.
    failed = add_trajectory(context, window, "b", stepsJson=by("v1.0.0", run(900, 4, 3)))
    short = add_trajectory(context, window, "c", stepsJson=by("babylon-agent@1", run(900, 2)))
    base = add_trajectory(context, window, "d", stepsJson=by("babylon-agent@0", run(900, 2)))
    others = [
        add_trajectory(context, window, "e", stepsJson=by(version, run(900, 4, 3)))
        for version in ("gpt-4o", "v9.9.9", None)
    ]
    pipeline.produce(context)
    assert pipeline.score(context) == [window]
    scores = scores_of(context, window)
    assert sorted(scores) == sorted([*good, failed, short, base])
    lowest = min(scores[each] for each in good)
    assert scores[failed] == scores[short] == scores[base] == lowest < max(scores.values())
    row = one(context, "SELECT * FROM rl.scores WHERE trajectory_id = %s", failed)
    assert row["reasoning"].startswith("3 of 4 actions failed: a version of this lineage did this")
    assert row["components"] == {"floored": 1.0}
    assert not set(others) & set(scores)
    (again,) = compare(context, choose_windows(context, [window], 1), lambda line: None).windows
    assert (again.compared, again.moves, again.after) == (6, [], "scored")
    assert set(asdict(again.differences).values()) == {0}
    samples = trained(context, trainer)
    assert {each.trajectory_id: each.reward for each in samples} == scores
    used = query(context, 'SELECT "trajectoryId" AS id FROM trajectories WHERE "usedInTraining"')
    assert {*good, failed, short, base} <= {each["id"] for each in used}
    row = one(context, "SELECT funnel, by_version FROM rl.windows WHERE window_id = %s", window)
    assert row["by_version"] == {
        "babylon-agent@0": {"runs": 1, "calls": 2, "badly": 2},
        "v1.0.0": {"runs": 2, "calls": 4 + 2, "badly": 6},
    }
    funnel = row["funnel"]
    assert (funnel["trajectories"], funnel["failed_actions"], funnel["scored"]) == (9, 3, 6)
    assert (funnel["floored_runs"], funnel["floored_calls"]) == (3, 0)
    with context.database.transaction() as tx:
        *_, step = steps.to_log(tx, context.lineage.name, 9)
    told = wandb_metrics(step)
    assert (told["data/badly_share"], told["data/floored_runs"]) == (1.0, 3.0)
    assert funnel["calls"] == funnel["sequences"] + funnel["no_advantage"] == 6 + 7 + 8 + 4 + 2 + 2


def test_bad_calls_of_a_version_train_beside_the_good_ones(
    context: Context, trainer: TrainerProcess, tmp_path: Path
) -> None:
    commit_steps(context, trainer, 1)
    window = hours_ago(9)
    own = {"modelVersion": "v1.0.0"}
    cut = call("BUY, for", finish_reason="length", **own)
    mixed = add_trajectory(
        context, window, "a", stepsJson=run(300, 3, 0, call("", **own), cut, call(" "), call("{"))
    )
    silent = json.loads(run(100, 2))
    for step in silent:
        step["llmCalls"] = [call("", **own)]
    bad_only = add_trajectory(context, window, "b", stepsJson=json.dumps(silent))
    worst = add_trajectory(context, window, "c", stepsJson=by("gpt-4o", run(-400, 3)))
    other = add_trajectory(
        context, window, "d", stepsJson=run(200, 3, 0, call("", modelVersion="gpt-4o"))
    )
    pipeline.produce(context)
    assert pipeline.score(context) == [window]
    scores = scores_of(context, window)
    samples = trained(context, trainer)
    rewards = [
        (each.trajectory_id, [call.ended for call in each.calls], each.reward)
        for each in samples
        if each.calls[0].ended is not UNSET
    ]
    assert rewards == [(mixed, [True, False], scores[worst]), (bad_only, [True], scores[worst])]
    good = {each.trajectory_id: each.reward for each in samples if each.calls[0].ended is UNSET}
    assert good == {name: scores[name] for name in (mixed, worst, other)}
    # Each trajectory counts once, with its own score where it has one to train.
    report = one(context, "SELECT trajectories, recipe FROM rl.steps WHERE step = 2")
    assert report["trajectories"] == report["recipe"]["samples"]["trajectories"] == 4
    assert collected_again(context, window, tmp_path) == report["recipe"]["samples"]["sha256"]
    # The silent run's second call is the first once more: the app records some calls twice.
    row = one(context, "SELECT funnel, by_version FROM rl.windows WHERE window_id = %s", window)
    funnel = row["funnel"]
    assert (funnel["empty"], funnel["truncated"], funnel["floored_calls"]) == (3, 1, 3)
    assert (funnel["calls"], funnel["sequences"]) == (7 + 2 + 3 + 4, 16 - 4)
    assert row["by_version"] == {"v1.0.0": {"runs": 2, "calls": 2 + 2, "badly": 3}}
    story = read_story(context, window, with_scores=False)
    shown = {line.label: line.text for line in funnel_lines(story.rows, story.row["funnel"])}
    assert shown["calls"].startswith("16 (3 done badly)")
    (line,) = version_lines(story.row["by_version"])
    assert line.text == "2 runs, 4 calls, 3 of them done badly (75%)"


def test_without_versions_everything_is_as_it_was(
    context: Context, trainer: TrainerProcess
) -> None:
    window = hours_ago(2)
    first = add_trajectory(context, window, "a", stepsJson=run(-200, 3, 0, call(""), call("{")))
    second = add_trajectory(context, window, "b", stepsJson=run(300, 3))
    add_trajectory(context, window, "c", stepsJson=run(300, 4, 3))
    pipeline.produce(context)
    pipeline.score(context)
    assert scored_ids(context) == sorted([first, second])
    assert funnel_of(context)["failed_actions"] == 1
    samples = trained(context, trainer)
    assert [(each.trajectory_id, len(each.calls)) for each in samples] == [(first, 3), (second, 3)]
    assert one(context, "SELECT by_version FROM rl.windows")["by_version"] == {}


def test_a_window_of_bad_runs_alone_is_skipped(context: Context, trainer: TrainerProcess) -> None:
    commit_steps(context, trainer, 1)
    window = hours_ago(9)
    for n in range(3):
        failed = by("v1.0.0", run(100.0 * n, 4, 4))
        add_trajectory(context, window, f"a{n}", stepsJson=failed)
    pipeline.produce(context)
    pipeline.score(context)
    assert states(context)[window] == "skipped"
    row = one(context, "SELECT reason, by_version FROM rl.windows WHERE window_id = %s", window)
    assert row["reason"].startswith("0 trajectories to score, a comparison needs 2")
    assert row["by_version"] == {"v1.0.0": {"runs": 3, "calls": 12, "badly": 12}}


def test_no_judge_sees_or_is_paid_for_a_bad_run(
    make_judged: MakeContext, server: judge_server.JudgeServer, trainer: TrainerProcess
) -> None:
    commit_steps(make_judged(scoring="heuristic"), trainer, 1)
    window = hours_ago(9)
    context = make_judged()
    good = [add_trajectory(context, window, f"a{n}", stepsJson=run(200.0 * n, 6)) for n in range(4)]
    failed = add_trajectory(context, window, "b", stepsJson=by("v1.0.0", run(900, 4, 3)))
    pipeline.produce(context)
    assert pipeline.score(context) == [window]
    assert {len(asked.ids) for asked in server.requests} == {4}
    scores = scores_of(context, window)
    assert sorted(scores) == sorted([*good, failed])
    assert scores[failed] == min(scores[each] for each in good)
    # The app is told the score, and no judgment, since there was none.
    told = query(context, 'SELECT "trajectoryId" AS id FROM reward_judgments')
    assert sorted(each["id"] for each in told) == good
    reward = one(
        context, 'SELECT "aiJudgeReward" AS r FROM trajectories WHERE "trajectoryId" = %s', failed
    )
    assert reward["r"] == scores[failed]
