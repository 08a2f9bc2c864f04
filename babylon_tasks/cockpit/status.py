"""The state of everything: windows, steps and versions in Postgres, and what waits in Redis."""

from __future__ import annotations

from datetime import UTC
from decimal import Decimal
from typing import Any

from babylon_tasks.cockpit import gate
from babylon_tasks.records.movement import stands_still
from babylon_tasks.records.promotions import Pause
from babylon_tasks.records.steps import compute_seconds
from babylon_tasks.settings import QUEUES, Settings
from babylon_tasks.store import (
    attempts,
    broker,
    canaries,
    gates,
    heads,
    judgments,
    promotions,
    steps,
)
from babylon_tasks.store import windows as window_rows
from babylon_tasks.store.database import Connection
from babylon_tasks.store.identity import key_prefix
from babylon_tasks.store.steps import Step
from babylon_tasks.work.context import Context

_PATIENCE_SECONDS = 20.0  # a queue that is silent this long after three intervals is stuck


def database_status(context: Context) -> dict[str, Any]:
    """Return how the context's lineage stands, as `lineage_status`.

    Raises:
        ServerUnavailable: Postgres does not answer.
    """
    with context.database.transaction() as tx:
        return lineage_status(tx, context)


def lineage_status(tx: Connection, context: Context) -> dict[str, Any]:
    """Return the windows by state, the version that serves, and the cost of the last step.

    `gate` says what waits to serve, as `cockpit.gate.figures`; `gate_says` the same in sentences.
    """
    name = context.lineage.name
    states = window_rows.count_states(tx, name)
    head = heads.read(tx, name)
    served = steps.read(tx, name, head.published_step) if head else None
    newest = steps.read(tx, name, head.step) if head else None
    paused = promotions.current_pause(tx, name)
    answered = canaries.read(tx)
    at_fault = attempts.machines_at_fault(tx)
    spent = judgments.spent_today(tx)
    gated = gates.read(tx, [name])[name]
    return {
        "model": name,
        "state": str(context.lineage.state),
        "windows": {str(state): count for state, count in states.items()},
        "step": head.step if head else 0,
        "published_step": head.published_step if head else 0,
        "version": served.version if served else None,
        "promotion_paused": _paused(paused) if paused else {},
        "gate": gate.figures(gated, context.settings),
        "gate_says": gate.sentences(gated, context.settings),
        "last_step": _economics(newest) if newest else {},
        "judge_today": {
            "answers": spent.answers,
            "tokens": spent.tokens,
            "usd": round(spent.usd, 6),
            "daily_limit_usd": context.settings.judge_daily_usd,
        },
        "at_fault": {f"{each.machine} ({each.stage})": each.error for each in at_fault},
        "canary_age_seconds": {
            queue: round(answered[queue].age_seconds, 1) if queue in answered else None
            for queue in QUEUES
        },
    }


def late_seconds(settings: Settings, queue: str) -> float:
    """Return the age of a queue's canary from which on messages get stuck somewhere."""
    return 3 * settings.canary_seconds(queue) + _PATIENCE_SECONDS


def _paused(pause: Pause) -> dict[str, str]:
    since = pause.since.astimezone(UTC).isoformat(" ", "seconds")
    return {"since": since, "by": pause.holder, "why": pause.why}


def _economics(step: Step) -> dict[str, Any]:
    """Return the time, the tokens and the cost of a step, and how far it moved the policy.

    `tokens` are those of whole calls, prompts included, and `tokens_per_second` is about these and
    the seconds of computing; most of a small step's `seconds` are loading and saving.
    `policy_change` is in nats an answer, and unknown of older and of serverless steps.
    """
    return {
        "step": step.step,
        "version": step.version,
        "committed_at": step.committed_at,
        "windows": len(step.window_ids),
        "trajectories": step.trajectories,
        "loss": _rounded(step.metrics.get("loss"), 6),
        "seconds": round(sum(step.seconds.values()), 1),
        "compute_seconds": round(compute_seconds(step.seconds), 1),
        "tokens": step.metrics.get("context_tokens"),
        "trainable_tokens": step.trainable_tokens,
        "tokens_per_second": _rounded(step.tokens_per_second, 0),
        "mfu": _rounded(step.mfu, 3),
        "gpu_seconds": round(step.gpu_seconds, 1),
        "usd": _rounded(step.cost_usd, 4),
        "policy_change": _rounded(step.metrics.get("policy_change"), 6),
        "stands_still": stands_still(step.metrics.get("policy_change")),
    }


def _rounded(value: float | Decimal | None, digits: int) -> float | None:
    return None if value is None else round(float(value), digits)


def queue_lengths(settings: Settings) -> dict[str, int]:
    """Count the messages that wait, by queue.

    Raises:
        UserError: DATABASE_URL or REDIS_URL is missing or wrong.
        ServerUnavailable: Redis or Postgres does not answer.
    """
    prefix = key_prefix(settings.postgres())
    with broker.client(settings.redis()) as client:
        return {queue: int(client.llen(prefix + queue)) for queue in QUEUES}
