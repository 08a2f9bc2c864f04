"""What the endpoint's memory costs: time of a request, Postgres' disk, and looking answers up.

    python benchmarks/capture.py [--rows 100000] [--json]

An embedded Postgres with indexes and autovacuum as shipped. For short answers (30 tokens) and for
longer ones (150), so many are given to `Capture.add` as fast as its queue takes them, of 1,000
agents. Then batches of recorded calls are looked up, as scoring and training do it, and the table
is turned over once: all is forgotten as the sweep forgets, and as many answers come again.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import psycopg
from own_server import Server, run_server

from babylon_tasks.records.captured import CallKey, CapturedCall
from babylon_tasks.serving.remembered import forget_old_calls
from babylon_tasks.settings import Settings
from babylon_tasks.store import calls as call_rows
from babylon_tasks.store.calls import Wanted
from babylon_tasks.store.database import Database
from workers.serve.capture import Capture

TOKENS = (30, 150)
AGENTS = 1000
ANSWERS_A_SECOND = 10
FULL_QUEUE = 4000  # answers; more are given when it is shorter
LOOKED_UP = 512  # calls in one query
LOOK_UPS = 40


def make_answers(count: int, tokens: int, rng: random.Random) -> list[CapturedCall]:
    """Make answers of about so many tokens each, with hashes and values of no pattern."""
    now = datetime.now(UTC)
    answers = []
    for _ in range(count):
        length = max(1, round(rng.gauss(tokens, tokens / 5)))
        answers.append(
            CapturedCall(
                at=now,
                lineage="babylon-agent",
                step=rng.randrange(20),
                agent=f"agent-{rng.randrange(AGENTS):019d}",
                prompt_hash=os.urandom(16),
                response_hash=os.urandom(16),
                backend="vllm",
                finish_reason="stop",
                token_ids=[rng.randrange(150_000) for _ in range(length)],
                logprobs=[-rng.expovariate(2) for _ in range(length)],
                prompt_tokens=rng.randrange(400, 2000),
                latency_ms=rng.randrange(100, 3000),
                first_token_ms=rng.randrange(20, 200),
            )
        )
    return answers


def give(settings: Settings, answers: Sequence[CapturedCall]) -> tuple[float, list[float]]:
    """Let an endpoint remember all of them; return the seconds, and the microseconds of each."""
    capture = Capture(settings)
    began = time.perf_counter()
    each = []
    for answer in answers:
        while capture.queued >= FULL_QUEUE:
            time.sleep(0.001)
        started = time.perf_counter()
        capture.add(answer)
        each.append((time.perf_counter() - started) * 1e6)
    while capture.counts.captured < len(answers):
        time.sleep(0.001)
    seconds = time.perf_counter() - began
    capture.close()
    assert not capture.counts.dropped
    return seconds, each


def table_bytes(url: str) -> int:
    """Return the table's bytes on disk, with indexes and TOAST."""
    with psycopg.connect(url) as connection:
        row = connection.execute("SELECT pg_total_relation_size('rl.calls')").fetchone()
    assert row is not None
    return int(row[0])


def look_up(url: str, answers: Sequence[CapturedCall], rng: random.Random) -> float:
    """Return the milliseconds of one query about `LOOKED_UP` calls, at the median."""
    database = Database(url)
    times = []
    for _ in range(LOOK_UPS):
        wanted = []
        for one in rng.sample(answers, LOOKED_UP):
            assert one.prompt_hash is not None
            key = CallKey(one.prompt_hash, one.response_hash)
            wanted.append(Wanted(key, one.agent or "", time.time()))
        started = time.perf_counter()
        with database.transaction() as tx:
            found = call_rows.find(tx, wanted, with_tokens=True)
        times.append((time.perf_counter() - started) * 1e3)
        assert len(found) == LOOKED_UP
    database.close()
    return statistics.median(times)


def turn_over(url: str, settings: Settings, answers: Sequence[CapturedCall]) -> dict[str, float]:
    """Forget all answers and remember as many again; return what that does to the table."""
    before = table_bytes(url)
    database = Database(url)
    started = time.perf_counter()
    none = settings.model_copy(update={"capture_rows": 0})
    while True:
        forget_old_calls(database, none)
        with database.transaction() as tx:
            if not call_rows.any_kept(tx):
                break
    seconds = time.perf_counter() - started
    database.close()
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("VACUUM rl.calls")  # as autovacuum does by itself
    give(settings, answers)
    return {
        "forgotten_a_second": round(len(answers) / seconds),
        "size_after_turnover": round(table_bytes(url) / before, 2),
    }


def measure(server: Server, rows: int, tokens: int) -> dict[str, Any]:
    """Measure answers of this length, in a database of their own."""
    rng = random.Random(tokens)
    url = server.database(f"tokens_{tokens}")
    settings = server.settings(url)
    answers = make_answers(rows, tokens, rng)
    seconds, each = give(settings, answers)
    bytes_a_row = table_bytes(url) / rows
    a_day = ANSWERS_A_SECOND * 86_400
    most = min(settings.capture_rows, round(settings.capture_days * a_day))
    each.sort()
    return {
        "bytes_a_row": round(bytes_a_row),
        "gigabytes_a_day": round(bytes_a_row * a_day / 1e9, 2),
        "gigabytes_at_most": round(bytes_a_row * most / 1e9, 1),
        "written_a_second": round(rows / seconds),
        "add_us_p50": round(each[len(each) // 2], 1),
        "add_us_p99": round(each[len(each) * 99 // 100], 1),
        f"find_{LOOKED_UP}_ms": round(look_up(url, answers, rng), 1),
        **turn_over(url, settings, answers),
    }


def main() -> None:
    """Measure both lengths and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    figures: dict[str, Any] = {"rows": arguments.rows, "answers_a_second": ANSWERS_A_SECOND}
    with run_server() as server:
        for tokens in TOKENS:
            figures[f"{tokens}_tokens"] = measure(server, arguments.rows, tokens)
    if arguments.json:
        print(json.dumps(figures, indent=2))
        return
    print(f"{arguments.rows:,} answers; a day is one of {ANSWERS_A_SECOND} answers a second")
    for tokens in TOKENS:
        print(f"{tokens} tokens:")
        for name, value in figures[f"{tokens}_tokens"].items():
            print(f"  {name:20} {value:>12,}")


if __name__ == "__main__":
    main()
