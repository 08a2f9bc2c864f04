"""Seconds that `babylon status` takes, with many windows in the database.

    python benchmarks/status.py [--windows 20000] [--repeats 9] [--json]

An embedded Postgres and Redis. The windows are of five lineages, most of them trained, a few
hundred due or scored; each has one attempt at scoring and one at training. 200 steps have exams,
and there are 20,000 judgments, a hundred of them of today. All figures are medians, and the
programs take turns:

- *command*: `babylon status`, a whole process, as a person waits for it.
- *json*: `babylon status --json`.
- *queries*: what it reads of Postgres, in a process that has done so before.
- *version*: `babylon --version`, which reads nothing.
- *python*: `python -c pass`.

`command_cpu_seconds` is the processor time of the command (without that of the servers), which
other programs on the machine disturb less than the clock.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import psycopg

from babylon_tasks.cockpit.overview import overview
from babylon_tasks.local.postgres import embedded_postgres
from babylon_tasks.local.redis import embedded_redis
from babylon_tasks.settings import Settings
from babylon_tasks.store.migrate import migrate
from babylon_tasks.work.context import Context

LIMIT_SECONDS = 0.6
LINEAGES, STEPS, WAITING, JUDGMENTS = 5, 200, 400, 20_000

# A lineage has every fifth window; the newest WAITING ones are due or scored.
_ROWS = """
INSERT INTO rl.lineages (name, base_model, is_primary, own_settings, created_by, created_at)
SELECT CASE WHEN n = 0 THEN 'babylon-agent' ELSE 'lineage-' || n END, 'base', n = 0, n = 0,
       'benchmark', now()
  FROM generate_series(0, {lineages} - 1) AS n;

INSERT INTO rl.windows (window_id, model_name, state, scorer, score_rev, agents, trajectories,
                        text_bytes, due_at, scored_at, trained_at, trained_step)
SELECT to_char(now() - make_interval(hours => n / {lineages} + 1), 'YYYY-MM-DD"T"HH24:00'), l.name,
       state, 'heuristic', 1, 40, 40, 800000, now() - make_interval(hours => n / {lineages}),
       CASE WHEN state <> 'due' THEN now() END, CASE WHEN state = 'trained' THEN now() END,
       CASE WHEN state = 'trained' THEN 1 + n % ({steps} / {lineages}) END
  FROM generate_series(0, {windows} - 1) AS n
  JOIN LATERAL (SELECT CASE WHEN n < {waiting} / 2 THEN 'due' WHEN n < {waiting} THEN 'scored'
                            WHEN n % 97 = 0 THEN 'skipped' ELSE 'trained' END AS state) s ON true
  JOIN (SELECT name, row_number() OVER (ORDER BY name) - 1 AS number FROM rl.lineages) l
    ON l.number = n % {lineages};

INSERT INTO rl.attempts (model_name, window_id, token, stage, holder, started_at, ended_at, outcome)
SELECT model_name, window_id, nextval('rl.lease_tokens'), stage, 'machine-' || stage || ':4711',
       due_at, due_at + interval '1 second', 'done'
  FROM rl.windows, unnest(ARRAY['score', 'train']) AS stage;

INSERT INTO rl.steps (model_name, step, parent_step, token, trainer, window_ids, trajectories,
                      trainable_tokens, metrics, checkpoint, version, seconds, gpu_seconds,
                      recipe, started_at, committed_at)
SELECT l.name, n, n - 1, nextval('rl.lease_tokens'), 'torch', ARRAY['2026-01-01T00:00'], 40, 12000,
       '{{"loss": 0.01, "context_tokens": 190000, "policy_change": 0.02}}', 'file:///none',
       'v1.0.' || n, '{{"forward_backward": 30, "load": 4}}', 34, '{{}}', now(), now()
  FROM rl.lineages l, generate_series(1, {steps} / {lineages}) AS n;
INSERT INTO rl.heads (model_name, step, published_step, base_model, gated)
SELECT name, {steps} / {lineages}, {steps} / {lineages} - 1, 'base', true FROM rl.lineages;
INSERT INTO rl.exams (model_name, step, served_step, state, reason, token, holder, opened_at,
                      decided_at, seconds)
SELECT model_name, step, step - 1, CASE WHEN step % 40 = 0 THEN 'failed' ELSE 'passed' END,
       'better or as good', token, 'machine-train:4711', committed_at, committed_at, 1.7
  FROM rl.steps;

INSERT INTO rl.judgments (id, model_name, window_id, question, judge_model, rubric_hash,
                          trajectory_ids, scores, explanations, prompt_tokens,
                          completion_tokens, usd, asked_at)
SELECT gen_random_uuid(), 'babylon-agent', '2026-01-01T00:00', 'question ' || n, 'judge', 'hash',
       ARRAY['a', 'b'], ARRAY[0.1, 0.9], ARRAY['', ''], 4000, 400, 0.01,
       now() - CASE WHEN n > 100 THEN interval '2 days' ELSE interval '0' END
  FROM generate_series(1, {judgments}) AS n;
ANALYZE;
"""


def load(url: str, windows: int) -> None:
    """Write the rows."""
    sizes = {"lineages": LINEAGES, "steps": STEPS, "waiting": WAITING, "judgments": JUDGMENTS}
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(_ROWS.format(windows=windows, **sizes))  # type: ignore[arg-type]


def medians(actions: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Run the actions in turns, after one run of each that does not count."""
    taken: dict[str, list[float]] = {name: [] for name in actions}
    for number in range(repeats + 1):
        for name, action in actions.items():
            started = time.perf_counter()
            action()
            if number:
                taken[name].append(time.perf_counter() - started)
    return {name: round(statistics.median(each), 4) for name, each in taken.items()}


def cpu_seconds(action: Callable[[], object], repeats: int) -> float:
    """Return the processor time of the child processes that an action runs, on average."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    for _ in range(repeats):
        action()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return round(used / repeats, 4)


def measure(url: str, redis_url: str, repeats: int, folder: Path) -> dict[str, float]:
    """Return the median seconds of each program, and of the queries."""
    names = ("PATH", "HOME", "LANG")
    env = {name: os.environ[name] for name in names if name in os.environ}
    env |= {"DATABASE_URL": url, "REDIS_URL": redis_url}
    babylon = str(Path(sys.executable).with_name("babylon"))
    settings = Settings(database_url=url)  # type: ignore[arg-type, call-arg]
    context = Context.of_deployment(settings, "benchmark")

    def program(*command: str) -> Callable[[], object]:
        return lambda: subprocess.run(
            command, env=env, cwd=folder, check=True, stdout=subprocess.DEVNULL
        )

    command = program(babylon, "status")
    taken = medians(
        {
            "command_seconds": command,
            "json_seconds": program(babylon, "status", "--json"),
            "queries_seconds": lambda: overview(context),
            "version_seconds": program(babylon, "--version"),
            "python_seconds": program(sys.executable, "-c", "pass"),
        },
        repeats,
    )
    return taken | {"command_cpu_seconds": cpu_seconds(command, repeats)}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--windows", type=int, default=20_000)
    parser.add_argument("--repeats", type=int, default=9, help="runs of each")
    arguments = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as folder,
        embedded_postgres(Path(folder) / "data", "postgres") as url,
        embedded_redis(Path(folder) / "redis") as redis_url,
    ):
        migrate(url)
        load(url, arguments.windows)
        figures: dict[str, Any] = {
            "cpus": os.cpu_count(),
            "python": platform.python_version(),
            "windows": arguments.windows,
            **measure(url, redis_url, arguments.repeats, Path(folder)),
        }
    print(json.dumps(figures) if arguments.json else table(figures))


def table(figures: dict[str, Any]) -> str:
    """Write the figures for people."""
    lines = [f"{figures['windows']:,} windows of {LINEAGES} lineages, {figures['cpus']} CPUs"]
    rows = {
        "babylon status": "command_seconds",
        "  of processor time": "command_cpu_seconds",
        "babylon status --json": "json_seconds",
        "  of that the queries": "queries_seconds",
        "babylon --version": "version_seconds",
        "python -c pass": "python_seconds",
    }
    for name, key in rows.items():
        lines.append(f"  {name:<24}{figures[key]:>8.3f} s")
    within = "within" if figures["command_seconds"] <= LIMIT_SECONDS else "NOT within"
    return "\n".join([*lines, f"  {within} {LIMIT_SECONDS} s"])


if __name__ == "__main__":
    main()
