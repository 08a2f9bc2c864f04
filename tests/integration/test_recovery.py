"""What a dead, cut-off or stopped worker leaves behind, and how the next one finds it."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from babylon_tasks import pipeline
from babylon_tasks.checkpoints import files as checkpoint_files
from babylon_tasks.errors import Final, LeaseLost, ServerUnavailable, TrainerDied, UserError
from babylon_tasks.records.steps import StepRequest, StepResult, Trainer
from babylon_tasks.scoring.run import ScoringRun
from babylon_tasks.store import leases
from babylon_tasks.store import steps as step_rows
from babylon_tasks.store.database import Database
from babylon_tasks.work.context import Context
from tests.clock import let_leases_run_out, wait_until_blocked, wait_until_ended
from tests.integration.conftest import Died
from tests.rows import add_request, add_window, hours_ago, one, query, scored_windows, states
from workers.gpu.client import OnBeat, TrainerOptions, TrainerProcess


def die(*_: Any, **__: Any) -> None:
    raise Died


def endings(context: Context, stage: str) -> list[str | None]:
    """How the attempts of a stage ended, oldest first."""
    found = query(
        context, "SELECT outcome FROM rl.attempts WHERE stage = %s ORDER BY token, window_id", stage
    )
    return [row["outcome"] for row in found]


@pytest.mark.usefixtures("dying")
def test_a_dead_scorer_costs_an_attempt_and_its_windows_are_claimed_alone(
    make_context: Callable[..., Context], monkeypatch: pytest.MonkeyPatch
) -> None:
    context = make_context(max_attempts=2)
    windows = [hours_ago(h) for h in (4, 3, 2)]
    for window in windows:
        add_window(context, window)
    pipeline.produce(context)
    real = ScoringRun._score_window

    async def poisoned(run: ScoringRun, window: Any) -> bool:
        if window.window_id == windows[1]:
            raise Died
        return await real(run, window)

    monkeypatch.setattr(ScoringRun, "_score_window", poisoned)
    with pytest.raises(Died):
        pipeline.score(context)
    assert states(context) == {windows[0]: "scored", windows[1]: "due", windows[2]: "due"}
    assert pipeline.score(context) == []  # the lease still runs
    let_leases_run_out(context)
    with pytest.raises(Died):
        pipeline.score(context)  # the poison alone
    assert pipeline.score(context) == [windows[2]]
    let_leases_run_out(context)
    assert pipeline.score(context) == []
    assert states(context)[windows[1]] == "failed"
    row = one(context, "SELECT * FROM rl.windows WHERE window_id = %s", windows[1])
    assert row["attempts"] == 2
    assert "died, or hung until its lease ran out" in row["last_error"]
    assert query(context, "SELECT * FROM rl.attempts WHERE ended_at IS NULL") == []
    assert sorted(map(str, endings(context, "score"))) == ["done", "done", "lost", "lost", "lost"]


@pytest.mark.usefixtures("dying")
def test_a_step_that_kills_its_worker_is_halved_until_the_poison_is_alone(
    make_context: Callable[..., Context], trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = make_context(max_attempts=2)
    windows = scored_windows(context, 2, 3, 4)
    poison = windows[1]
    seen: list[list[str]] = []
    real = step_rows.commit

    def kill(tx: Any, new: step_rows.Commit) -> str:
        together = [w.window_id for w in new.windows]
        seen.append(together)
        if poison in together:
            raise Died
        return real(tx, new)

    monkeypatch.setattr("babylon_tasks.store.steps.commit", kill)
    for _ in range(8):
        try:
            pipeline.train(context, trainer)
        except Died:
            let_leases_run_out(context)
    assert states(context) == {windows[0]: "trained", poison: "failed", windows[2]: "trained"}
    assert seen == [windows, windows[:2], windows[:1], [poison], windows[2:], [poison]]
    # Each dead attempt's files go with the next holder of the lease that has work.
    monkeypatch.undo()
    scored_windows(context, 5)
    assert pipeline.train(context, trainer)
    kept = query(context, "SELECT checkpoint FROM rl.steps")
    folders = Path(context.settings.checkpoint_store).resolve().glob("*/*")
    assert sorted(map(str, folders)) == sorted(row["checkpoint"] for row in kept)
    assert query(context, "SELECT * FROM rl.unfinished_checkpoints") == []


@pytest.mark.usefixtures("dying")
def test_only_the_holder_of_the_lease_removes_what_no_row_names(
    make_context: Callable[..., Context], trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another database's checkpoint under the same name is not ours to remove."""
    context = make_context()
    scored_windows(context, 2)
    with monkeypatch.context() as patch:
        patch.setattr("babylon_tasks.store.steps.commit", die)
        with pytest.raises(Died):
            pipeline.train(context, trainer)
    (orphan,) = query(context, "SELECT * FROM rl.unfinished_checkpoints")
    assert checkpoint_files.open_local(orphan["checkpoint"])
    theirs = Path(orphan["checkpoint"]).with_name("9-9")
    made = Path(context.settings.checkpoint_store) / "made"
    made.mkdir()
    (made / "weights").write_text("theirs")
    checkpoint_files.save(made, str(theirs), "another nonce")
    query(
        context,
        "INSERT INTO rl.unfinished_checkpoints VALUES (%s, 'babylon-agent', 9, gen_random_uuid())"
        " RETURNING 1",
        str(theirs),
    )
    assert pipeline.train(context, trainer) is None  # the dead one's lease still runs
    assert checkpoint_files.open_local(orphan["checkpoint"])
    let_leases_run_out(context)
    assert pipeline.train(context, trainer)
    assert not Path(orphan["checkpoint"]).exists()
    assert checkpoint_files.open_local(str(theirs))
    assert query(context, "SELECT * FROM rl.unfinished_checkpoints") == []


def test_a_stopped_worker_gives_everything_back_at_once(
    context: Context, trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Celery's cold shutdown is SystemExit, anywhere."""
    windows = scored_windows(context, 2)

    def stop(*_: Any) -> None:
        raise SystemExit(0)

    with monkeypatch.context() as patch:
        patch.setattr(TrainerProcess, "step", stop)
        with pytest.raises(SystemExit):
            pipeline.train(context, trainer)
    assert query(context, "SELECT * FROM rl.leases") == []
    assert endings(context, "train") == ["given_back"]
    assert one(context, "SELECT attempts FROM rl.windows")["attempts"] == 0
    report = pipeline.train(context, trainer)
    assert report
    assert report.window_ids == windows


def test_a_signal_while_it_gives_back_does_not_keep_the_lease(
    context: Context, trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored_windows(context, 2)
    signals = iter([True])
    real = leases.release

    def interrupted(tx: Any, held: Any) -> None:
        real(tx, held)
        if next(signals, False):
            raise SystemExit(0)

    monkeypatch.setattr("babylon_tasks.store.leases.release", interrupted)
    with pytest.raises(SystemExit):
        pipeline.train(context, trainer)
    assert query(context, "SELECT * FROM rl.leases") == []


def test_a_frozen_transaction_holds_nothing_for_long(
    context: Context,
) -> None:
    """A machine suspended in a transaction: the server ends it, and the rows are free."""
    add_window(context, hours_ago(2))
    pipeline.produce(context)
    frozen = Database(context.settings.postgres(), timeout_seconds=1)

    def freeze() -> None:
        with frozen.transaction() as tx:
            tx.execute("SELECT * FROM rl.windows FOR UPDATE")
            wait_until_ended(context.settings.postgres(), tx.info.backend_pid)
            tx.execute("SELECT 1")

    with pytest.raises(ServerUnavailable, match="lost the connection"):
        freeze()
    other = Database(context.settings.postgres())
    with other.transaction() as tx:
        tx.execute("SELECT * FROM rl.windows FOR UPDATE NOWAIT")
        with pytest.raises(ServerUnavailable, match="timeout"):
            freeze()
    for each in (frozen, other):
        each.close()


def test_nobody_takes_over_in_the_middle_of_a_commit(
    make_context: Callable[..., Context], trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine suspended in its COMMIT past its lease still owns the files that it names."""
    context, other = make_context(), make_context()
    scored_windows(context, 2)
    real = step_rows.commit
    second = TrainerProcess(TrainerOptions("noop", None, "cpu-1", 1.0, 30.0, 60.0))
    waiting: list[Future[Any]] = []

    def suspended(tx: Any, new: step_rows.Commit) -> str:
        version = real(tx, new)
        let_leases_run_out(context)
        waiting.append(pool.submit(pipeline.train, other, second))
        wait_until_blocked(context.settings.postgres())
        return version

    with ThreadPoolExecutor(1) as pool, monkeypatch.context() as patch:
        patch.setattr("babylon_tasks.store.steps.commit", suspended)
        report = pipeline.train(context, trainer)
        assert [each.result() for each in waiting] == [None]
    assert report
    assert checkpoint_files.open_local(report.checkpoint)
    assert pipeline.train(other, second) is None
    second.close()


def test_a_lost_lease_is_counted_by_the_next_holder(
    make_context: Callable[..., Context], trainer: Trainer
) -> None:
    """A step whose trainer is silent past the lease (a hung CUDA call) costs an attempt."""
    context = make_context(heartbeat_seconds=0)
    scored_windows(context, 2)

    class Hanging(Trainer):
        def step(self, request: StepRequest, on_beat: OnBeat) -> StepResult:
            let_leases_run_out(context)
            on_beat(None)
            raise AssertionError("the lease was lost")

        def close(self) -> None: ...

    with pytest.raises(LeaseLost):
        pipeline.train(context, Hanging())
    assert pipeline.train(context, trainer)
    assert endings(context, "train") == ["lost", "done"]


def test_retry_by_hand_starts_anew_and_revives_the_request(
    make_context: Callable[..., Context], trainer: Trainer
) -> None:
    context = make_context(max_attempts=1)
    add_request(context, "batch-1", hours_ago(2), "v1.0.0")
    (window,) = scored_windows(context, 2)

    class Dying(Trainer):
        def step(self, request: StepRequest, on_beat: OnBeat) -> StepResult:
            raise TrainerDied("out of memory")

        def close(self) -> None: ...

    assert pipeline.train(context, Dying()) is None
    assert states(context) == {window: "failed"}
    assert one(context, "SELECT status FROM training_batches")["status"] == "failed"
    assert pipeline.retry(context, [hours_ago(5)]) == []
    assert pipeline.retry(context, None) == [window]
    assert pipeline.retry(context, None) == []
    pipeline.score(context)
    assert pipeline.train(context, trainer)
    assert one(context, "SELECT status FROM training_batches")["status"] == "completed"
    assert endings(context, "train") == ["error", "done"]


def test_a_zombie_cannot_fail_what_another_trains(
    make_context: Callable[..., Context], trainer: Trainer
) -> None:
    """Its trainer answers «out of memory» after the lease went."""
    zombie, other = make_context(), make_context()
    (window,) = scored_windows(zombie, 2)

    class Late(Trainer):
        def step(self, request: StepRequest, on_beat: OnBeat) -> StepResult:
            let_leases_run_out(zombie)
            with other.database.transaction() as tx:
                assert leases.acquire(tx, "model/babylon-agent", "other", 30)
            raise Final("CUDA out of memory with one sequence")

        def close(self) -> None: ...

    with pytest.raises(LeaseLost):
        pipeline.train(zombie, Late())
    assert states(zombie) == {window: "scored"}


@pytest.mark.parametrize("error", [asyncpg.DataCorruptedError("damaged"), TimeoutError()])
def test_a_window_that_postgres_cannot_read_does_not_hold_up_the_others(
    make_context: Callable[..., Context],
    trainer: Trainer,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
) -> None:
    """A damaged page, or rows so large that they come too slowly."""
    context = make_context(retry_seconds=100)
    windows = scored_windows(context, 2, 3, 4)
    fail_reading(monkeypatch, windows[0], error)
    assert pipeline.train(context, trainer)
    assert pipeline.train(context, trainer)
    assert pipeline.train(context, trainer) is None
    found = states(context)
    assert [found[window] for window in windows[1:]] == ["trained", "trained"]
    assert found[windows[0]] == ("failed" if "damaged" in str(error) else "scored")
    assert (
        one(context, "SELECT attempts FROM rl.windows WHERE window_id = %s", windows[0])["attempts"]
        > 0
    )


def test_scoring_goes_on_past_a_window_that_is_slow_to_read(
    make_context: Callable[..., Context], monkeypatch: pytest.MonkeyPatch
) -> None:
    context = make_context(retry_seconds=100)
    windows = [hours_ago(h) for h in (4, 3, 2)]
    for window in windows:
        add_window(context, window)
    pipeline.produce(context)
    fail_reading(monkeypatch, windows[0], TimeoutError())
    assert pipeline.score(context) == windows[1:]
    row = one(context, "SELECT * FROM rl.windows WHERE window_id = %s", windows[0])
    assert (row["state"], row["attempts"]) == ("due", 1)
    assert "no answer in 30 s" in row["last_error"]


def fail_reading(monkeypatch: pytest.MonkeyPatch, window_id: str, error: Exception) -> None:
    """Postgres' answer to this window's rows; the rest is real."""
    real = asyncpg.Connection.execute

    async def execute(connection: Any, sql: str, *arguments: Any, **options: Any) -> str:
        if arguments[:1] == (window_id,):
            raise error
        done: str = await real(connection, sql, *arguments, **options)
        return done

    monkeypatch.setattr(asyncpg.Connection, "execute", execute)


def test_a_commit_is_tried_again_while_the_lease_lives(
    context: Context, trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step of hours must not be lost to a restart of Postgres, whatever became of the COMMIT."""
    windows = scored_windows(context, 2)
    real, fates = step_rows.commit, iter(["lost", "carried out"])

    def restart(tx: Any, new: step_rows.Commit) -> str:
        fate = next(fates, None)
        if fate == "lost":
            raise ServerUnavailable("lost the connection")
        version = real(tx, new)
        if fate == "carried out":
            tx.execute("COMMIT")
            tx.execute("BEGIN")
            raise ServerUnavailable("lost the connection")
        return version

    monkeypatch.setattr("babylon_tasks.store.steps.commit", restart)
    report = pipeline.train(context, trainer)
    assert report
    assert (report.window_ids, report.version) == (windows, "v1.0.0")
    assert len(query(context, "SELECT * FROM rl.steps")) == 1
    assert checkpoint_files.open_local(report.checkpoint)


def test_a_store_that_cannot_be_written_is_said_before_the_step(
    make_context: Callable[..., Context], trainer: Trainer, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("no folder")
    context = make_context(checkpoint_store=str(tmp_path / "file" / "store"))
    scored_windows(context, 2)

    class Untouched(Trainer):
        def step(self, request: StepRequest, on_beat: OnBeat) -> StepResult:
            raise AssertionError("hours of training in vain")

        def close(self) -> None: ...

    with pytest.raises(UserError, match="CHECKPOINT_STORE"):
        pipeline.train(context, Untouched())
    assert one(context, "SELECT attempts FROM rl.windows")["attempts"] == 0
