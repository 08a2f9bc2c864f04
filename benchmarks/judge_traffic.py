"""Judged windows a second: a real Celery worker, litellm and ART's ruler() against a slow judge.

    python benchmarks/judge_traffic.py [--windows 16] [--judge-seconds 2] [--json]

The judge is the tests' local HTTP server. It answers each question after `--judge-seconds`, and
takes at most 32,000 tokens (cl100k_base). On embedded Postgres and Redis:

- *first*: `--windows` windows of 8 agents, on a worker that has not asked a judge yet (it imports
  ART and litellm, 4 to 8 s, once in each process);
- *warm*: as many again, on the same worker. One pool process claims them all and overlaps their
  questions; one after another they would take windows x judge-seconds;
- *large*: one window of 64 agents x 60 steps, in overlapping groups; the rank correlation of its
  scores with the scores that the judge was told to give.

The clock runs from the message that makes the windows due to the last one's commit.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from babylon_tasks.local.postgres import embedded_postgres
from babylon_tasks.local.redis import embedded_redis
from babylon_tasks.local.supervisor import Stack, roles
from babylon_tasks.records.windows import window_id_at
from babylon_tasks.scoring.agreement import spearman
from babylon_tasks.store.migrate import migrate
from tests.judge_server import JudgeServer

CONTEXT_TOKENS = 32_000
INSERT = """
INSERT INTO trajectories (id, "trajectoryId", "agentId", "startTime", "endTime", "durationMs",
    "windowId", "scenarioId", "stepsJson", "rewardComponentsJson", "metricsJson", "metadataJson",
    "totalReward", "episodeLength", "finalStatus", "updatedAt")
VALUES (%(id)s, %(id)s, %(agent)s, now(), now(), 1, %(window)s, %(window)s, %(steps)s, '{}', '{}',
    '{}', 0, %(length)s, 'completed', now())
"""


def main() -> None:
    """Measure once and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--windows", type=int, default=16)
    parser.add_argument("--judge-seconds", type=float, default=2.0)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="babylon-bench-")))
        url = stack.enter_context(embedded_postgres(folder / "postgres", "bench"))
        redis_url = stack.enter_context(embedded_redis(folder / "redis"))
        judge = stack.enter_context(JudgeServer(max_context_tokens=CONTEXT_TOKENS))
        judge.delay_seconds = options.judge_seconds
        migrate(url)
        env = {
            "DATABASE_URL": url,
            "REDIS_URL": redis_url,
            "SCORING": "ruler",
            "JUDGE_MODEL": "openai/judge",
            "JUDGE_BASE_URL": judge.url,
            "JUDGE_CONTEXT_TOKENS": str(CONTEXT_TOKENS),
            "LOOKBACK_HOURS": str(4 * options.windows + 10),
        }
        os.environ.update(env)
        context = next(role for role in roles(0) if role.name == "cpu")
        stack.enter_context(Stack([context], folder / "logs", env))
        from babylon_tasks.celery import app

        while not app.control.ping(timeout=1):
            pass
        connection = stack.enter_context(psycopg.connect(url, autocommit=True))
        hours = iter(range(2, 10_000))
        figures: dict[str, Any] = {"judge_seconds": options.judge_seconds}
        for name in ("first", "warm"):
            windows = [window_hours_ago(next(hours)) for _ in range(options.windows)]
            for window in windows:
                write(connection, window, agents=8, steps=8)
            figures[f"{name}_seconds"] = round(score(app, connection, windows), 2)
        figures["windows"] = options.windows
        figures["most_questions_at_once"] = judge.most_at_once
        asked = len(judge.requests)
        window = window_hours_ago(next(hours))
        wanted = write(connection, window, agents=64, steps=60)
        figures["large_seconds"] = round(score(app, connection, [window]), 2)
        scores = dict(connection.execute("SELECT trajectory_id, score FROM rl.scores").fetchall())
        figures["large_questions"] = len(judge.requests) - asked
        figures["large_longest_prompt"] = max(
            judge.prompt_tokens(request) for request in judge.requests[asked:]
        )
        figures["large_refused"] = sum(
            request.behaviour == "context_too_long" for request in judge.requests[asked:]
        )
        rank = spearman(list(wanted.values()), [scores[each] for each in wanted])
        figures["large_rank_correlation"] = None if rank is None else round(rank, 4)
    if options.json:
        print(json.dumps(figures))
        return
    for name, value in figures.items():
        print(f"{name:26} {value}")


def window_hours_ago(hours: int) -> str:
    """Return the id of the window that many hours before the current one."""
    return window_id_at(datetime.now(UTC) - timedelta(hours=hours))


def write(
    connection: psycopg.Connection[Any], window: str, agents: int, steps: int
) -> dict[str, float]:
    """Write one window, and return the score that the judge should give each trajectory."""
    rng = random.Random(window)
    wanted = {}
    for number in range(agents):
        name, score = f"{window}-{number}", round(rng.random(), 4)
        connection.execute(
            'INSERT INTO "User" (id, username, "updatedAt") VALUES (%s, %s, now())', [name, name]
        )
        text = json.dumps(list(play(rng, steps, score)))
        row = {"id": name, "agent": name, "window": window, "steps": text, "length": steps}
        connection.execute(INSERT, row)
        wanted[name] = score
    return wanted


def play(rng: random.Random, steps: int, score: float) -> Iterator[dict[str, Any]]:
    """Yield an agent's steps, with a P&L that moves; the first tells the judge its score."""
    pnl = 0.0
    for step in range(steps):
        side = rng.choice(("YES", "NO"))
        amount = rng.randrange(10, 200, 5)
        parameters = {"marketId": f"m{rng.randrange(6)}", "side": side, "amount": amount}
        if step == 0:
            parameters["note"] = f"JUDGE-SCORE={score}"
        yield {
            "stepNumber": step,
            "environmentState": {"agentBalance": 10_000 + pnl, "agentPnL": round(pnl, 2)},
            "llmCalls": [
                {
                    "systemPrompt": "You trade prediction markets.",
                    "userPrompt": f"Step {step}. Balance {10_000 + pnl:.2f}. What do you do?",
                    "response": json.dumps({"action": "BUY_SHARES", "side": side, "step": step}),
                    "purpose": "action",
                }
            ],
            "action": {
                "actionType": "BUY_SHARES",
                "parameters": parameters,
                "success": rng.random() < 0.95,
                "reasoning": f"momentum speaks for {side}, and its price is below its worth",
            },
        }
        pnl += rng.uniform(-1, 1) * amount


def score(app: Any, connection: psycopg.Connection[Any], windows: list[str]) -> float:
    """Score the windows, and return the seconds from the message to the last commit."""
    started = time.perf_counter()
    app.send_task("babylon.enqueue", args=[windows], queue="cpu")
    while True:
        (unscored,) = connection.execute(
            "SELECT %s - count(*) FROM rl.windows WHERE state = 'scored' AND window_id = ANY (%s)",
            [len(windows), windows],
        ).fetchone() or (1,)
        if not unscored:
            return time.perf_counter() - started
        time.sleep(0.02)


if __name__ == "__main__":
    main()
