"""Seconds to list the windows of three days: this project's query against upstream's way.

    python benchmarks/list_windows.py [--trajectories 100000] [--json]
    python benchmarks/list_windows.py --trajectories 1000000 --no-upstream

An embedded Postgres gets trajectories evenly over 72 hours; the running hour is full. Each has a
few steps and less than 2 KB. Real ones have 20 to 300 KB, so the comparison favours upstream. An
agent has one trajectory in most windows. The oldest nine tenths are vacuumed and the newest hours
are not, as in a growing table with autovacuum. All figures are medians of warm runs.

- *ours, steady*: `babylon windows list` in production. The producer ran within the last minute, so
  ended windows are read from `rl.windows` and the running hour is counted.
- *ours, cold*: before the producer's first run, when every window is counted.
- *producer*: one run of `pipeline.produce`, the first (72 windows become due) and every later one.
- *upstream*: `MODE=list` of `babylon_trainer.py` collects each hour from 2 to 71 hours ago in
  full: it reads all columns that it trains on, by an OR over two columns, and parses every text.

`--locale` is the database's. In `C`, the default, upstream's LIKE can use an index. In any other
(`C.UTF-8` here, `en_US.UTF-8` in the usual images) it reads the whole table for each hour.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import asyncpg
import psycopg
from app_rows import load
from psycopg import sql

from babylon_tasks import pipeline
from babylon_tasks.local.postgres import embedded_postgres
from babylon_tasks.records.windows import WindowListing, window_id_at
from babylon_tasks.settings import Settings
from babylon_tasks.store import windows as window_rows
from babylon_tasks.store.migrate import migrate
from babylon_tasks.work.context import Context

HOURS = 72  # trajectories are spread over so many, the running one included
UPSTREAM_HOURS = range(2, 72)

_UPSTREAM_COLLECT = """
SELECT t."trajectoryId", t."agentId", t."stepsJson", u.username
  FROM trajectories t LEFT JOIN "User" u ON u.id = t."agentId"
 WHERE (t."scenarioId" = $1 OR t."scenarioId" LIKE $1 || '%' OR t."windowId" = $1)
   AND t."stepsJson" IS NOT NULL
   AND t."stepsJson"::text != 'null'
   AND t."stepsJson"::text != '[]'
 ORDER BY t."createdAt"
"""


def seconds(action: Callable[[], object], repeats: int = 1) -> list[float]:
    """Run an action several times, and return the seconds of each run."""
    taken = []
    for _ in range(repeats):
        started = time.perf_counter()
        action()
        taken.append(time.perf_counter() - started)
    return taken


async def upstream_list(url: str, window_ids: list[str]) -> dict[str, int]:
    """Count the agents of each window, as upstream does: by collecting it in full."""
    connection = await asyncpg.connect(url)
    try:
        return {each: len(await upstream_collect(connection, each)) for each in window_ids}
    finally:
        await connection.close()


async def upstream_collect(connection: Any, window_id: str) -> dict[str, Any]:
    """Return each agent's name and parsed trajectories, by agent id."""
    agents: dict[str, Any] = {}
    for row in await connection.fetch(_UPSTREAM_COLLECT, window_id):
        agent = agents.setdefault(
            row["agentId"], {"name": row["username"] or row["agentId"], "trajectories": []}
        )
        steps = json.loads(row["stepsJson"])
        pnl = float(steps[-1].get("environmentState", {}).get("agentPnL", 0)) if steps else 0.0
        agent["trajectories"].append({"id": row["trajectoryId"], "steps": steps, "pnl": pnl})
    return agents


def measure(url: str, trajectories: int, repeats: int, upstream: bool) -> dict[str, Any]:
    """Load the rows, then list the windows in every way."""
    now = datetime.now(UTC)
    migrate(url)
    (load_seconds,) = seconds(lambda: load(url, trajectories, now, hours=HOURS))
    # Nothing settles: the running hour is counted, whatever the minute, and no other.
    settings = Settings(database_url=url, settle_seconds=0)  # type: ignore[arg-type, call-arg]
    context = Context.of_deployment(settings, "benchmark")

    def ours() -> list[WindowListing]:
        return window_rows.listing(tx, context.lineage.name, settings)

    with context.database.transaction() as tx:
        ours()
        cold = seconds(ours, repeats)
        cold_rows = {row.window_id: row.agents for row in ours()}
    first_produce = seconds(lambda: pipeline.produce(context))
    later_produce = seconds(lambda: pipeline.produce(context), repeats)
    with context.database.transaction() as tx:
        tx.execute("ANALYZE rl.windows")
        steady_rows = {row.window_id: row.agents for row in ours()}
        steady = seconds(ours, repeats)
    assert cold_rows == steady_rows
    assert len(steady_rows) == HOURS

    upstream_seconds: list[float] = []
    window_ids = [window_id_at(now - timedelta(hours=hours)) for hours in UPSTREAM_HOURS]
    for _ in range(3 if upstream else 0):
        started = time.perf_counter()
        agents_by_window = asyncio.run(upstream_list(url, window_ids))
        upstream_seconds.append(time.perf_counter() - started)
        assert all(steady_rows[window] == agents for window, agents in agents_by_window.items())
        with context.database.transaction() as tx:
            steady += seconds(ours, repeats)

    figures: dict[str, Any] = {
        "trajectories": trajectories,
        "load_seconds": round(load_seconds, 1),
        "ours_steady_seconds": round(statistics.median(steady), 6),
        "ours_cold_seconds": round(statistics.median(cold), 6),
        "produce_first_seconds": round(first_produce[0], 6),
        "produce_later_seconds": round(statistics.median(later_produce), 6),
    }
    if upstream:
        taken = statistics.median(upstream_seconds)
        figures |= {
            "upstream_seconds": round(taken, 4),
            "ratio_upstream_to_steady": round(taken / statistics.median(steady)),
            "ratio_upstream_to_cold": round(taken / statistics.median(cold)),
        }
    return figures


def make_database(url: str, locale: str) -> str:
    """Make a database with that locale on the server, and return its URL."""
    statement = sql.SQL("CREATE DATABASE listing TEMPLATE template0 ENCODING 'UTF8' LOCALE {}")
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(statement.format(locale))
    return urlunsplit(urlsplit(url)._replace(path="/listing"))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--trajectories", type=int, default=100_000)
    parser.add_argument("--no-upstream", action="store_true", help="measure ours only")
    parser.add_argument("--locale", choices=("C", "C.UTF-8"), default="C")
    parser.add_argument("--repeats", type=int, default=15, help="runs of each query of ours")
    arguments = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as folder,
        embedded_postgres(Path(folder) / "data", "postgres") as server,
    ):
        url = make_database(server, arguments.locale)
        with psycopg.connect(url) as connection:
            version = connection.info.parameter_status("server_version")
        figures = {
            "cpus": os.cpu_count(),
            "python": platform.python_version(),
            "postgres": version,
            "locale": arguments.locale,
            **measure(url, arguments.trajectories, arguments.repeats, not arguments.no_upstream),
        }
    print(json.dumps(figures) if arguments.json else table(figures))


def table(figures: dict[str, Any]) -> str:
    """Write the figures for people."""
    lines = [
        f"{figures['trajectories']:,} trajectories in {HOURS} windows, locale {figures['locale']} "
        f"(PostgreSQL {figures['postgres']}, Python {figures['python']}, {figures['cpus']} CPUs, "
        f"loaded in {figures['load_seconds']} s)"
    ]
    rows = [
        ("ours, steady", "ours_steady_seconds", "ratio_upstream_to_steady"),
        ("ours, cold", "ours_cold_seconds", "ratio_upstream_to_cold"),
        ("producer, first run", "produce_first_seconds", None),
        ("producer, later runs", "produce_later_seconds", None),
        ("upstream", "upstream_seconds", None),
    ]
    for name, key, ratio in rows:
        if key in figures:
            line = f"  {name:<22}{figures[key] * 1000:>12,.2f} ms"
            if ratio in figures:
                line += f"   upstream takes {figures[ratio]:,} times as long"
            lines.append(line)
    return "\n".join(lines)


if __name__ == "__main__":
    main()
