"""Rows as the app writes them, in the smallest form a test needs."""

from __future__ import annotations

import itertools
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from babylon_tasks import pipeline
from babylon_tasks.records.exams import Figures
from babylon_tasks.records.experiments import Arm, Standing, WindowEvidence
from babylon_tasks.records.lineages import Lineage
from babylon_tasks.records.steps import Trainer
from babylon_tasks.records.windows import window_id_at
from babylon_tasks.store import lineages
from babylon_tasks.store.database import jsonb
from babylon_tasks.work.context import Context
from babylon_tasks.work.fleet import Fleet

_ids = itertools.count(1_000_001)  # sorted as text as they are by number


class Hour:
    """The current hour, as a test began: it may end while the test runs."""

    began = datetime.now(UTC)


def hours_ago(hours: int) -> str:
    """The id of the window that many hours before the current one."""
    return window_id_at(Hour.began - timedelta(hours=hours))


def steps(pnl: Any, count: int = 3, response: str = "BUY YES", recorded: bool = False) -> str:
    """`stepsJson` with one LLM call a step; `recorded` with its log-probabilities."""
    content = [{"token": f"token_id:{id_}", "logprob": -0.25} for id_ in (11, 12, 13)]
    told = {"logprobs": {"content": content}} if recorded else {}
    return json.dumps(
        [
            {
                "stepNumber": n,
                "environmentState": {"agentBalance": 1000, "agentPnL": pnl, "openPositions": n},
                "llmCalls": [
                    {
                        "systemPrompt": "You trade.",
                        "userPrompt": f"Step {n}: buy or wait?",
                        "response": response,
                        **told,
                    }
                ],
                "action": {"actionType": "BUY_SHARES", "success": True},
            }
            for n in range(count)
        ]
    )


def add_trajectory(context: Context, window_id: str | None, agent: str, **columns: Any) -> str:
    """Insert one row of `trajectories`; returns its trajectoryId."""
    number = next(_ids)
    now = datetime.now(UTC).replace(tzinfo=None)
    row = {
        "id": f"row-{number}",
        "trajectoryId": f"t-{number}",
        "agentId": agent,
        "startTime": now,
        "endTime": now,
        "durationMs": 1,
        "windowId": window_id,
        "scenarioId": window_id,
        "stepsJson": steps(0),
        "rewardComponentsJson": "{}",
        "metricsJson": "{}",
        "metadataJson": "{}",
        "totalReward": 0.0,
        "episodeLength": 3,
        "finalStatus": "completed",
        "updatedAt": now,
        **columns,
    }
    with context.database.transaction() as tx:
        tx.execute(
            """INSERT INTO "User" (id, username, "updatedAt") VALUES (%s, %s, now())
               ON CONFLICT DO NOTHING""",
            [agent, agent],
        )
        names = ", ".join(f'"{name}"' for name in row)
        values = ", ".join(f"%({name})s" for name in row)
        tx.execute(f"INSERT INTO trajectories ({names}) VALUES ({values})", row)
    return str(row["trajectoryId"])


def add_window(
    context: Context,
    window_id: str,
    agents: int = 3,
    spread: float = 300.0,
    recorded: bool = False,
    **columns: Any,
) -> list[str]:
    """A window whose agents' P&L differ by `spread` dollars each; the trajectory ids."""
    return [
        add_trajectory(
            context,
            window_id,
            f"agent-{n}",
            **{"stepsJson": steps(spread * n - 200, recorded=recorded), **columns},
        )
        for n in range(agents)
    ]


def scored_windows(context: Context, *hours: int, recorded: bool = False) -> list[str]:
    """Windows that wait for a step, oldest first."""
    windows = [hours_ago(h) for h in sorted(hours, reverse=True)]
    for window in windows:
        add_window(context, window, recorded=recorded)
    pipeline.produce(context)
    pipeline.score(context)
    return windows


def commit_steps(context: Context, trainer: Trainer, count: int, publish: bool = True) -> None:
    """That many more steps, each over a window of its own: the first over that of 2 hours ago."""
    for _ in range(count):
        known = one(context, "SELECT count(*) AS n FROM rl.windows")["n"]
        scored_windows(context, 2 + known)
        assert pipeline.train(context, trainer)
        if publish:
            pipeline.publish(context)


def fork(context: Context, name: str, step: int) -> Context:
    """A fork of MODEL_NAME's lineage at that step."""
    fleet = Fleet(context.database, context.settings, context.holder)
    fleet.active()
    new = Lineage(
        name,
        context.lineage.base_model,
        primary=False,
        forked_from=context.lineage.name,
        forked_step=step,
        created_by="test",
    )
    with context.database.transaction() as tx:
        assert lineages.create(tx, new)
    return fleet.context(name)


def add_request(context: Context, batch_id: str, window_id: str | None, version: str) -> None:
    """A pending request as the app's trigger writes it."""
    with context.database.transaction() as tx:
        tx.execute(
            """INSERT INTO training_batches (id, "batchId", "scenarioId", "baseModel",
                   "modelVersion", "trajectoryIds", "rewardsJson", status)
               VALUES (%s, %s, %s, 'OpenPipe/Qwen3-14B-Instruct', %s, '[]', '[]', 'pending')""",
            [batch_id, batch_id, window_id, version],
        )


def add_exam(
    context: Context,
    step: int,
    state: str = "passed",
    reason: str = "no figure is worse",
    figures: Figures | None = None,
) -> None:
    """The verdict on a step beside the one that serves, as if its exam had just ended."""
    query(
        context,
        """INSERT INTO rl.exams (model_name, step, served_step, state, reason, window_ids,
               trajectories, metrics, attempts, token, holder, opened_at, decided_at, seconds)
           SELECT %s, %s, published_step, %s, %s, '{2026-01-01T00:00}', 8, %s, 1,
                  nextval('rl.lease_tokens'), 'test',
                  clock_timestamp(), clock_timestamp(), 31
             FROM rl.heads WHERE model_name = %s RETURNING 1""",
        context.lineage.name,
        step,
        state,
        reason,
        jsonb(msgspec.to_builtins(figures or {})),
        context.lineage.name,
    )


def add_experiment(
    context: Context, step: int, state: str = "running", reason: str = "step {} passed its exam"
) -> int:
    """An experiment with a step beside the one that serves; its id."""
    return int(
        one(
            context,
            """INSERT INTO rl.experiments (model_name, step, served_step, state, reason, percent,
                   first_window, holder, started_at, ended_at)
               SELECT %s, %s, published_step, %s, %s, 20, '2026-01-01T00:00', 'test',
                      clock_timestamp(), CASE WHEN %s <> 'running' THEN clock_timestamp() END
                 FROM rl.heads WHERE model_name = %s RETURNING id""",
            context.lineage.name,
            step,
            state,
            reason.format(step),
            state,
            context.lineage.name,
        )["id"]
    )


def add_look(
    context: Context, experiment_id: int, window_id: str, standing: Standing, decision: str
) -> None:
    """What an experiment showed in a window: 6 runs of one version and 2 of the other."""
    arms = WindowEvidence(served=Arm(6, 0.5, 0.1), candidate=Arm(2, 0.52, 0.1))
    evidence = {"score_rev": 1, "window": arms, "standing": standing}
    query(
        context,
        """INSERT INTO rl.experiment_looks (experiment_id, window_id, decision, evidence, holder,
               at)
           VALUES (%s, %s, %s, %s, 'test', clock_timestamp()) RETURNING 1""",
        experiment_id,
        window_id,
        decision,
        jsonb(msgspec.to_builtins(evidence)),
    )


def query(context: Context, text: str, *values: Any) -> list[dict[str, Any]]:
    """Rows of any query."""
    with context.database.transaction() as tx:
        return tx.execute(text, values).fetchall()  # type: ignore[arg-type]


def one(context: Context, text: str, *values: Any) -> dict[str, Any]:
    """The only row of a query."""
    (row,) = query(context, text, *values)
    return row


def position(context: Context, name: str | None = None) -> tuple[int, int]:
    """The head of a lineage, else of MODEL_NAME's, and the step that serves."""
    own = name or context.settings.model_name
    row = one(context, "SELECT * FROM rl.heads WHERE model_name = %s", own)
    return row["step"], row["published_step"]


def states(context: Context) -> dict[str, str]:
    """Window id → state."""
    return {r["window_id"]: r["state"] for r in query(context, "SELECT * FROM rl.windows")}
