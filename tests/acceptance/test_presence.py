"""The row of a running worker, and that it goes with it."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from babylon_tasks.cockpit.overview import overview
from babylon_tasks.records.workers import Worker, WorkerGpu
from babylon_tasks.store import workers
from tests.acceptance.conftest import Deployment
from tests.chaos.injection import Injection, injecting
from tests.rows import scored_windows

pytestmark = pytest.mark.slow

FAKE_NVML = Path(__file__).parents[1] / "nvml"
GPU = ("celery", "-A", "babylon_tasks", "worker", "-Q", "gpu")


def rows(deployment: Deployment) -> list[Worker]:
    with deployment.context.database.transaction() as tx:
        return workers.read(tx)


def test_a_gpu_worker_has_one_pool_process_a_visible_gpu_and_says_so(
    deployment: Deployment,
) -> None:
    gpus = [[f"GPU-{n}{n}{n}{n}-aaaa", "NVIDIA H200", 1000, []] for n in range(4)]
    env = {
        "PYTHONPATH": str(FAKE_NVML),
        "FAKE_GPUS": json.dumps(gpus),
        "CUDA_VISIBLE_DEVICES": "3,GPU-00,1,9,2",
        "LINEAGES": "b,a",
    }
    process = deployment.start(*GPU, "-n", "gpu@one", env=env)
    deployment.wait(lambda: bool(rows(deployment)))
    (row,) = rows(deployment)
    assert (row.name, row.queues, row.slots, row.pid) == ("gpu@one", ["gpu"], 3, process.pid)
    assert (row.trainer, row.lineages) == ("noop", ["a", "b"])
    assert row.gpus == [
        WorkerGpu(f"GPU-{n}{n}{n}{n}-aaaa", "NVIDIA H200", 1000 * 2**20, 500 * 2**20)
        for n in (0, 1, 3)
    ]
    assert row.seen_seconds < 30
    assert not row.lost
    asked = deployment.run("celery", "-A", "babylon_tasks", "inspect", "stats", "--json")
    (stats,) = json.loads(asked.stdout).values()
    assert len(stats["pool"]["processes"]) == 3
    named = "GPU-3333-aaaa, GPU-0000-aaaa, GPU-1111-aaaa"
    assert f"INFO workers.lifecycle: gpu worker: {named}\n" in deployment.logs()
    process.send_signal(signal.SIGTERM)
    process.wait(30)
    assert rows(deployment) == []


def test_of_two_workers_of_a_host_it_is_known_which_one_trains(deployment: Deployment) -> None:
    scored_windows(deployment.context, 2)
    harm = injecting(Injection("babylon_tasks.checkpoints.files.save", "hang"))
    deployment.start(*GPU, "-n", "idle@one", env={"LINEAGES": "another"})
    deployment.start(*GPU, "-n", "trains@one", env=harm)
    deployment.wait(lambda: len(rows(deployment)) == 2)

    def doing() -> list[str | None]:
        deployment.run("celery", "-A", "babylon_tasks", "call", "babylon.train")
        return [work["worker"] for work in overview(deployment.context)["running"]]

    deployment.wait(lambda: doing() == ["trains@one"])
