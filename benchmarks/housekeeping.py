"""Messages that go through the queues while there is nothing to do, and what Flower shows of them.

    python benchmarks/housekeeping.py [--json] [--minutes 10] [--lineages 1 50]

For each number of lineages there is a deployment: an embedded Postgres and Redis, beat, a CPU
worker and a GPU worker, with the settings as shipped. Each lineage has trained a step, which waits
for its exam; no window is due. When a message has come through each queue, Redis' `MONITOR` counts
what is laid into them, and a receiver of Celery's events, as Flower has one, the tasks that it
would list. The deployments run at the same time.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import redis
from app_rows import load
from lineage_claims import name_of
from own_server import Server, run_server

from babylon_tasks import pipeline
from babylon_tasks.local.redis import embedded_redis
from babylon_tasks.records.lineages import Lineage
from babylon_tasks.settings import Settings
from babylon_tasks.store import canaries, lineages
from babylon_tasks.store.identity import key_prefix
from babylon_tasks.work.fleet import Fleet
from tests.flower_events import watching
from workers.trainer.noop import NoopTrainer

ROLES = (("worker", "-Q", "cpu", "-n", "cpu@%h", "-c", "2"), ("worker", "-Q", "gpu"), ("beat",))
START_SECONDS = 60.0
LOOKBACK_HOURS = 6


def measure(server: Server, number: int, minutes: float) -> dict[str, Any]:
    """Run a deployment with that many lineages at rest; count for that many minutes."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="babylon-bench-")))
        redis_url = stack.enter_context(embedded_redis(folder / "redis"))
        settings = prepared(server, number)
        stack.enter_context(roles(settings, redis_url, folder))
        await_canaries(settings)
        sent, prefix = Counter[str](), key_prefix(settings.postgres())
        stack.enter_context(counting(redis_url, prefix, sent))
        watcher = stack.enter_context(watching(redis_url, prefix))
        time.sleep(60 * minutes)
        counted = dict(sorted(sent.items()))
        rows = Counter(task.name for task in watcher.rows().values())
    return {
        "messages_a_minute": round(sum(counted.values()) / minutes, 2),
        "messages": counted,
        "rows_of_flower": sum(rows.values()),
        **({"rows": dict(rows)} if rows else {}),
    }


def prepared(server: Server, number: int) -> Settings:
    """Make a database whose lineages have trained all windows there are."""
    url = server.database(f"of_{number}")
    load(url, 1000, datetime.now(UTC) - timedelta(hours=3), hours=72, bulk=True)  # all have settled
    settings = server.settings(url, model_name=name_of(0), lookback_hours=LOOKBACK_HOURS)
    fleet = Fleet.of_deployment(settings, "benchmark")
    with fleet.database.transaction() as tx:
        fleet.lineages(tx)  # MODEL_NAME has a row from now on
        for each in range(1, number):
            lineages.create(tx, Lineage(name_of(each), "none", primary=False, created_by="bench"))
    contexts = fleet.active()
    pipeline.produce(*contexts)
    for context in contexts:
        assert pipeline.score(context)
        assert pipeline.train(context, NoopTrainer()), context.lineage.name  # type: ignore[arg-type]
        assert not pipeline.score(context)
    fleet.database.close()
    return settings


@contextmanager
def roles(settings: Settings, redis_url: str, folder: Path) -> Iterator[None]:
    """Run the roles; their logs are in the folder."""
    env = {
        **os.environ,
        "DATABASE_URL": settings.postgres(),
        "REDIS_URL": redis_url,
        "TRAIN_RL_LOCAL": "true",
        "TRAINER": "noop",
        "BASE_MODEL": "none",
        "MODEL_NAME": settings.model_name,
        "LOOKBACK_HOURS": str(LOOKBACK_HOURS),
        "CHECKPOINT_STORE": settings.checkpoint_store,
        "PYTHONPATH": str(Path(__file__).resolve().parents[1]),
    }
    started = []
    try:
        for role in ROLES:
            with (folder / f"{len(started)}.log").open("w") as log:
                command = [sys.executable, "-m", "celery", "-A", "babylon_tasks", *role]
                started.append(
                    subprocess.Popen(command, env=env, cwd=folder, stdout=log, stderr=log)
                )
        yield
    finally:
        for process in started:
            process.terminate()
        for process in started:
            process.wait(timeout=40)


def await_canaries(settings: Settings) -> None:
    """Wait until a message has come through each queue."""
    fleet = Fleet.of_deployment(settings, "benchmark")
    deadline = time.monotonic() + START_SECONDS
    while True:
        with fleet.database.transaction() as tx:
            if len(canaries.read(tx)) == 2:
                break
        assert time.monotonic() < deadline, "no message came through"
        time.sleep(0.2)
    fleet.database.close()
    time.sleep(2)  # what was sent with the first ones is done


@contextmanager
def counting(redis_url: str, prefix: str, sent: Counter[str]) -> Iterator[None]:
    """Count by task what is laid into the queues."""
    with redis.Redis.from_url(redis_url) as client, client.monitor() as monitor:

        def count() -> None:
            with suppress(redis.ConnectionError, ValueError, OSError):  # it is closed
                for command in monitor.listen():
                    words = command["command"].split(" ", 2)
                    if words[0] == "LPUSH" and words[1] in (f"{prefix}cpu", f"{prefix}gpu"):
                        found = re.search(r"task\W+(babylon\.\w+)", words[2])
                        sent[found[1] if found else "?"] += 1

        threading.Thread(target=count, daemon=True).start()
        yield


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--minutes", type=float, default=10, help="how long to count")
    parser.add_argument("--lineages", type=int, nargs="+", default=[1, 50])
    arguments = parser.parse_args()
    with run_server() as server, ThreadPoolExecutor() as pool:
        running = {
            f"{number}_lineages": pool.submit(measure, server, number, arguments.minutes)
            for number in arguments.lineages
        }
        figures = {name: each.result() for name, each in running.items()}
    if arguments.json:
        print(json.dumps({"minutes": arguments.minutes, **figures}))
        return
    for name, measured in figures.items():
        print(name)
        for key, value in measured.items():
            print(f"  {key:20} {value}")


if __name__ == "__main__":
    main()
