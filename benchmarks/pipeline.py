"""Windows a second through the whole pipeline, with a trainer that does nothing.

    python benchmarks/pipeline.py [--windows 1000] [--agents 8] [--json]

Real processes run on embedded servers: Celery (beat, one CPU worker with a pool process for each
core, one GPU worker with one slot), Redis, Postgres. The clock runs from the start of beat, which
sends the first message, until the last window is trained and the last step published. Writing the
traces and starting the workers are not counted. What is measured is the machinery around a step:
finding, claiming, reading, decoding, scoring, committing.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import psycopg

from babylon_tasks.local.postgres import embedded_postgres
from babylon_tasks.local.redis import embedded_redis
from babylon_tasks.local.supervisor import Stack, roles
from babylon_tasks.simulation import simulate
from babylon_tasks.store.migrate import migrate


def main() -> None:
    """Measure once and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--windows", type=int, default=1000)
    parser.add_argument("--agents", type=int, default=8)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="babylon-bench-")))
        url = stack.enter_context(embedded_postgres(folder / "postgres", "bench"))
        redis_url = stack.enter_context(embedded_redis(folder / "redis"))
        migrate(url)
        with psycopg.connect(url) as connection:
            rows = simulate.simulate(
                options.windows, options.agents, 1, datetime.now(UTC), odd=False
            )
            written = simulate.write(connection, rows)
        env = {
            "DATABASE_URL": url,
            "REDIS_URL": redis_url,
            "TRAIN_RL_LOCAL": "true",
            "TRAINER": "noop",
            "BASE_MODEL": "none",
            "CHECKPOINT_STORE": str(folder / "checkpoints"),
            "LOOKBACK_HOURS": str(options.windows + 10),
            "PRODUCE_SECONDS": "3600",  # one look, and the clock starts with it
        }
        os.environ.update(env)
        by_name = {role.name: role for role in roles(0)}
        workers = [by_name["cpu"], by_name["gpu"]]
        stack.enter_context(Stack(workers, folder / "logs", env))
        _wait_for_workers(len(workers))
        started = time.perf_counter()
        stack.enter_context(Stack([by_name["beat"]], folder / "logs", env))
        steps = _wait_for_the_end(url, options.windows)
        seconds = time.perf_counter() - started
    figures = {
        "windows": options.windows,
        "trajectories": written.trajectories,
        "seconds": round(seconds, 2),
        "windows_per_second": round(options.windows / seconds, 1),
        "steps": steps,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
    }
    if options.json:
        print(json.dumps(figures))
        return
    for name, value in figures.items():
        print(f"{name:20} {value}")


def _wait_for_workers(count: int) -> None:
    from babylon_tasks.celery import app

    while len(app.control.ping(timeout=1)) < count:
        pass


def _wait_for_the_end(url: str, windows: int) -> int:
    """Wait until the rows say that all is trained and published; return the number of steps."""
    query = """SELECT (SELECT count(*) FROM rl.windows WHERE state = 'trained') AS trained,
                      (SELECT step FROM rl.heads WHERE step = published_step) AS step"""
    with psycopg.connect(url, autocommit=True) as connection:
        while True:
            trained, step = connection.execute(query).fetchone() or (0, None)
            if trained == windows and step:
                return int(step)
            time.sleep(0.05)


if __name__ == "__main__":
    main()
