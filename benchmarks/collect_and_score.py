"""Trajectories a second that one core reads, decodes and scores: this project against upstream.

    python benchmarks/collect_and_score.py [--json] [--agents 100] [--windows 4] [--rounds 7]

An embedded Postgres holds windows of trajectories of 60 KB, as the app writes them (see
`babylon_tasks/simulation/simulate.py`). This process runs on one core and the server on the others,
so the figures are trajectories per second on one core of a worker. The three ways take turns; the
figures are medians of the rounds. Linux only.

- *ours*: what a scoring task does before it writes: `TraceReader.read`, `decode`, the heuristic.
  Every prompt and response is checked and hashed on the way.
- *upstream*: what `babylon_trainer.py` does: fetch the window's rows by an OR over two columns,
  `json.loads` of every text, the same heuristic. Both give the same scores, to 1e-9.
- *fetch alone*: asyncpg with our query, and nothing done with the rows. No client can be faster
  (most of the time goes into Postgres decompressing each text).

Then a new process with a CPU worker's modules scores one window of 200 agents of 300 KB with
`pipeline.score`; the peak memory is that of the whole process.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import importlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import asyncpg
import psycopg

from babylon_tasks import pipeline
from babylon_tasks.local.postgres import embedded_postgres
from babylon_tasks.records.traces import decode
from babylon_tasks.scoring.heuristic import heuristic
from babylon_tasks.settings import Settings, load_settings
from babylon_tasks.simulation import simulate
from babylon_tasks.store import traces
from babylon_tasks.store.database import Database
from babylon_tasks.store.migrate import migrate
from babylon_tasks.work.context import Context

STEPS_BYTES = 60_000
BIG_AGENTS, BIG_STEPS_BYTES = 200, 300_000
CPU_WORKER_MODULES = (
    "celery.apps.worker",
    "celery.concurrency.prefork",
    "babylon_tasks.celery",
    "workers.tasks",
    "workers.lifecycle",
)

Scores = dict[str, float]  # by agent, of one window

_UPSTREAM_COLLECT = """
SELECT t."trajectoryId", t."agentId", t."stepsJson", u.username
  FROM trajectories t LEFT JOIN "User" u ON u.id = t."agentId"
 WHERE (t."scenarioId" = $1 OR t."scenarioId" LIKE $1 || '%' OR t."windowId" = $1)
   AND t."stepsJson" IS NOT NULL
   AND t."stepsJson"::text != 'null'
   AND t."stepsJson"::text != '[]'
 ORDER BY t."createdAt"
"""


async def ours(reader: traces.TraceReader, window_id: str) -> Scores:
    """Score a window as `pipeline.score` does, up to its transaction."""
    outcomes = [decode(raw).outcome async for raw in reader.read(window_id)]
    return {score.agent_id: score.score for score in heuristic(outcomes)}


async def upstream(connection: Any, window_id: str) -> Scores:
    """Score a window as upstream does: fetch every row and parse all of it."""
    agents: dict[str, list[tuple[float, list[Any]]]] = {}
    for row in await connection.fetch(_UPSTREAM_COLLECT, window_id):
        steps = json.loads(row["stepsJson"])
        pnl = float(steps[-1].get("environmentState", {}).get("agentPnL", 0)) if steps else 0.0
        agents.setdefault(row["agentId"], []).append((pnl, steps))
    return {agent: upstream_score(runs) for agent, runs in agents.items()}


def upstream_score(runs: list[tuple[float, list[Any]]]) -> float:
    """Return the weighted sum of P&L (0.5), win rate (0.3) and activity (0.2)."""
    wins = sum(pnl > 0 for pnl, _ in runs)
    decided = wins + sum(pnl < 0 for pnl, _ in runs)
    earned = max(0.0, min(1.0, (sum(pnl for pnl, _ in runs) + 1000) / 2000))
    active = min(1.0, sum(len(steps) for _, steps in runs) / 20)
    return 0.5 * earned + 0.3 * (wins / decided if decided else 0.5) + 0.2 * active


async def fetch_alone(connection: Any, settings: Settings, window_id: str) -> None:
    """Fetch our rows and do nothing with them."""
    await connection.fetch(
        traces._SQL["declare_traces"].partition(" FOR\n")[2],
        window_id,
        settings.max_trace_bytes,
        settings.excluded_scenario_patterns(),
        settings.agent_patterns() or None,
    )


async def take_turns(
    settings: Settings, window_ids: list[str], trajectories: int, rounds: int
) -> dict[str, Any]:
    """Time each way over all windows, round after round."""
    connection = await asyncpg.connect(settings.postgres())
    async with traces.open_reader(Database(settings.postgres()), settings) as reader:
        ways: dict[str, Callable[[str], Awaitable[Scores | None]]] = {
            "ours": lambda window: ours(reader, window),
            "upstream": lambda window: upstream(connection, window),
            "fetch": lambda window: fetch_alone(connection, settings, window),
        }
        for window in window_ids:
            check_same(await ours(reader, window), await upstream(connection, window))
        wall: dict[str, list[float]] = {name: [] for name in ways}
        cpu: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(rounds):
            for name, way in ways.items():
                gc.collect()
                started, started_cpu = time.perf_counter(), time.process_time()
                for window in window_ids:
                    await way(window)
                wall[name].append(time.perf_counter() - started)
                cpu[name].append(time.process_time() - started_cpu)
    await connection.close()
    figures: dict[str, Any] = {}
    for name in ways:
        figures[f"{name}_per_second"] = round(trajectories / statistics.median(wall[name]), 1)
        figures[f"{name}_per_cpu_second"] = round(trajectories / statistics.median(cpu[name]), 1)
    ratios = [theirs / mine for mine, theirs in zip(wall["ours"], wall["upstream"], strict=True)]
    figures["ratio_to_upstream"] = round(statistics.median(ratios), 2)
    figures["ratio_of_rounds"] = [round(ratio, 2) for ratio in ratios]
    return figures


def check_same(mine: Scores, theirs: Scores) -> None:
    """Require that every agent has the same score both ways."""
    assert mine.keys() == theirs.keys()
    assert all(abs(mine[agent] - theirs[agent]) <= 1e-9 for agent in mine)


def pin(folder: Path) -> None:
    """Put this process on one core, and the server and its later children on the others."""
    *rest, mine = sorted(os.sched_getaffinity(0))
    server = int((folder / "postmaster.pid").read_text().split("\n", 1)[0])
    os.sched_setaffinity(server, rest or [mine])
    os.sched_setaffinity(0, [mine])


def score_one_window(window_id: str) -> None:
    """Score the window as a worker does, and print the peak memory of this process."""
    for module in CPU_WORKER_MODULES:
        importlib.import_module(module)
    settings = load_settings()
    context = Context.of_deployment(settings, "benchmark")
    before = peak_mib()
    assert pipeline.score(context, only=[window_id]) == [window_id]
    print(json.dumps({"imports_mib": before, "peak_mib": peak_mib()}))


def peak_mib() -> float:
    """Return this program's peak memory in MiB.

    `getrusage` would not do: it keeps the parent's peak after an exec.
    """
    status = Path("/proc/self/status").read_text()
    kibibytes = next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))
    return round(int(kibibytes) / 1024, 1)


def measure_memory(url: str, window_id: str) -> dict[str, float]:
    """Run `score_one_window` in a process of its own, and return what it prints."""
    settings = Settings(database_url=url, lookback_hours=240)  # type: ignore[arg-type, call-arg]
    context = Context.of_deployment(settings, "benchmark")
    assert window_id in pipeline.produce(context)
    context.database.close()
    done = subprocess.run(
        [sys.executable, __file__, "--score-window", window_id],
        env={**os.environ, "DATABASE_URL": url, "REDIS_URL": "redis://nobody.invalid"},
        stdout=subprocess.PIPE,
        check=True,
    )
    memory: dict[str, float] = json.loads(done.stdout)
    return memory


def measure(folder: Path, url: str, options: argparse.Namespace) -> dict[str, Any]:
    """Write the rows, then measure speed, then memory."""
    migrate(url)
    now = datetime.now(UTC)
    rows = list(
        simulate.simulate(
            options.windows, options.agents, 1, now, odd=False, steps_bytes=STEPS_BYTES
        )
    )
    long_ago = now - timedelta(hours=options.windows + 10)
    big = simulate.simulate(1, BIG_AGENTS, 2, long_ago, odd=False, steps_bytes=BIG_STEPS_BYTES)
    with psycopg.connect(url, autocommit=True) as connection:
        trajectories = simulate.write(connection, rows).trajectories
        (big_window,) = simulate.write(connection, big).good_windows
        connection.execute("VACUUM ANALYZE")
        sizes = connection.execute(
            """SELECT avg(octet_length("stepsJson"))::int, avg(pg_column_size("stepsJson"))::int
                 FROM trajectories WHERE "windowId" <> %s""",
            [big_window],
        ).fetchone()
        version = connection.info.parameter_status("server_version")
    assert sizes is not None
    cores = os.sched_getaffinity(0)
    pin(folder)
    settings = Settings(database_url=url)  # type: ignore[arg-type, call-arg]
    window_ids = [window.window_id for window in rows]
    speed = asyncio.run(take_turns(settings, window_ids, trajectories, options.rounds))
    os.sched_setaffinity(0, cores)
    return {
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
        "postgres": version,
        "trajectories": trajectories,
        "bytes_each": sizes[0],
        "stored_bytes_each": sizes[1],
        **speed,
        "big_window_agents": BIG_AGENTS,
        "big_window_bytes_each": BIG_STEPS_BYTES,
        **measure_memory(url, big_window),
    }


def table(figures: dict[str, Any]) -> str:
    """Write the figures for people."""
    lines = [
        f"{figures['trajectories']} trajectories of {figures['bytes_each']:,} bytes "
        f"({figures['stored_bytes_each']:,} stored), one core (PostgreSQL {figures['postgres']}, "
        f"Python {figures['python']}, {figures['cpus']} CPUs)",
        f"  {'':<14}{'a second':>10}{'a CPU second':>14}",
    ]
    for name, key in (("ours", "ours"), ("upstream", "upstream"), ("fetch alone", "fetch")):
        wall, cpu = figures[f"{key}_per_second"], figures[f"{key}_per_cpu_second"]
        lines.append(f"  {name:<14}{wall:>10,.0f}{cpu:>14,.0f}")
    lines += [
        f"  ours is {figures['ratio_to_upstream']} times as fast as upstream "
        f"(rounds: {', '.join(map(str, figures['ratio_of_rounds']))})",
        f"one window of {figures['big_window_agents']} agents of "
        f"{figures['big_window_bytes_each'] // 1000} KB: peak {figures['peak_mib']} MiB, "
        f"of which {figures['imports_mib']} MiB are the worker itself",
    ]
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--windows", type=int, default=4)
    parser.add_argument("--agents", type=int, default=100, help="in each window")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--score-window", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.score_window:
        score_one_window(options.score_window)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "data"
        with embedded_postgres(folder, "benchmark") as url:
            figures = measure(folder, url, options)
    print(json.dumps(figures) if options.json else table(figures))


if __name__ == "__main__":
    main()
