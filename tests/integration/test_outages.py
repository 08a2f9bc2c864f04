"""An outage of Postgres costs no step and no attempt, also one that is longer than the leases."""

from __future__ import annotations

import importlib
import threading
from collections.abc import Callable
from typing import Any

import pytest
from asyncpg.prepared_stmt import PreparedStatement
from psycopg import sql

from babylon_tasks import pipeline
from babylon_tasks.errors import LeaseLost, ServerUnavailable, StaleClaim
from babylon_tasks.records.steps import StepRequest, StepResult, Trainer
from babylon_tasks.scoring.run import ScoringRun
from babylon_tasks.store import attempts, scores
from babylon_tasks.work.context import Context
from tests.clock import let_leases_run_out
from tests.judge_server import JudgeServer
from tests.outage import Outage
from tests.rows import add_request, add_window, hours_ago, one, query, scored_windows, states
from workers.gpu.client import OnBeat


def outcomes(context: Context, stage: str) -> list[str | None]:
    rows = query(context, "SELECT outcome FROM rl.attempts WHERE stage = %s ORDER BY token", stage)
    return [row["outcome"] for row in rows]


def at_call(monkeypatch: pytest.MonkeyPatch, path: str, harm: Callable[[], None]) -> None:
    """Do harm before each call of a function."""
    module, name = path.rsplit(".", 1)
    real = getattr(importlib.import_module(module), name)

    def wrapped(*arguments: Any, **options: Any) -> Any:
        harm()
        return real(*arguments, **options)

    monkeypatch.setattr(path, wrapped)


def once(harm: Callable[[], None]) -> Callable[[], None]:
    done: list[bool] = []

    def first() -> None:
        if not done:
            done.append(True)
            harm()

    return first


# --- training -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "moment",
    [
        "babylon_tasks.store.steps.begin_checkpoint",
        "babylon_tasks.checkpoints.files.save",
        "babylon_tasks.store.training_batches.read",
        "babylon_tasks.store.steps.commit",
        "babylon_tasks.store.attempts.end",  # in the commit, and when the lease is given back
    ],
)
def test_a_step_is_committed_when_postgres_is_back(
    make_context: Callable[..., Context],
    trainer: Trainer,
    monkeypatch: pytest.MonkeyPatch,
    moment: str,
) -> None:
    """The outage was longer than the lease, and one attempt that counts would end the window."""
    context = make_context(max_attempts=1, heartbeat_seconds=0.05)
    window = hours_ago(2)
    add_window(context, window)
    add_request(context, "batch-1", window, "v2.0.0")
    pipeline.produce(context)
    pipeline.score(context)
    at_call(monkeypatch, moment, once(Outage(context).begin))
    report = pipeline.train(context, trainer)
    assert report
    assert report.version == "v2.0.0"
    assert states(context) == {window: "trained"}
    assert outcomes(context, "train") == ["done"]
    assert query(context, "SELECT * FROM rl.leases") == []
    assert query(context, "SELECT * FROM rl.unfinished_checkpoints") == []


@pytest.mark.parametrize(
    "moment", ["steps.begin_checkpoint", "steps.commit", "heads.advance", "attempts.end"]
)
def test_an_answer_that_comes_after_the_lease_ran_out_costs_no_step(
    make_context: Callable[..., Context],
    trainer: Trainer,
    monkeypatch: pytest.MonkeyPatch,
    moment: str,
) -> None:
    """A network that was cut for a while: no connection breaks, the server's answer is late."""
    context = make_context(max_attempts=1, lease_seconds=1.0, heartbeat_seconds=0.3)
    (window,) = scored_windows(context, 2)
    module, name = moment.split(".")
    real = getattr(importlib.import_module(f"babylon_tasks.store.{module}"), name)
    late = iter([True])

    def wrapped(tx: Any, *arguments: Any) -> Any:
        if next(late, False):
            tx.execute("SELECT pg_sleep(1.5)")
        return real(tx, *arguments)

    monkeypatch.setattr(f"babylon_tasks.store.{moment}", wrapped)
    assert pipeline.train(context, trainer)
    assert states(context) == {window: "trained"}
    assert outcomes(context, "train") == ["done"]


def test_a_scorer_that_waits_for_an_answer_past_its_lease_is_not_blamed(
    make_context: Callable[..., Context], monkeypatch: pytest.MonkeyPatch
) -> None:
    context = make_context(max_attempts=1, lease_seconds=1.0, heartbeat_seconds=0.3)
    window = hours_ago(2)
    add_window(context, window)
    pipeline.produce(context)
    real = scores.write

    def late(tx: Any, *arguments: Any) -> Any:
        tx.execute("SELECT pg_sleep(1.5)")
        return real(tx, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr("babylon_tasks.store.scores.write", late)
        with pytest.raises((LeaseLost, StaleClaim)):
            pipeline.score(context)
    assert outcomes(context, "score") == ["given_back"]
    assert one(context, "SELECT attempts FROM rl.windows")["attempts"] == 0
    assert pipeline.score(context) == [window]


class Interrupted:
    """A trainer that meets an outage in its step, and gives signs of life all the time."""

    def __init__(self, trainer: Trainer, outage: Outage, after: Callable[[], None]) -> None:
        self._trainer, self._outage, self._after = trainer, outage, after

    def step(self, request: StepRequest, on_beat: OnBeat) -> StepResult:
        self._outage.begin()
        threading.Event().wait(0.1)
        on_beat(None)
        self._outage.wait()
        self._after()
        on_beat(None)
        return self._trainer.step(request, on_beat)

    def close(self) -> None: ...


def test_a_step_goes_on_while_postgres_is_away(
    make_context: Callable[..., Context], trainer: Trainer
) -> None:
    context = make_context(max_attempts=1, heartbeat_seconds=0)
    (window,) = scored_windows(context, 2)
    assert pipeline.train(context, Interrupted(trainer, Outage(context), lambda: None))
    assert states(context) == {window: "trained"}
    assert outcomes(context, "train") == ["done"]


def test_a_step_that_another_takes_for_dead_after_an_outage_counts_for_nothing(
    make_context: Callable[..., Context], trainer: Trainer
) -> None:
    """The other is faster when Postgres is back."""
    context, other = (make_context(max_attempts=1, heartbeat_seconds=0) for _ in range(2))
    window = hours_ago(2)
    add_window(context, window)
    add_request(context, "batch-1", window, "v2.0.0")
    pipeline.produce(context)
    pipeline.score(context)

    def take_over() -> None:
        assert pipeline.train(other, trainer) is None  # the only attempt was lost
        assert states(other) == {window: "failed"}
        assert one(other, "SELECT status FROM training_batches")["status"] == "failed"

    with pytest.raises(LeaseLost):
        pipeline.train(context, Interrupted(trainer, Outage(context), take_over))
    row = one(context, "SELECT state, attempts FROM rl.windows")
    assert (row["state"], row["attempts"]) == ("scored", 0)
    assert outcomes(context, "train") == ["lost"]
    assert one(context, "SELECT status FROM training_batches")["status"] == "training"
    report = pipeline.train(other, trainer)
    assert report
    assert report.version == "v2.0.0"


def test_three_outages_before_the_gradient_count_for_nothing(
    context: Context, trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    (window,) = scored_windows(context, 2)
    for _ in range(3):
        with monkeypatch.context() as patch:
            at_call(patch, "babylon_tasks.store.steps.parents", once(Outage(context).begin))
            with pytest.raises(ServerUnavailable):
                pipeline.train(context, trainer)
    assert outcomes(context, "train") == ["given_back"] * 3
    assert query(context, "SELECT * FROM rl.leases") == []
    assert pipeline.train(context, trainer)
    assert states(context) == {window: "trained"}


# --- scoring ------------------------------------------------------------------------------------


@pytest.mark.parametrize("moment", ["_read", "_judge", "_commit"])
def test_three_outages_in_mid_scoring_count_for_nothing(
    make_context: Callable[..., Context], monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    context = make_context(max_attempts=1)
    windows = [hours_ago(h) for h in (3, 2)]
    for window in windows:
        add_window(context, window)
    pipeline.produce(context)
    real = getattr(ScoringRun, moment)
    for _ in range(3):
        begin = once(Outage(context).begin)

        def interrupted(*arguments: Any, begin: Any = begin, **options: Any) -> Any:
            begin()
            return real(*arguments, **options)

        with monkeypatch.context() as patch:
            patch.setattr(ScoringRun, moment, interrupted)
            try:
                pipeline.score(context)
            except ServerUnavailable:
                continue
            break
    assert [row["attempts"] for row in query(context, "SELECT attempts FROM rl.windows")] == [0, 0]
    assert set(outcomes(context, "score")) <= {"given_back", "done"}
    assert query(context, "SELECT * FROM rl.leases") == []
    pipeline.score(context)
    assert states(context) == dict.fromkeys(windows, "scored")


def test_a_scorer_taken_for_dead_in_an_outage_gives_its_attempts_back(
    make_context: Callable[..., Context], monkeypatch: pytest.MonkeyPatch
) -> None:
    context, other = make_context(), make_context()
    window = hours_ago(2)
    add_window(context, window)
    pipeline.produce(context)

    async def away(run: ScoringRun, *_: Any) -> Any:
        let_leases_run_out(context)
        with other.database.transaction() as tx:
            (lost,) = attempts.reap_scores(tx, other.lineage.name, 1)
        assert lost.window_id == window
        assert one(other, "SELECT attempts FROM rl.windows")["attempts"] == 1
        raise ServerUnavailable("Postgres is away")

    with monkeypatch.context() as patch:
        patch.setattr(ScoringRun, "_judge", away)
        with pytest.raises(ServerUnavailable):
            pipeline.score(context)
    row = one(context, "SELECT state, attempts FROM rl.windows")
    assert (row["state"], row["attempts"]) == ("due", 0)
    assert outcomes(context, "score") == ["lost"]
    assert pipeline.score(context) == [window]


def test_a_judges_answer_is_stored_when_postgres_is_back(
    make_judged: Callable[..., Context], server: JudgeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is paid for: the same question is not asked again."""
    context = make_judged(max_attempts=1, heartbeat_seconds=0.1)
    window = hours_ago(2)
    add_window(context, window)
    pipeline.produce(context)
    at_call(monkeypatch, "babylon_tasks.store.judgments.add", once(Outage(context, 1).begin))
    assert pipeline.score(context) == [window]
    assert len(server.requests) == 1
    assert outcomes(context, "score") == ["done"]


def test_a_mistake_of_the_deployment_counts_against_no_window(context: Context) -> None:
    """A table is missing, as where migrations were taken from another release."""
    windows = [hours_ago(h) for h in (3, 2)]
    for window in windows:
        add_window(context, window)
    pipeline.produce(context)
    rename(context, "scores", "hidden")
    for _ in range(3):
        assert pipeline.score(context) == []
    rows = query(context, "SELECT state, attempts, last_error FROM rl.windows")
    assert {(row["state"], row["attempts"]) for row in rows} == {("due", 0)}
    assert all("run `babylon migrate`" in row["last_error"] for row in rows)
    rename(context, "hidden", "scores")
    assert pipeline.score(context) == windows


def rename(context: Context, table: str, new: str) -> None:
    with context.database.transaction() as tx:
        tx.execute(
            sql.SQL("ALTER TABLE rl.{} RENAME TO {}").format(
                sql.Identifier(table), sql.Identifier(new)
            )
        )


def test_rows_that_do_not_come_since_postgres_is_away_count_for_nothing(
    make_context: Callable[..., Context], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network that was cut: the reader's time is over, and so is it for anybody who asks."""
    context = make_context(max_attempts=1)
    window = hours_ago(2)
    add_window(context, window)
    pipeline.produce(context)
    outage = Outage(context)

    async def fetch(*_: Any, **__: Any) -> Any:
        outage.begin()
        raise TimeoutError

    with monkeypatch.context() as patch:
        patch.setattr(PreparedStatement, "fetch", fetch)
        with pytest.raises(ServerUnavailable):
            pipeline.score(context)
    outage.wait()
    assert outcomes(context, "score") == ["given_back"]
    assert one(context, "SELECT attempts FROM rl.windows")["attempts"] == 0
    assert pipeline.score(context) == [window]
