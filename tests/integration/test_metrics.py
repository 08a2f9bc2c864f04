"""A scrape of Flower's `/metrics` on real servers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis
from celery import current_app

from babylon_tasks.errors import ServerUnavailable
from babylon_tasks.records.experiments import Standing
from babylon_tasks.records.steps import Trainer
from babylon_tasks.settings import load_settings
from babylon_tasks.store.identity import key_prefix
from babylon_tasks.work.context import Context
from tests.rows import add_exam, add_experiment, add_look, commit_steps, fork, query
from workers import queues
from workers.watch.metrics import PipelineCollector


@pytest.fixture
def client(
    context: Context, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[redis.Redis]:
    """An empty Redis, which our app uses as the current one."""
    monkeypatch.setenv("DATABASE_URL", context.settings.postgres())
    monkeypatch.setenv("REDIS_URL", redis_url)
    load_settings.cache_clear()
    from babylon_tasks.celery import make_app

    before = current_app._get_current_object()
    app = make_app()
    with redis.Redis.from_url(redis_url) as client:
        client.flushall()
        yield client
    app.close()
    before.set_current()
    load_settings.cache_clear()


@pytest.fixture
def cpu(context: Context) -> str:
    """The key of queue `cpu`."""
    return key_prefix(context.settings.postgres()) + "cpu"


def scraped(context: Context) -> dict[str, float]:
    """Values by metric and label."""
    return {
        " ".join([sample.name, *sample.labels.values()]): sample.value
        for metric in PipelineCollector(context.settings).collect()
        for sample in metric.samples
    }


def test_a_scrape_counts_and_deletes_nothing(
    context: Context, client: redis.Redis, cpu: str
) -> None:
    client.rpush(cpu, *["{}"] * (queues.MOST + 2000))
    for _ in range(2):
        metrics = scraped(context)
        assert metrics["babylon_queue_messages cpu"] == queues.MOST + 2000
        assert metrics["babylon_queue_messages gpu"] == 0
        assert metrics["babylon_up redis"] == metrics["babylon_up postgres"] == 1
    assert client.llen(cpu) == queues.MOST + 2000


def test_who_sends_drops_the_newest_beyond_the_bound(client: redis.Redis, cpu: str) -> None:
    client.lpush("cpu", *range(queues.MOST + 2000))  # of another deployment, or an older release
    client.lpush(cpu, *range(queues.MOST + 2000))
    with queues.redis_client() as broker:
        assert queues.trim_and_count(broker, "cpu") == queues.MOST
        assert queues.count(broker, "cpu") == queues.MOST
    assert (client.lindex(cpu, -1), client.lindex(cpu, 0)) == (b"0", b"9999")
    assert client.llen("cpu") == queues.MOST + 2000


def test_a_redis_that_refuses_a_running_role_is_one_that_is_away(
    context: Context, client: redis.Redis
) -> None:
    """A password that is changed meanwhile must not make a machine unable to train."""
    old = str(client.connection_pool.connection_kwargs["password"])
    client.config_set("requirepass", "another")
    try:
        with (
            pytest.raises(ServerUnavailable, match="refuses the user or the password"),
            queues.redis_client() as broker,
        ):
            queues.count(broker, "cpu")
        assert scraped(context)["babylon_up redis"] == 0
    finally:
        client.config_set("requirepass", old)


def test_metrics_name_the_lineage(context: Context, trainer: Trainer) -> None:
    commit_steps(context, trainer, 2)
    fork(context, "fork", 1)
    values = {
        (metric.name, *sample.labels.values()): sample.value
        for metric in PipelineCollector(context.settings)._postgres()
        for sample in metric.samples
    }
    assert values["babylon_step", "babylon-agent", "newest"] == 2
    assert values["babylon_step", "fork", "published"] == 1
    assert values["babylon_windows", "babylon-agent", "trained"] == 2
    assert values["babylon_windows", "fork", "trained"] == 1


def of_the_gate(context: Context) -> dict[tuple[str, str], float]:
    """Values by metric, without its prefix, and lineage."""
    return {
        (metric.name.removeprefix("babylon_"), sample.labels["lineage"]): sample.value
        for metric in PipelineCollector(context.settings)._postgres()
        for sample in metric.samples
        if metric.name not in ("babylon_windows", "babylon_step") and "lineage" in sample.labels
    }


def test_metrics_of_the_gate(context: Context, trainer: Trainer) -> None:
    """A lineage whose experiment runs, and another one of which nothing is known."""
    commit_steps(context, trainer, 3, publish=False)
    fork(context, "fork", 1)
    query(context, "UPDATE rl.heads SET gated = true RETURNING 1")
    add_exam(context, 1, "failed", "form fell")
    quiet = {"steps_awaiting_exam": 0, "steps_passed": 0, "exam_failures_in_a_row": 0,
             "paused_by_gate": 0}  # fmt: skip
    found = of_the_gate(context)
    assert found == {
        **{(name, "fork"): value for name, value in quiet.items()},
        **{(name, "babylon-agent"): value for name, value in quiet.items()},
        ("steps_awaiting_exam", "babylon-agent"): 1,
        ("exam_failures_in_a_row", "babylon-agent"): 1,
    }
    add_exam(context, 2)
    add_exam(context, 3)
    id_ = add_experiment(context, 2)
    found = of_the_gate(context)
    assert found["steps_passed", "babylon-agent"] == 1
    assert found["exam_failures_in_a_row", "babylon-agent"] == 0
    assert found["experiment_windows", "babylon-agent"] == 0
    assert ("experiment_difference", "babylon-agent") not in found, "nothing is known yet"
    standing = Standing(5, 30, 10, 0.0123, -0.004, 0.0286, 12)
    add_look(context, id_, "2026-01-01T00:00", standing, "go on")
    found = of_the_gate(context)
    shown = {name: value for (name, lineage), value in found.items() if "experiment" in name}
    assert shown == {
        "experiment_step": 2, "experiment_percent": 20, "experiment_windows": 5,
        "experiment_windows_left": 12, "experiment_difference": 0.0123,
        "experiment_low": -0.004, "experiment_high": 0.0286,
    }  # fmt: skip
    query(
        context,
        "UPDATE rl.lineages SET state = 'paused', changed_by = 'the gate', changed_at = now() "
        "WHERE name = 'fork' RETURNING 1",
    )
    assert of_the_gate(context)["paused_by_gate", "fork"] == 1
