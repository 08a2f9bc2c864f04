"""Odd rows through a real Postgres: each is scored or set aside, and its window still trains."""

from __future__ import annotations

import itertools
import json
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from babylon_tasks import pipeline
from babylon_tasks.work.context import Context
from tests.odd import ODD_TOKENS, mutated_traces, valid_trace
from tests.rows import add_trajectory, add_window, hours_ago, one, query, states, steps
from workers.gpu.client import TrainerOptions, TrainerProcess

# A window of its own for each example, since the database lives as long as the test.
_hours = itertools.count(2)


@pytest.fixture(scope="module")
def trainer() -> Iterator[TrainerProcess]:
    process = TrainerProcess(TrainerOptions("noop", None, "cpu-0", 1.0, 30.0, 60.0))
    yield process
    process.close()


def train_and_account(context: Context, trainer: TrainerProcess, window: str) -> dict[str, str]:
    """Score and train; every trajectory must have a score or a reason. Id → reason."""
    pipeline.produce(context)
    assert pipeline.score(context) == [window]
    rows = query(
        context,
        """SELECT "trajectoryId" AS id, s.score, q.reason, q.detail
             FROM trajectories t
             LEFT JOIN rl.scores s ON s.trajectory_id = "trajectoryId"
             LEFT JOIN rl.quarantine q ON q.trajectory_id = "trajectoryId"
            WHERE t."windowId" = %s""",
        window,
    )
    for row in rows:
        assert (row["score"] is None) != (row["reason"] is None), row
        assert row["score"] is not None or (row["detail"] and row["detail"].isprintable())
    pipeline.train(context, trainer)
    assert states(context)[window] == "trained"
    return {row["id"]: row["reason"] for row in rows if row["reason"]}


def test_fixed_odd_texts(context: Context, trainer: TrainerProcess) -> None:
    window = hours_ago(next(_hours))
    add_window(context, window)
    texts = [json.dumps(valid_trace()).replace('"BUY"', token, 1) for token in ODD_TOKENS]
    texts += ["", "null", "{}", "\ufeff[]", "[" * 1_000_000, steps("NaN"), steps(1e300)]
    for number, text in enumerate(texts):
        add_trajectory(context, window, f"odd-{number}", stepsJson=text)
    reasons = train_and_account(context, trainer, window)
    assert set(reasons.values()) == {"bad_json", "wrong_shape", "no_steps", "bad_pnl"}


@settings(
    max_examples=5,
    deadline=None,
    database=None,
    phases=[Phase.generate],  # shrinking would run out of hours
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(texts=st.lists(mutated_traces(), min_size=1, max_size=30))
def test_any_texts(context: Context, trainer: TrainerProcess, texts: list[str]) -> None:
    window = hours_ago(next(_hours))
    add_window(context, window)
    for number, text in enumerate(texts):
        stored = text.replace("\x00", "").encode("utf-8", "replace").decode()  # Postgres's text
        add_trajectory(context, window, f"odd-{number}", stepsJson=stored)
    train_and_account(context, trainer, window)


def test_odd_values_in_other_columns(context: Context, trainer: TrainerProcess) -> None:
    window = hours_ago(next(_hours))
    add_window(context, window)
    rng = random.Random(1)
    # As long as an index of one column can hold, and too long for one of three.
    long_id = "".join(rng.choice("abcdefghijklmnopqrstuvwxyz0123456789") for _ in range(2680))
    odd: list[tuple[str, dict[str, Any]]] = [
        ("", {}),
        ("a" * 150_000, {}),
        ("line\nbreak\x1b[2J; DROP TABLE trajectories; --", {}),
        ("\u202ertl 😀 \ufffe", {}),
        ("future", {"startTime": datetime.max, "endTime": datetime.min, "durationMs": -1}),
        ("forever", {"createdAt": "infinity", "startTime": "-infinity"}),
        ("numbers", {"finalPnL": float("nan"), "totalReward": float("inf"), "episodeLength": -9}),
        ("texts", {"metadataJson": "\ufffd", "metricsJson": "[", "rewardComponentsJson": ""}),
        ("empty id", {"trajectoryId": ""}),
        ("odd id", {"trajectoryId": "a'b\\c\n{}[],NULL\""}),
        ("long id", {"trajectoryId": long_id}),
        ("scenario", {"scenarioId": "%_\\" * 33}),
    ]
    for agent, columns in odd:
        add_trajectory(context, window, agent, **{"stepsJson": steps(50), **columns})
    assert train_and_account(context, trainer, window) == {long_id: "bad_id"}
    assert one(context, "SELECT trajectories FROM rl.steps")["trajectories"] == 3 + len(odd) - 1


def test_odd_outcomes_and_actions_cost_no_window(make_context: Callable[..., Context]) -> None:
    """Prices that are NaN, a question of a megabyte, actions of any shape: a scorer reads them."""
    context = make_context(scoring="correctness")
    window = hours_ago(next(_hours))
    outcomes = [
        ("NOVA", "NaN", "NaN", "NaN", None, None, "UP"),
        ("ORBX", 0, 0, 0, "", "", ""),
        (None, None, None, None, "m1", "?\u202e\n" * 100_000, "MAYBE"),
        (None, 1, "NaN", None, None, None, "\x1b[2J"),
    ]
    for number, (ticker, start, end, change, market, question, outcome) in enumerate(outcomes):
        query(
            context,
            """INSERT INTO market_outcomes (id, "windowId", "stockTicker", "startPrice", "endPrice",
                   "changePercent", "predictionMarketId", question, outcome)
               VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s) RETURNING 1""",
            f"o-{number}", window, ticker, start, end, change, market, question, outcome,
        )  # fmt: skip
    actions: list[Any] = [
        {"actionType": "OPEN", "parameters": {"ticker": "NOVA", "side": "SHORT"}, "success": True},
        {"actionType": ["OPEN"], "parameters": {"ticker": {}, "side": [None]}, "success": {}},
        {"actionType": "x" * 10_000, "parameters": {"marketId": 1e300, "side": -1, "k" * 999: 1}},
        {"parameters": [[1]], "success": "false", "error": {"message": ["no"]}},
        "BUY", [], 7, None,
    ]  # fmt: skip
    for number, action in enumerate(actions):
        odd = json.loads(steps(10 * number))
        for step in odd:
            step["action"] = action
        add_trajectory(context, window, f"agent-{number}", stepsJson=json.dumps(odd))
    pipeline.produce(context)
    assert pipeline.score(context) == [window]
    assert query(context, "SELECT * FROM rl.quarantine") == []
    rows = query(context, "SELECT score, components FROM rl.scores")
    assert len(rows) == len(actions)
    assert all(0 <= row["score"] <= 1 and row["components"]["correctness"] == 0.5 for row in rows)


_SCORE_TWO_WINDOWS = """
import resource, sys
from babylon_tasks import pipeline
from babylon_tasks.work.context import Context
from babylon_tasks.settings import Settings
from babylon_tasks.store.database import Database

settings = Settings(database_url=sys.argv[1])
context = Context.of_deployment(settings, "test:1")
for window in sys.argv[2:]:
    assert pipeline.score(context, [window]) == [window]
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_a_hundred_megabytes_are_set_aside_unread(context: Context) -> None:
    """By the size that Postgres tells; memory is that of a process that never met the row."""
    before, after = hours_ago(3), hours_ago(2)
    add_window(context, before)
    add_window(context, after)
    huge = add_trajectory(context, after, "huge")
    query(
        context,
        """UPDATE trajectories SET "stepsJson" = '[{"a":"' || repeat('x', 100000000) || '"}]'
            WHERE "trajectoryId" = %s RETURNING 1""",
        huge,
    )
    pipeline.produce(context)
    done = subprocess.run(
        [sys.executable, "-c", _SCORE_TWO_WINDOWS, context.settings.postgres(), before, after],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    first, second = map(int, done.stdout.split())
    assert (second - first) / 1024 < 20  # MB
    found = one(context, "SELECT * FROM rl.quarantine")
    assert (found["trajectory_id"], found["reason"]) == (huge, "too_large")
    assert found["detail"] == "stepsJson has 100000010 bytes, above MAX_TRACE_BYTES"
    assert states(context)[after] == "scored"
