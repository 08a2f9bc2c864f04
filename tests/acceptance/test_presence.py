"""The row of a running worker, and that it goes with it."""

from __future__ import annotations

import json
import signal
from pathlib import Path

from babylon_tasks.records.workers import Worker, WorkerGpu
from babylon_tasks.store import workers
from tests.acceptance.conftest import Deployment

FAKE_NVML = Path(__file__).parents[1] / "nvml"
GPU = ("celery", "-A", "babylon_tasks", "worker", "-Q", "gpu")


def rows(deployment: Deployment) -> list[Worker]:
    with deployment.context.database.transaction() as tx:
        return workers.read(tx)


def test_a_worker_says_what_it_takes_and_with_which_gpus(deployment: Deployment) -> None:
    gpus = [[f"GPU-{n}{n}{n}{n}-aaaa", "NVIDIA H200", 1000, []] for n in range(3)]
    env = {
        "PYTHONPATH": str(FAKE_NVML),
        "FAKE_GPUS": json.dumps(gpus),
        "CUDA_VISIBLE_DEVICES": "2,0",
        "LINEAGES": "b,a",
    }
    process = deployment.start(*GPU, "-n", "gpu@one", env=env)
    deployment.wait(lambda: bool(rows(deployment)))
    (row,) = rows(deployment)
    assert (row.name, row.queues, row.slots, row.pid) == ("gpu@one", ["gpu"], 2, process.pid)
    assert (row.trainer, row.lineages) == ("noop", ["a", "b"])
    assert row.gpus == [
        WorkerGpu(f"GPU-{n}{n}{n}{n}-aaaa", "NVIDIA H200", 1000 * 2**20, 500 * 2**20)
        for n in (0, 2)
    ]
    assert row.seen_seconds < 30
    assert not row.lost
    process.send_signal(signal.SIGTERM)
    process.wait(30)
    assert rows(deployment) == []
