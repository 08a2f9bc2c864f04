"""Windows for the local judge, and what became of them."""

from __future__ import annotations

import itertools
import json
import time
from typing import Any

from babylon_tasks import pipeline
from babylon_tasks.work.context import Context
from tests.judge_server import WRITTEN_SCORE, JudgeServer, Received, text_of
from tests.rows import add_trajectory, hours_ago, one, query

THREE = [0.2, 0.9, 0.5]

_ids = itertools.count(1)


def play(pnl: float, score: float | None = None, steps: int = 3, **changes: Any) -> str:
    """`stepsJson` of an agent whose run the local judge scores as it says.

    `changes` are merged into the first step's action.
    """
    marker = "" if score is None else f" JUDGE-SCORE={score}"
    written = [
        {
            "stepNumber": n,
            "environmentState": {"agentBalance": 1000, "agentPnL": pnl * n / max(steps - 1, 1)},
            "llmCalls": [
                {
                    "systemPrompt": "You trade.",
                    "userPrompt": f"Step {n}: buy or wait?",
                    "response": f"BUY YES {pnl} {n}",
                    "purpose": "action",
                }
            ],
            "action": {
                "actionType": "BUY_SHARES",
                "parameters": {"marketId": "m1", "side": "YES", "amount": 10 + n},
                "success": True,
                "reasoning": f"I buy{marker}" if n == 0 else "",
            },
        }
        for n in range(steps)
    ]
    written[0]["action"] = {**written[0]["action"], **changes}  # type: ignore[dict-item]
    return json.dumps(written)


def add_judged_window(context: Context, window: str, scores: list[float]) -> dict[str, float]:
    """A window whose agents the judge should score so; trajectory id → score."""
    return {
        add_trajectory(context, window, f"agent-{n}", stepsJson=play(-50.0 * n, score)): score
        for n, score in enumerate(scores)
    }


def judged_windows(context: Context, count: int) -> list[str]:
    """So many windows of three agents that are due, oldest first."""
    windows = sorted(hours_ago(n) for n in range(2, 2 + count))
    for window in windows:
        add_judged_window(context, window, THREE)
    pipeline.produce(context)
    return windows


def add_outcome(context: Context, window: str, **columns: Any) -> None:
    """A row of `market_outcomes`."""
    row = {"id": f"outcome-{next(_ids)}", "windowId": window, **columns}
    names = ", ".join(f'"{name}"' for name in row)
    values = ", ".join(f"%({name})s" for name in row)
    with context.database.transaction() as tx:
        tx.execute(f"INSERT INTO market_outcomes ({names}) VALUES ({values})", row)


def stored(context: Context, scorer: str = "ruler") -> dict[str, float]:
    """Trajectory id → score."""
    rows = query(context, "SELECT trajectory_id, score FROM rl.scores WHERE scorer = %s", scorer)
    return {row["trajectory_id"]: row["score"] for row in rows}


def window_row(context: Context, window: str) -> dict[str, Any]:
    """The window's row, with the seconds that it has to wait yet."""
    return one(
        context,
        """SELECT *, extract(epoch FROM not_before - rl.now())::float8 AS waits FROM rl.windows
            WHERE window_id = %s""",
        window,
    )


def prompt(request: Received) -> str:
    """All that the judge was told."""
    return "\n".join(map(text_of, request.messages))


def marks(request: Received) -> set[float]:
    """The scores that the shown trajectories ask for: which ones they are."""
    found = [WRITTEN_SCORE.search(text) for text in request.trajectories.values()]
    return {float(each[1]) for each in found if each}


def wait_for_requests(server: JudgeServer, count: int) -> None:
    """Until the judge was asked so often; whoever asked may have given up before it noticed."""
    end = time.monotonic() + 20
    while len(server.requests) < count and time.monotonic() < end:
        time.sleep(0.01)
    assert len(server.requests) == count


def assert_costs_add_up(context: Context, window: str) -> None:
    """What the window's scores say that asking cost is what was paid for all its answers."""
    paid = one(
        context,
        """SELECT sum(prompt_tokens + completion_tokens) AS tokens, sum(usd) AS usd
             FROM rl.judgments WHERE window_id = %s""",
        window,
    )
    told = one(
        context,
        """SELECT sum(judge_tokens) AS tokens, sum(judge_usd) AS usd
             FROM rl.scores WHERE window_id = %s""",
        window,
    )
    assert paid["tokens"] > 0
    assert told == paid


def every_row(context: Context) -> str:
    """All rows of all tables, as text."""
    tables = query(
        context,
        """SELECT format('%%I.%%I', table_schema, table_name) AS name
             FROM information_schema.tables
            WHERE table_schema IN ('rl', 'public') AND table_type = 'BASE TABLE'""",
    )
    return "\n".join(
        row["text"]
        for table in tables
        for row in query(context, f"SELECT to_jsonb(t)::text AS text FROM {table['name']} t")
    )
