"""An outage, a stop or another worker ends an exam: nobody is to blame, one verdict is written."""

from __future__ import annotations

import importlib
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest

from babylon_tasks import pipeline
from babylon_tasks.errors import LeaseLost, ServerUnavailable
from babylon_tasks.records.exams import ExamState
from babylon_tasks.records.steps import Trainer
from babylon_tasks.store import exams, leases
from babylon_tasks.work.context import Context
from tests.clock import let_leases_run_out, move_clock
from tests.integration.test_exams import OnBeat, Opinions, another_step, parents, position, verdicts
from tests.integration.test_outages import at_call, once
from tests.outage import Outage
from tests.rows import query, scored_windows

MakeContext = Callable[..., Context]


@pytest.fixture
def gated(make_context: MakeContext) -> Context:
    return make_context(publish="gate", experiment_percent=0, heartbeat_seconds=0)


@pytest.fixture
def opinions(trainer: Trainer) -> Opinions:
    return Opinions(trainer)


class Beating(Opinions):
    """It gives a sign of life as soon as `on_ask` wants one."""

    beat: Callable[[], None]

    def _ask(self, what: str, checkpoint: str | None, on_beat: OnBeat) -> int:
        self.beat = lambda: on_beat(None)
        return super()._ask(what, checkpoint, on_beat)


def test_three_outages_in_an_exam_count_for_nothing(
    gated: Context, opinions: Opinions, monkeypatch: pytest.MonkeyPatch
) -> None:
    another_step(gated, opinions)
    scored_windows(gated, 3)
    for _ in range(3):
        with monkeypatch.context() as patch:
            at_call(patch, "babylon_tasks.store.steps.parents", once(Outage(gated).begin))
            with pytest.raises(ServerUnavailable):
                pipeline.train(gated, opinions)
    assert verdicts(gated)[1].attempts == 0
    assert query(gated, "SELECT * FROM rl.leases") == []
    assert pipeline.train(gated, opinions)
    assert (verdicts(gated)[1].state, verdicts(gated)[1].attempts) == (ExamState.PASSED, 1)


def test_an_exam_goes_on_while_postgres_is_away(gated: Context, opinions: Opinions) -> None:
    another_step(gated, opinions)
    outage = Outage(gated)

    def away() -> None:
        opinions.on_ask = lambda: None
        outage.begin()
        threading.Event().wait(0.1)

    opinions.on_ask = away
    another_step(gated, opinions)
    assert (verdicts(gated)[1].state, verdicts(gated)[1].attempts) == (ExamState.PASSED, 1)
    assert position(gated)[0] == 2


def test_an_exam_that_another_takes_for_dead_after_an_outage_counts_for_nothing(
    gated: Context, make_context: MakeContext, trainer: Trainer
) -> None:
    """The other is faster when Postgres is back."""
    opinions = Beating(trainer)
    another_step(gated, opinions)
    scored_windows(gated, 3)
    other = make_context(publish="gate", experiment_percent=0, heartbeat_seconds=0)
    outage = Outage(gated)

    def take_over() -> None:
        opinions.on_ask = lambda: None
        outage.begin()
        threading.Event().wait(0.1)
        opinions.beat()
        outage.wait()
        let_leases_run_out(gated)
        with other.database.transaction() as tx:
            lease = leases.acquire(tx, f"model/{other.lineage.name}", other.holder, 30)
            awaited = exams.awaited(tx, other.lineage.name)
            assert lease
            assert awaited
            assert exams.begin(tx, other.claim(lease), awaited) == 2

    opinions.on_ask = take_over
    with pytest.raises(LeaseLost):
        pipeline.train(gated, opinions)
    assert verdicts(gated)[1].attempts == 1, "that of the other one"


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit])
def test_a_worker_that_is_stopped_in_an_exam_is_not_blamed(
    gated: Context, opinions: Opinions, stop: type[BaseException]
) -> None:
    """A new release each time: three stops fail no step."""
    another_step(gated, opinions)
    scored_windows(gated, 3)

    def stopped() -> None:
        raise stop

    opinions.on_ask = stopped
    for _ in range(3):
        with pytest.raises(stop):
            pipeline.train(gated, opinions)
        assert verdicts(gated)[1].attempts == 0
        assert query(gated, "SELECT * FROM rl.leases") == []
    opinions.on_ask = lambda: None
    assert pipeline.train(gated, opinions)
    assert verdicts(gated)[1].state == ExamState.PASSED


@pytest.mark.parametrize("bad", [True, False])
def test_a_verdict_whose_answer_was_lost_is_looked_up(
    gated: Context, opinions: Opinions, monkeypatch: pytest.MonkeyPatch, bad: bool
) -> None:
    """The connection goes down after COMMIT was carried out: the row with our token decides."""
    another_step(gated, opinions)
    if bad:
        opinions.bad[1] = None
    path = "babylon_tasks.store.heads.move" if bad else "babylon_tasks.store.exams.tell_app"
    module, _, name = path.rpartition(".")
    real = getattr(importlib.import_module(module), name)

    def then_cut(tx: Any, *arguments: Any) -> Any:
        done = real(tx, *arguments)
        tx.execute("COMMIT")
        tx.execute("BEGIN")
        pid = tx.info.backend_pid

        def cut() -> None:
            with psycopg.connect(gated.settings.postgres(), autocommit=True) as killer:
                killer.execute("SELECT pg_terminate_backend(%s)", [pid])

        with ThreadPoolExecutor(1) as elsewhere:
            elsewhere.submit(cut).result()
        tx.execute("SELECT 1")
        return done

    monkeypatch.setattr(path, then_cut)
    another_step(gated, opinions)
    assert verdicts(gated)[1].state == (ExamState.FAILED if bad else ExamState.PASSED)
    assert len(query(gated, "SELECT * FROM rl.resets")) == bad
    assert parents(gated) == {1: 0, 2: 0 if bad else 1}


def test_failures_are_counted_though_the_clock_went_back(
    gated: Context, opinions: Opinions
) -> None:
    """The last exam that was passed says a later time than those that failed after it."""
    opinions.bad |= dict.fromkeys((2, 3, 4))
    for _ in range(2):
        another_step(gated, opinions)
    assert verdicts(gated)[1].state == ExamState.PASSED
    move_clock(gated, -3600)
    query(gated, "UPDATE rl.lineages SET changed_at = changed_at - interval '2 hours' RETURNING 1")
    for hours in range(10, 13):
        scored_windows(gated, hours)
        pipeline.train(gated, opinions)
    assert [str(verdicts(gated)[step].state) for step in (2, 3, 4)] == ["failed"] * 3
    assert query(gated, "SELECT state FROM rl.lineages")[0]["state"] == "paused"
