"""Which pools and queues a worker's command line may choose."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from celery.concurrency import prefork, solo, thread
from celery.concurrency.base import BasePool

from babylon_tasks.errors import UserError
from workers.lifecycle import check_pool, chosen_queues, prepare_worker


@pytest.mark.parametrize("pool", ["prefork", "processes", "solo", prefork.TaskPool, solo.TaskPool])
def test_a_pool_of_processes_is_taken(pool: Any) -> None:
    check_pool(pool)


class Greenlets(BasePool):  # type: ignore[misc]
    """Stands for those of gevent and eventlet, which are not installed."""


@pytest.mark.parametrize("pool", ["threads", thread.TaskPool, Greenlets])
def test_a_pool_whose_tasks_share_a_process_is_refused(pool: Any) -> None:
    with pytest.raises(UserError, match="leave -P out, and choose the number of processes"):
        check_pool(pool)


def test_it_is_refused_before_any_server_is_asked(capsys: pytest.CaptureFixture[str]) -> None:
    conf = SimpleNamespace(worker_pool="prefork")
    with pytest.raises(SystemExit) as ended:
        prepare_worker(conf=conf, options={"pool": thread.TaskPool, "queues": ["cpu"]})
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("this pool (-P) is not supported")


@pytest.mark.parametrize(
    ("options", "queues"),
    [
        ({}, ["cpu", "gpu"]),
        ({"queues": None}, ["cpu", "gpu"]),
        ({"queues": "gpu"}, ["gpu"]),
        ({"queues": ["cpu", " gpu"]}, ["cpu", "gpu"]),
        ({"exclude_queues": ["gpu"]}, ["cpu"]),
        ({"queues": "cpu,gpu", "exclude_queues": "cpu"}, ["gpu"]),
    ],
)
def test_queues_are_those_of_the_command_line(options: dict[str, Any], queues: list[str]) -> None:
    assert chosen_queues(options) == queues


@pytest.mark.parametrize("options", [{"queues": "celery"}, {"exclude_queues": ["gpus"]}])
def test_a_queue_that_is_none_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="-Q takes cpu and gpu"):
        chosen_queues(options)
