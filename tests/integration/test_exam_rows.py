"""Rows for exams alone: scored with their window, read by exams, and never trained."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import psycopg
import pytest

from babylon_tasks import pipeline
from babylon_tasks.records.shares import takes_share
from babylon_tasks.records.steps import Sample
from babylon_tasks.records.trainer_requests import EvaluateRequest, EvaluateResult
from babylon_tasks.records.versions import Distances, Versions
from babylon_tasks.store import windows as window_rows
from babylon_tasks.store.queries import load
from babylon_tasks.training.recipe import digest_of
from babylon_tasks.work import aio
from babylon_tasks.work.context import Context
from babylon_tasks.work.samples import Staleness, StepSamples, collect
from tests.integration.test_exams import OnBeat, Opinions, another_step, verdicts
from tests.integration.test_train import Scripted
from tests.old_release import extract_old_release
from tests.rows import add_trajectory, add_window, hours_ago, one, query, steps
from workers.gpu.client import TrainerProcess

MakeContext = Callable[..., Context]

WINDOW = hours_ago(2)  # as this was imported: an hour later it may be hours_ago(3)

_sample = msgspec.json.Decoder(Sample)
_TRAIN = """
from babylon_tasks import pipeline
from babylon_tasks.settings import Settings
from babylon_tasks.work.context import Context
from workers.trainer.noop import NoopTrainer

assert pipeline.train(Context.of_deployment(Settings(), "old:1"), NoopTrainer())
"""


def scored_apart(context: Context) -> dict[str, bool]:
    """Whether a scored trajectory is for exams alone, by trajectory id."""
    rows = query(context, "SELECT trajectory_id, exam_only FROM rl.scores")
    return {row["trajectory_id"]: row["exam_only"] for row in rows}


def trained(context: Context, trainer: TrainerProcess) -> list[str]:
    """Train a step; the ids of the trajectories that it was given."""
    found: list[Sample] = []
    report = pipeline.train(context, Scripted(trainer, lambda _, samples: found.extend(samples)))
    assert report is not None
    return sorted({sample.trajectory_id for sample in found})


def marked(context: Context) -> list[str]:
    rows = query(context, 'SELECT "trajectoryId" AS id FROM trajectories WHERE "usedInTraining"')
    return sorted(row["id"] for row in rows)


def collected(context: Context, path: Path, *, exams: bool) -> tuple[StepSamples, list[Sample]]:
    with context.database.transaction() as tx:
        windows = window_rows.read(tx, context.lineage.name, [WINDOW])
    ages = Staleness(context.settings, Versions(context.lineage.name, {}), Distances({}, 0))
    samples = aio.run(collect(context, windows, ages, path, exams=exams))
    return samples, [_sample.decode(line) for line in path.read_bytes().splitlines()]


def examined_agents(context: Context, percent: float, count: int) -> tuple[list[str], list[str]]:
    """So many agents that EXAM_PERCENT keeps for exams, and as many others."""
    apart: list[str] = []
    others: list[str] = []
    number = 0
    while min(len(apart), len(others)) < count:
        agent, number = f"agent-{number}", number + 1
        to = apart if takes_share(f"exam {context.lineage.name}", agent, percent) else others
        to.append(agent)
    return apart[:count], others[:count]


def score(context: Context) -> None:
    pipeline.produce(context)
    assert pipeline.score(context) == [WINDOW]


@pytest.mark.parametrize("training_data", [True, False])
def test_evaluations_are_scored_with_their_window_and_never_train(
    context: Context, trainer: TrainerProcess, training_data: bool
) -> None:
    ours = add_window(context, WINDOW)
    apart = add_trajectory(
        context, WINDOW, "agent-9", isEvaluation=True, isTrainingData=training_data,
        stepsJson=steps(500),
    )  # fmt: skip
    broken = add_trajectory(context, WINDOW, "agent-8", isEvaluation=True, stepsJson="[{")
    add_trajectory(context, WINDOW, "x", isEvaluation=True, scenarioId="benchmark-1")
    add_trajectory(context, hours_ago(9), "y", isEvaluation=True, scenarioId=WINDOW)
    score(context)
    assert scored_apart(context) == {**dict.fromkeys(ours, False), apart: True}
    row = one(context, "SELECT agents, trajectories, late, funnel FROM rl.windows")
    assert (row["agents"], row["trajectories"], row["late"]) == (3, 3, 0)
    assert {k: n for k, n in row["funnel"].items() if n} == {
        "trajectories": 3, "scored": 3, "calls": 9, "evaluations": 1,
    }  # fmt: skip
    assert one(context, "SELECT trajectory_id AS id FROM rl.quarantine")["id"] == broken
    assert pipeline.produce(context) == []
    assert trained(context, trainer) == sorted(ours)
    assert marked(context) == sorted(ours)
    assert one(context, "SELECT late FROM rl.windows")["late"] == 0


def test_evaluations_make_no_window_due_and_give_it_no_signal(context: Context) -> None:
    alone = hours_ago(9)
    for n in range(3):
        add_trajectory(context, alone, f"agent-{n}", isEvaluation=True)
    add_window(context, WINDOW, spread=0.0)
    add_trajectory(context, WINDOW, "agent-9", isEvaluation=True, stepsJson=steps(900))
    assert pipeline.produce(context) == [WINDOW]
    assert pipeline.score(context) == [WINDOW]
    row = one(context, "SELECT state, reason FROM rl.windows")
    assert row["state"] == "skipped"
    assert row["reason"].startswith("no signal: rewards spread 0.0000")


def test_evaluations_take_no_place_from_those_that_train(
    make_context: MakeContext, trainer: TrainerProcess
) -> None:
    context = make_context(max_per_window=3)
    ours = add_window(context, WINDOW)
    for n in range(5):
        add_trajectory(context, WINDOW, f"other-{n}", isEvaluation=True, stepsJson=steps(n))
    score(context)
    assert sorted(scored_apart(context).values()) == [False] * 3 + [True] * 3
    assert trained(context, trainer) == sorted(ours)


def test_the_share_of_the_agents_counts_in_its_window_and_never_trains(
    make_context: MakeContext, trainer: TrainerProcess
) -> None:
    context = make_context(exam_percent=30.0)
    apart, others = examined_agents(context, 30.0, 2)
    ids = {
        agent: add_trajectory(context, WINDOW, agent, stepsJson=steps(200.0 * n - 300))
        for n, agent in enumerate([*apart, *others])
    }
    score(context)
    assert scored_apart(context) == {ids[agent]: agent in apart for agent in ids}
    row = one(context, "SELECT agents, trajectories, text_bytes FROM rl.windows")
    assert (row["agents"], row["trajectories"]) == (4, 4)
    # The setting of now says nothing about a window that is scored.
    assert trained(make_context(), trainer) == sorted(ids[agent] for agent in others)
    assert marked(context) == sorted(ids[agent] for agent in others)
    funnel = one(context, "SELECT funnel FROM rl.windows")["funnel"]
    assert {k: n for k, n in funnel.items() if n and k != "sequences"} == {
        "trajectories": 4, "scored": 4, "exam_only": 2, "calls": 6,
    }  # fmt: skip


@pytest.mark.parametrize(("percent", "train"), [(0.0, True), (30.0, False)])
def test_a_window_needs_two_runs_that_train(
    make_context: MakeContext, percent: float, train: bool
) -> None:
    context = make_context(exam_percent=percent)
    apart, others = examined_agents(context, 30.0, 2)
    for n, agent in enumerate([*apart, others[0]]):
        add_trajectory(context, WINDOW, agent, stepsJson=steps(200.0 * n - 300))
    score(context)
    row = one(context, "SELECT state, reason FROM rl.windows")
    assert row == (
        {"state": "scored", "reason": None}
        if train
        else {
            "state": "skipped",
            "reason": "1 trainable trajectories, a comparison needs 2",
        }
    )


def test_exams_read_every_scored_trajectory(make_context: MakeContext, tmp_path: Path) -> None:
    context = make_context(exam_percent=30.0)
    apart, others = examined_agents(context, 30.0, 2)
    ids = {
        agent: add_trajectory(context, WINDOW, agent, stepsJson=steps(200.0 * n - 300))
        for n, agent in enumerate([*apart, *others])
    }
    evaluation = add_trajectory(context, WINDOW, "e", isEvaluation=True, stepsJson=steps(900))
    score(context)
    scores = query(context, "SELECT trajectory_id AS id, score FROM rl.scores")
    rewards = {row["id"]: row["score"] for row in scores}
    to_train = {ids[agent] for agent in others}

    for_exams, samples = collected(context, tmp_path / "exams", exams=True)
    assert {each.trajectory_id: each.reward for each in samples} == for_exams.rewards == rewards
    assert evaluation in rewards
    assert all(len(each.calls) == 3 for each in samples)

    for_training, samples = collected(context, tmp_path / "training", exams=False)
    assert {each.trajectory_id for each in samples} == for_training.rewards.keys() == to_train
    assert for_training.funnels == for_exams.funnels
    assert for_training.funnels[WINDOW]["exam_only"] == 2
    assert for_training.funnels[WINDOW]["sent"] == 6

    # A replay reads what was written as the window was scored, whatever is set now.
    collected(make_context(exam_percent=0.0), tmp_path / "again", exams=False)
    assert digest_of(tmp_path / "again") == digest_of(tmp_path / "training")


class Examiner(Opinions):
    """Remembers whose recorded answers it was asked about."""

    examined: frozenset[str] = frozenset()

    def evaluate(self, request: EvaluateRequest, on_beat: OnBeat) -> EvaluateResult:
        lines = Path(request.samples_path).read_bytes().splitlines()
        self.examined |= {_sample.decode(line).trajectory_id for line in lines}
        return super().evaluate(request, on_beat)


def test_an_exam_is_on_the_rows_that_train_and_on_those_for_exams(
    make_context: MakeContext, trainer: TrainerProcess
) -> None:
    context = make_context(publish="gate", experiment_percent=0)
    examiner = Examiner(trainer)
    first = another_step(context, examiner)
    evaluation = add_trajectory(context, hours_ago(3), "e", isEvaluation=True, stepsJson=steps(900))
    window = another_step(context, examiner)
    exam = verdicts(context)[1]
    assert (exam.state, exam.window_ids, exam.trajectories) == ("passed", [window], 9)
    found = query(
        context, 'SELECT "trajectoryId" AS id FROM trajectories WHERE "windowId" = %s', window
    )
    assert examiner.examined == {row["id"] for row in found}
    used = {
        row["id"]
        for row in query(
            context,
            """SELECT "trajectoryId" AS id FROM trajectories
                WHERE "usedInTraining" AND "windowId" <> %s""",
            first,
        )
    }
    assert used == examiner.examined - {evaluation}


def test_a_row_that_was_for_exams_at_any_time_never_trains(
    context: Context, trainer: TrainerProcess
) -> None:
    ours = add_window(context, WINDOW, agents=4)
    before = add_trajectory(context, WINDOW, "e", isEvaluation=True, stepsJson=steps(900))
    score(context)
    change = 'UPDATE trajectories SET "isEvaluation" = %s WHERE "trajectoryId" = %s RETURNING 1'
    query(context, change, False, before)
    query(context, change, True, ours[0])
    assert trained(context, trainer) == sorted(ours[1:])
    funnel = one(context, "SELECT funnel FROM rl.windows")["funnel"]
    assert funnel["gone"] == 1


def test_an_exams_row_that_was_rewritten_is_left_out_alone(
    context: Context, trainer: TrainerProcess, tmp_path: Path
) -> None:
    ours = add_window(context, WINDOW)
    apart = add_trajectory(context, WINDOW, "e", isEvaluation=True, stepsJson=steps(900))
    score(context)
    query(
        context,
        'UPDATE trajectories SET "stepsJson" = %s WHERE "trajectoryId" = %s RETURNING 1',
        steps(900, response="SELL"),
        apart,
    )
    samples, _ = collected(context, tmp_path / "exams", exams=True)
    assert sorted(samples.rewards) == sorted(ours)
    assert trained(context, trainer) == sorted(ours)


def test_a_window_is_read_by_the_two_indexes(context: Context) -> None:
    query(context, """INSERT INTO "User" (id, "updatedAt") VALUES ('nobody', now()) RETURNING 1""")
    query(
        context,
        """INSERT INTO trajectories (id, "trajectoryId", "agentId", "startTime", "endTime",
               "durationMs", "windowId", "stepsJson", "rewardComponentsJson", "metricsJson",
               "metadataJson", "totalReward", "episodeLength", "finalStatus", "isEvaluation",
               "updatedAt")
           SELECT g, g, 'nobody', now(), now(), 1, '2020-01-01T00:00', '[]', '{}', '{}', '{}', 0,
                  1, 'completed', g %% 100 = 0, now()
             FROM generate_series(1, 20000) g RETURNING 1""",
    )
    add_window(context, WINDOW)
    add_trajectory(context, WINDOW, "e", isEvaluation=True)
    with context.database.transaction() as tx:
        tx.execute("ANALYZE trajectories")
        statement = load("traces")["declare_traces"].partition("CURSOR FOR")[2]
        for number, value in enumerate([f"'{WINDOW}'", "1000", "'{}'", "NULL"], start=1):
            statement = statement.replace(f"${number}", value)
        plan = psycopg.ClientCursor(tx).execute("EXPLAIN " + statement).fetchall()
    text = "\n".join(row["QUERY PLAN"] for row in plan)
    assert "rl_trajectories_window_idx" in text, text
    assert "rl_trajectories_evaluation_idx" in text, text
    assert "Seq Scan" not in text, text


@pytest.mark.slow
def test_release_0_1_0_beside_us_trains_no_evaluation(
    context: Context, database_url: str, tmp_path: Path
) -> None:
    ours = add_window(context, WINDOW)
    apart = add_trajectory(context, WINDOW, "e", isEvaluation=True, stepsJson=steps(900))
    score(context)
    assert scored_apart(context)[apart]
    old = tmp_path / "old"
    extract_old_release(old)
    settings = context.settings
    done = subprocess.run(
        [sys.executable, "-c", _TRAIN],
        cwd=tmp_path,
        env={
            **os.environ,
            "PYTHONPATH": str(old),
            "DATABASE_URL": database_url,
            "TRAIN_RL_LOCAL": "true",
            "TRAINER": settings.trainer or "noop",
            "BASE_MODEL": settings.base_model,
            "CHECKPOINT_STORE": settings.checkpoint_store,
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert marked(context) == sorted(ours)
