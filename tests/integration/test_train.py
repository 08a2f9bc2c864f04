"""Training: the claim, the step, the commit; with a real trainer process that loads no model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import psycopg
import pytest

from babylon_tasks import pipeline
from babylon_tasks.errors import (
    CheckpointUnreadable,
    Final,
    LeaseLost,
    Retryable,
    StaleClaim,
    TrainerDied,
    UserError,
)
from babylon_tasks.records.steps import Progress, Sample, StepRequest, StepResult, Trainer
from babylon_tasks.settings import Settings
from babylon_tasks.store import steps as step_rows
from babylon_tasks.store.migrate import migrate
from babylon_tasks.work.context import Context
from tests.clock import at_half_past, let_leases_run_out, let_waits_pass
from tests.rows import (
    add_request,
    add_trajectory,
    add_window,
    hours_ago,
    one,
    query,
    scored_windows,
    states,
    steps,
)
from workers.gpu.client import TrainerOptions, TrainerProcess

OnBeat = Callable[[Progress | None], None]


class Scripted(Trainer):
    """Lets a function see each request, and do harm; then does what the noop trainer does."""

    def __init__(self, inner: Trainer, act: Callable[[StepRequest, list[Sample]], Any]) -> None:
        self.inner = inner
        self.act = act
        self.seen: list[list[str]] = []

    def step(self, request: StepRequest, on_beat: OnBeat) -> StepResult:
        lines = Path(request.samples_path).read_bytes().splitlines()
        samples = [msgspec.json.decode(line, type=Sample) for line in lines]
        self.seen.append(sorted({s.window_id for s in samples}))
        self.act(request, samples)
        return self.inner.step(request, on_beat)

    def close(self) -> None:
        self.inner.close()


def trained(context: Context, trainer: Trainer) -> list[str]:
    """The windows of the next step."""
    report = pipeline.train(context, trainer)
    return report.window_ids if report else []


def test_one_step_over_all_scored_windows_writes_everything_back(
    context: Context, trainer: Trainer
) -> None:
    windows = scored_windows(context, 2, 3)
    report = pipeline.train(context, trainer)
    assert report
    assert (report.step, report.version, report.window_ids) == (1, "v1.0.0", windows)
    assert states(context) == dict.fromkeys(windows, "trained")
    step = one(context, "SELECT * FROM rl.steps")
    assert (step["trainer"], step["window_ids"], step["trajectories"]) == ("noop", windows, 6)
    assert step["started_at"] < step["committed_at"]
    assert step["checkpoint"] == report.checkpoint
    assert (Path(report.checkpoint) / "manifest.json").exists()
    assert one(context, "SELECT step, published_step FROM rl.heads") == {
        "step": 1,
        "published_step": 0,
    }
    rows = query(context, "SELECT * FROM trajectories")
    batch = one(context, "SELECT * FROM training_batches")
    assert all(r["usedInTraining"] and r["trainedInBatch"] == batch["id"] for r in rows)
    assert all(0 <= r["aiJudgeReward"] <= 1 and r["judgedAt"] for r in rows)
    assert all("heuristic" in r["aiJudgeReasoning"] for r in rows)
    assert batch["id"] == batch["batchId"] == f"babylon-agent-step-1-{step['token']}"
    assert (batch["status"], batch["modelVersion"]) == ("completed", "v1.0.0")
    ids = json.loads(batch["trajectoryIds"])
    rewards = dict(zip(ids, json.loads(batch["rewardsJson"]), strict=True))
    assert rewards == {r["trajectoryId"]: r["aiJudgeReward"] for r in rows}
    assert batch["startedAt"] <= batch["completedAt"]
    model = one(context, "SELECT * FROM trained_models")
    assert (model["modelId"], model["version"]) == ("babylon-agent-v1.0.0", "v1.0.0")
    assert (model["status"], model["trainingBatch"]) == ("training", batch["id"])
    assert model["storagePath"] == report.checkpoint
    assert model["avgReward"] == pytest.approx(sum(rewards.values()) / 6)
    assert query(context, "SELECT * FROM rl.leases") == []


def test_a_step_says_where_its_time_and_money_went(make_context: Callable[..., Context]) -> None:
    """With a real step; its figures add up to the time between start and commit."""
    context = make_context(gpu_usd_per_hour=3.6, kl_penalty=0.0)
    scored_windows(context, 2)
    trainer = Billed(TrainerProcess(TrainerOptions("noop", None, "cpu-0", 1.0, 30.0, 60.0)))
    try:
        report = pipeline.train(context, trainer)
    finally:
        trainer.close()
    assert report
    row = one(context, "SELECT *, committed_at - started_at AS took FROM rl.steps")
    assert set(row["seconds"]) == {
        "claim", "read", "start", "load", "forward_backward", "optimizer", "checkpoint", "commit"
    }  # fmt: skip
    assert all(seconds >= 0 for seconds in row["seconds"].values())
    assert sum(row["seconds"].values()) == pytest.approx(row["took"].total_seconds(), abs=0.01)
    assert row["gpu_seconds"] == 50.0
    assert float(row["cost_usd"]) == pytest.approx(0.05)  # 50 s at $3.60 an hour
    assert row["tokens_per_second"] == pytest.approx(1000 / (0.0004 + 0.0001))
    assert (row["mfu"], row["peak_memory_bytes"]) == (0.25, 2**33)
    elsewhere = {"seconds_by_phase", "mfu", "cost_usd", "base_revision", "packages", "type"}
    assert not elsewhere & set(row["metrics"])


class Billed(Trainer):
    """The noop trainer, with the figures of a GPU."""

    def __init__(self, inner: Trainer) -> None:
        self._inner = inner

    def step(self, request: StepRequest, on_beat: OnBeat) -> StepResult:
        result = self._inner.step(request, on_beat)
        return msgspec.structs.replace(
            result,
            context_tokens=1000,
            gpu_seconds=50.0,
            seconds_by_phase={"forward_backward": 0.0004, "optimizer": 0.0001},
            mfu=0.25,
            peak_memory_bytes=2**33,
        )

    def close(self) -> None:
        self._inner.close()


def test_publishing_is_a_step_of_its_own(context: Context, trainer: Trainer) -> None:
    scored_windows(context, 2)
    pipeline.train(context, trainer)
    assert pipeline.publish(context) == ["v1.0.0"]
    assert pipeline.publish(context) == []
    assert one(context, "SELECT status FROM trained_models")["status"] == "deployed"
    assert one(context, "SELECT published_step FROM rl.heads")["published_step"] == 1


def test_steps_follow_one_another_from_the_last_checkpoint(
    context: Context, trainer: Trainer
) -> None:
    parents: list[str | None] = []
    scripted = Scripted(trainer, lambda request, _: parents.append(request.parent))
    for hours in (4, 3, 2):
        scored_windows(context, hours)
        pipeline.train(context, scripted)
    found = query(context, "SELECT step, token, version, checkpoint FROM rl.steps ORDER BY step")
    assert [f["version"] for f in found] == ["v1.0.0", "v1.0.1", "v1.0.2"]
    assert parents == [None, found[0]["checkpoint"], found[1]["checkpoint"]]
    assert [f["token"] for f in found] == sorted({f["token"] for f in found})


def test_nothing_is_trained_twice(make_context: Callable[..., Context]) -> None:
    """Ten GPU workers rung at once: one claim wins, and every window trains once."""
    workers = [make_context() for _ in range(10)]
    scored_windows(workers[0], *range(2, 8))
    trainers = [
        TrainerProcess(TrainerOptions("noop", None, f"cpu-{n}", 1.0, 30.0, 60.0)) for n in range(10)
    ]
    with ThreadPoolExecutor(10) as pool:
        reports = [r for r in pool.map(pipeline.train, workers, trainers) if r]
    for each in trainers:
        each.close()
    done = [w for r in reports for w in r.window_ids]
    assert sorted(done) == sorted(hours_ago(h) for h in range(2, 8))
    assert [r["step"] for r in query(workers[0], "SELECT step FROM rl.steps ORDER BY 1")] == list(
        range(1, len(reports) + 1)
    )


def test_tokens_cut_a_step(make_context: Callable[..., Context], trainer: Trainer) -> None:
    context = make_context(max_step_tokens=1)
    windows = scored_windows(context, 2, 3)
    assert trained(context, trainer) == windows[:1]
    assert trained(context, trainer) == windows[1:]


def test_a_zombie_writes_nothing(make_context: Callable[..., Context], trainer: Trainer) -> None:
    """A node is cut off past its lease while it trains; another one trains the window."""
    zombie, other = make_context(), make_context()
    windows = scored_windows(zombie, 2)

    def overtaken(request: StepRequest, samples: list[Sample]) -> None:
        let_leases_run_out(zombie)
        with ThreadPoolExecutor(1) as elsewhere:
            second = TrainerProcess(TrainerOptions("noop", None, "cpu-1", 1.0, 30.0, 60.0))
            report = elsewhere.submit(pipeline.train, other, second).result()
            second.close()
            assert report
            assert report.window_ids == windows

    with pytest.raises(StaleClaim):
        pipeline.train(zombie, Scripted(trainer, overtaken))
    step = one(other, "SELECT checkpoint FROM rl.steps")
    folders = list(Path(other.settings.checkpoint_store).resolve().glob("*/*"))
    assert [str(f) for f in folders] == [step["checkpoint"]]
    assert len(query(other, "SELECT * FROM trained_models")) == 1


def test_a_lost_lease_ends_the_step_early(
    make_context: Callable[..., Context], trainer: Trainer
) -> None:
    context = make_context(heartbeat_seconds=0.001)
    scored_windows(context, 2)

    def steal(*_: Any) -> None:
        query(context, "UPDATE rl.leases SET token = nextval('rl.lease_tokens') RETURNING 1")

    with pytest.raises(LeaseLost):
        pipeline.train(context, Scripted(trainer, steal))
    assert states(context) == {hours_ago(2): "scored"}
    assert query(context, "SELECT * FROM rl.steps") == []


def test_a_commit_is_refused_when_a_window_was_scored_again(
    context: Context, trainer: Trainer
) -> None:
    scored_windows(context, 2)

    def rescore(*_: Any) -> None:
        query(context, "UPDATE rl.windows SET score_rev = score_rev + 1 RETURNING 1")

    with pytest.raises(StaleClaim):
        pipeline.train(context, Scripted(trainer, rescore))
    assert query(context, "SELECT * FROM rl.steps") == []
    assert one(context, "SELECT step FROM rl.heads")["step"] == 0
    assert query(context, "SELECT * FROM training_batches") == []
    assert not list(Path(context.settings.checkpoint_store).glob("*/*"))


def test_a_rewritten_trace_is_scored_again(context: Context, trainer: Trainer) -> None:
    window, other = hours_ago(3), hours_ago(2)
    (first, *_) = add_window(context, window)
    add_window(context, other)
    pipeline.produce(context)
    pipeline.score(context)
    query(context, 'UPDATE trajectories SET "stepsJson" = %s WHERE "trajectoryId" = %s RETURNING 1',
          steps(-200, response="SELL"), first)  # fmt: skip
    assert trained(context, trainer) == [other]
    assert states(context) == {window: "due", other: "trained"}
    pipeline.score(context)
    assert trained(context, trainer) == [window]
    assert one(context, "SELECT score_rev FROM rl.windows WHERE window_id = %s", window) == {
        "score_rev": 2
    }


def test_traces_that_are_gone_or_late_do_not_train(context: Context, trainer: Trainer) -> None:
    window = hours_ago(2)
    (gone, *kept) = add_window(context, window, agents=4)
    pipeline.produce(context)
    pipeline.score(context)
    add_trajectory(context, window, "late")
    query(context, 'DELETE FROM trajectories WHERE "trajectoryId" = %s RETURNING 1', gone)
    trained: list[str] = []
    scripted = Scripted(
        trainer, lambda _, samples: trained.extend(s.trajectory_id for s in samples)
    )
    pipeline.train(context, scripted)
    assert sorted(trained) == sorted(kept)


def test_a_window_left_with_too_few_traces_is_skipped(context: Context, trainer: Trainer) -> None:
    window = hours_ago(2)
    (*gone, _) = add_window(context, window)
    pipeline.produce(context)
    pipeline.score(context)
    query(context, 'DELETE FROM trajectories WHERE "trajectoryId" = ANY (%s) RETURNING 1', gone)
    assert pipeline.train(context, trainer) is None
    row = one(context, "SELECT state, reason FROM rl.windows")
    assert row == {"state": "skipped", "reason": "1 trainable trajectories, a comparison needs 2"}


def test_a_failing_step_is_halved_until_the_poison_is_alone(
    make_context: Callable[..., Context], trainer: Trainer
) -> None:
    context = make_context(max_attempts=2)
    windows = scored_windows(context, 2, 3, 4, 5)
    poison = windows[2]

    def die(_: StepRequest, samples: list[Sample]) -> None:
        if poison in {s.window_id for s in samples}:
            raise TrainerDied("the trainer was ended by SIGKILL")

    scripted = Scripted(trainer, die)
    assert trained(context, scripted) == windows[:2]
    assert scripted.seen == [windows, windows, windows[:2]]
    assert trained(context, scripted) == windows[3:]
    row = one(context, "SELECT * FROM rl.windows WHERE window_id = %s", poison)
    assert (row["state"], row["attempts"]) == ("scored", 1)
    assert trained(context, scripted) == []
    row = one(context, "SELECT * FROM rl.windows WHERE window_id = %s", poison)
    assert (row["state"], row["attempts"]) == ("failed", 2)
    assert row["last_error"] == "TrainerDied: the trainer was ended by SIGKILL"
    assert row["failed_at"] is not None


def test_a_dead_trainer_is_tried_again_at_once(context: Context, trainer: Trainer) -> None:
    windows = scored_windows(context, 2, 3)
    deaths = iter([True])

    def die_once(*_: Any) -> None:
        if next(deaths, False):
            raise TrainerDied("the trainer was ended by SIGKILL")

    assert trained(context, Scripted(trainer, die_once)) == windows
    told = query(context, "SELECT outcome FROM rl.attempts WHERE stage = 'train' ORDER BY token")
    assert [t["outcome"] for t in told] == ["error", "error", "done", "done"]
    assert one(context, "SELECT max(attempts) AS n FROM rl.windows")["n"] == 0


def test_an_unexpected_fault_of_the_trainer_is_counted_as_its_death_is(
    context: Context, trainer: Trainer
) -> None:
    scored_windows(context, 2)

    def fault(*_: Any) -> None:
        raise Retryable("AssertionError: odd tensor")

    assert pipeline.train(context, Scripted(trainer, fault)) is None
    assert one(context, "SELECT attempts FROM rl.windows")["attempts"] == 3
    assert states(context) == {hours_ago(2): "failed"}


def test_a_version_taken_behind_our_back_leaves_no_trace_and_waits(
    make_context: Callable[..., Context], trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = make_context(retry_seconds=100)
    scored_windows(context, 3)
    pipeline.train(context, trainer)
    scored_windows(context, 2)
    monkeypatch.setattr("babylon_tasks.store.steps.choose_version", lambda *_: "v1.0.0")
    assert pipeline.train(context, trainer) is None
    assert one(context, "SELECT max(attempts) AS n FROM rl.windows")["n"] == 2
    assert len(list(Path(context.settings.checkpoint_store).glob("*/*"))) == 1
    assert pipeline.train(context, trainer) is None
    assert states(context)[hours_ago(2)] == "scored"
    assert query(context, "SELECT * FROM rl.leases") == []


def test_our_tables_may_be_made_anew_beside_old_batches(context: Context, trainer: Trainer) -> None:
    scored_windows(context, 3)
    pipeline.train(context, trainer)
    with context.database.transaction() as tx:
        tx.execute("DROP SCHEMA rl CASCADE")
    migrate(context.settings.postgres())
    scored_windows(context, 2)
    report = pipeline.train(context, trainer)
    assert report
    assert report.version == "v1.0.1"


def test_final_errors_end_a_window_at_once(context: Context, trainer: Trainer) -> None:
    scored_windows(context, 2)

    def refuse(*_: Any) -> None:
        raise Final("CUDA out of memory with one sequence")

    assert pipeline.train(context, Scripted(trainer, refuse)) is None
    assert states(context) == {hours_ago(2): "failed"}


def test_attempts_wait_longer_each_time(
    make_context: Callable[..., Context], trainer: Trainer
) -> None:
    context = make_context(retry_seconds=100, max_attempts=9)
    scored_windows(context, 2)

    def die(*_: Any) -> None:
        raise TrainerDied("gone")

    waits = []
    for _ in range(3):
        pipeline.train(context, Scripted(trainer, die))
        row = one(context, "SELECT not_before - rl.now() AS wait FROM rl.windows")
        waits.append(round(row["wait"].total_seconds(), -2))
        assert pipeline.train(context, Scripted(trainer, die)) is None
        let_waits_pass(context)
    assert waits == [200, 400, 800]


def test_a_machine_that_cannot_train_gives_the_claim_back(
    context: Context, trainer: Trainer
) -> None:
    scored_windows(context, 2)

    def missing(*_: Any) -> None:
        raise UserError("ART is not installed: pip install 'babylon-tasks[train]'")

    with pytest.raises(UserError, match="not installed"):
        pipeline.train(context, Scripted(trainer, missing))
    row = one(context, "SELECT state, attempts, last_error FROM rl.windows")
    assert row["state"] == "scored"
    assert row["attempts"] == 0
    assert "not installed" in row["last_error"]
    assert query(context, "SELECT * FROM rl.leases") == []


def test_an_unreadable_head_gives_the_claim_back(context: Context, trainer: Trainer) -> None:
    scored_windows(context, 3)
    pipeline.train(context, trainer)
    shutil.rmtree(context.settings.checkpoint_store)
    scored_windows(context, 2)
    with pytest.raises(CheckpointUnreadable, match="CHECKPOINT_STORE"):
        pipeline.train(context, trainer)
    assert states(context)[hours_ago(2)] == "scored"


def test_another_base_model_is_refused(
    make_context: Callable[..., Context], trainer: Trainer
) -> None:
    context, other = make_context(), make_context(base_model="something/else")
    scored_windows(context, 3)
    pipeline.train(context, trainer)
    scored_windows(context, 2)
    with pytest.raises(UserError, match="MODEL_NAME"):
        pipeline.train(other, trainer)
    assert query(context, "SELECT * FROM rl.leases") == []


def test_nothing_trains_without_permission(
    make_context: Callable[..., Context], trainer: Trainer
) -> None:
    context = make_context(train_rl_local=False)
    scored_windows(context, 2)
    with pytest.raises(UserError, match="TRAIN_RL_LOCAL=true"):
        pipeline.train(context, trainer)


def test_a_commit_whose_answer_was_lost_is_looked_up(
    context: Context, trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection goes down after COMMIT was carried out: the row with our token decides."""
    scored_windows(context, 2)
    real = step_rows.commit

    def then_cut(tx: Any, new: Any) -> str:
        version = real(tx, new)
        tx.execute("COMMIT")
        tx.execute("BEGIN")
        pid = tx.info.backend_pid
        with ThreadPoolExecutor(1) as elsewhere:

            def cut() -> None:
                with psycopg.connect(context.settings.postgres(), autocommit=True) as killer:
                    killer.execute("SELECT pg_terminate_backend(%s)", [pid])

            elsewhere.submit(cut).result()
        tx.execute("SELECT 1")
        return version

    monkeypatch.setattr("babylon_tasks.store.steps.commit", then_cut)
    report = pipeline.train(context, trainer)
    assert report
    assert report.version == "v1.0.0"
    assert (Path(report.checkpoint) / "manifest.json").exists()


def test_two_models_on_one_database_do_not_meet(
    make_context: Callable[..., Context], trainer: Trainer
) -> None:
    first, second = make_context(), make_context(model_name="other-agent")
    window = hours_ago(2)
    add_window(first, window)
    for each in (first, second):
        pipeline.produce(each)
        pipeline.score(each)
        report = pipeline.train(each, trainer)
        assert report
        assert report.step == 1
    versions = {m["modelId"] for m in query(first, "SELECT * FROM trained_models")}
    assert versions == {"babylon-agent-v1.0.0", "other-agent-v1.0.1"}


def test_a_model_beside_the_primary_leaves_the_apps_tables_alone(
    make_context: Callable[..., Context], trainer: Trainer
) -> None:
    context = make_context(primary=False, model_name="experiment")
    add_request(context, "batch-1", hours_ago(9), "v1.0.0")
    for hours in (3, 2):
        scored_windows(context, hours)
        pipeline.train(context, trainer)
    assert pipeline.publish(context) == ["v1.0.0", "v1.0.1"]
    assert one(context, "SELECT status FROM training_batches")["status"] == "pending"
    assert query(context, "SELECT * FROM trained_models") == []
    assert query(context, 'SELECT * FROM trajectories WHERE "usedInTraining"') == []


def test_requests_are_attached_trained_alone_and_answered(
    context: Context, trainer: Trainer
) -> None:
    asked, plain = hours_ago(2), hours_ago(3)
    add_request(context, "batch-7", asked, "v3.1.4")
    add_window(context, plain)
    assert pipeline.produce(context) == [
        plain,
    ]
    add_window(context, asked)
    query(context, "UPDATE training_batches SET status = 'pending', error = NULL RETURNING 1")
    pipeline.produce(context)
    pipeline.score(context)
    report = pipeline.train(context, trainer)
    assert report
    assert (report.window_ids, report.version) == ([asked], "v3.1.4")
    row = one(context, """SELECT * FROM training_batches WHERE "batchId" = 'batch-7'""")
    assert (row["status"], row["modelVersion"]) == ("completed", "v3.1.4")
    assert row["trainingLoss"] is not None
    model = one(context, "SELECT * FROM trained_models")
    assert (model["trainingBatch"], model["modelId"]) == ("batch-7", "babylon-agent-v3.1.4")
    used = one(
        context,
        """SELECT count(*) AS n FROM trajectories
                          WHERE "trainedInBatch" = 'batch-7' AND "usedInTraining" """,
    )
    assert used["n"] == 3


def test_a_request_waits_for_the_unfinished_hour(context: Context) -> None:
    at_half_past(context)
    add_request(context, "batch-8", hours_ago(0), "v1.0.0")
    add_window(context, hours_ago(0))
    assert pipeline.produce(context) == []
    assert one(context, "SELECT status FROM training_batches")["status"] == "pending"


@pytest.mark.parametrize(
    ("window", "says"),
    [
        (None, "scenarioId must name a window"),
        ("latest", "scenarioId must name a window"),
        ("2025-01-15T10:00", "no trajectories in window"),
    ],
)
def test_a_request_that_cannot_be_met_fails_with_the_reason(
    context: Context, window: str | None, says: str
) -> None:
    add_request(context, "batch-9", window, "v1.0.0")
    pipeline.produce(context)
    row = one(context, "SELECT status, error FROM training_batches")
    assert row["status"] == "failed"
    assert says in row["error"]


def test_a_request_for_a_trained_window_is_done_at_once(context: Context, trainer: Trainer) -> None:
    (window,) = scored_windows(context, 2)
    pipeline.train(context, trainer)
    add_request(context, "batch-10", window, "v1.0.1")
    pipeline.produce(context)
    row = one(context, """SELECT * FROM training_batches WHERE "batchId" = 'batch-10'""")
    assert (row["status"], row["modelVersion"]) == ("completed", "v1.0.0")


def test_a_taken_version_is_replaced_by_the_next_and_written_back(
    context: Context, trainer: Trainer
) -> None:
    scored_windows(context, 3)
    pipeline.train(context, trainer)
    window = hours_ago(2)
    add_window(context, window)
    add_request(context, "batch-11", window, "v1.0.0")
    pipeline.produce(context)
    pipeline.score(context)
    pipeline.train(context, trainer)
    row = one(context, """SELECT * FROM training_batches WHERE "batchId" = 'batch-11'""")
    assert row["modelVersion"] == "v1.0.1"


def test_the_sweep_finds_what_is_due_and_unheld(context: Context, trainer: Trainer) -> None:
    add_window(context, hours_ago(2))
    pipeline.produce(context)
    bells = pipeline.sweep(context, 10)
    assert (bells.due, bells.train, bells.publish) == ([hours_ago(2)], False, [])
    pipeline.score(context)
    bells = pipeline.sweep(context, 10)
    assert (bells.due, bells.train, bells.publish) == ([], True, [])
    pipeline.train(context, trainer)
    bells = pipeline.sweep(context, 10)
    assert (bells.due, bells.train, bells.publish) == ([], False, ["babylon-agent"])
    pipeline.publish(context)
    bells = pipeline.sweep(context, 10)
    assert (bells.due, bells.train, bells.publish) == ([], False, [])


def test_the_whole_chain_on_a_database_that_prisma_made(
    fresh_database: str, settings: Settings, trainer: Trainer
) -> None:
    prisma = Path(__file__).parents[1] / "data" / "prisma_babylon.sql"
    with psycopg.connect(fresh_database, autocommit=True) as connection:
        connection.execute(prisma.read_bytes())
    migrate(fresh_database)
    mine = Settings.model_validate({**settings.model_dump(), "database_url": fresh_database})
    context = Context.of_deployment(mine, "test:1")
    windows = scored_windows(context, 2, 3)
    report = pipeline.train(context, trainer)
    assert report
    assert report.window_ids == windows
    assert pipeline.publish(context) == ["v1.0.0"]
    assert one(context, "SELECT status FROM trained_models")["status"] == "deployed"
    context.database.close()
