"""A worker that takes a lineage's turn wakes another GPU for the others that wait."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from babylon_tasks import pipeline
from babylon_tasks.errors import ServerUnavailable
from babylon_tasks.records.lineages import Lineage
from babylon_tasks.store import lineages
from babylon_tasks.work.context import Context
from babylon_tasks.work.fleet import Fleet
from tests.rows import scored_windows
from workers import doorbells, tasks
from workers.unable import Unable


@pytest.fixture
def rung(context: Context, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The messages for GPUs; this process serves MODEL_NAME and `other`, which both wait."""
    fleet = Fleet(context.database, context.settings, context.holder)
    fleet.active()
    with context.database.transaction() as tx:
        assert lineages.create(tx, Lineage("other", "none", primary=False, created_by="test"))
    scored_windows(context, 2)
    other = fleet.context("other")
    pipeline.produce(other)
    pipeline.score(other)
    process = SimpleNamespace(fleet=fleet, unable=Unable())
    monkeypatch.setattr(tasks, "this_process", lambda: process)
    sent: list[str] = []
    monkeypatch.setattr(doorbells, "train", lambda: sent.append("train"))
    return sent


def test_another_gpu_is_woken_for_the_other_lineage(rung: list[str]) -> None:
    tasks._wake_another_gpu("other")
    assert rung == ["train"]


def test_none_is_woken_for_the_lineage_that_is_trained_now(
    rung: list[str], context: Context
) -> None:
    with context.database.transaction() as tx:
        tx.execute("UPDATE rl.lineages SET state = 'paused' WHERE name = 'other'")
    tasks._wake_another_gpu(context.lineage.name)
    assert rung == []


def test_a_step_goes_on_where_redis_is_away(
    rung: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def away() -> None:
        rung.append("tried")
        raise ServerUnavailable("cannot reach Redis")

    monkeypatch.setattr(doorbells, "train", away)
    tasks._wake_another_gpu("other")
    assert rung == ["tried"]


def test_a_step_that_is_committed_has_not_failed_where_redis_is_away(
    rung: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def away() -> None:
        raise ServerUnavailable("cannot reach Redis")

    logger = SimpleNamespace(step_committed=lambda: rung.append("logged"))
    monkeypatch.setattr(tasks, "this_process", lambda: SimpleNamespace(step_logger=logger))
    monkeypatch.setattr(doorbells, "publish", away)
    tasks._announce_step()
    assert rung == ["logged"]
    assert "train: cannot reach Redis" in caplog.text
