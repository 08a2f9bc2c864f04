"""The pipeline, top to bottom: read this file first.

    produce   trajectories → rl.windows `due`                   (cpu, every minute)
    score     `due` → `scored` or `skipped`, with rl.scores     (cpu)
    train     every scored window up to a limit → one step      (gpu)
    publish   the newest step becomes the one that serves       (cpu)
    sweep     what Postgres says is due and nobody works on     (cpu, every few seconds)

Each stage claims what is due in Postgres, whatever the message that woke it said, and may run any
number of times at once: a lease decides who works, a compare-and-set who writes. Nothing here
knows Celery or torch, and the stages do not know each other: they meet in Postgres.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from babylon_tasks.intake import stage as intake
from babylon_tasks.records.steps import Progress, Trainer
from babylon_tasks.records.windows import Window
from babylon_tasks.scoring import stage as scoring
from babylon_tasks.serving import promote
from babylon_tasks.store import windows as window_rows
from babylon_tasks.store.windows import DueWork
from babylon_tasks.training import stage as training
from babylon_tasks.training.step import StepReport
from babylon_tasks.work.context import Context

# Windows that one scoring task claims, and that one message wakes for.
SCORE_BATCH = 16


def produce(context: Context) -> list[str]:
    """Make windows due that have ended and settled, and take the app's requests.

    Returns the windows made due.
    """
    return intake.produce(context)


def score(
    context: Context, only: Sequence[str] | None = None, limit: int = SCORE_BATCH
) -> list[str]:
    """Claim up to `limit` due windows, or those in `only`, and score each; return those moved on.

    Raises:
        LeaseLost, StaleClaim: Another worker has taken over; nothing was written.
    """
    return scoring.score(context, only, limit)


def train(
    context: Context,
    trainer: Trainer,
    *,
    only: Sequence[str] | None = None,
    requested_version: str | None = None,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> StepReport | None:
    """Claim the lineage and train the scored windows that are due, until one step is committed.

    A step that fails is tried again at once, then by halves, so that only a window that fails
    alone is counted against. Returns the committed step; None where nothing is due or another
    worker holds the lineage.

    Raises:
        UserError: Nothing can train here (settings, packages, unreadable checkpoint, W&B away, no
            log-probabilities for it); the windows wait and are tried again later.
        LeaseLost, StaleClaim: Another worker has taken over; what was done is thrown away.
    """
    return training.train(
        context,
        trainer,
        only=only,
        requested_version=requested_version,
        on_progress=on_progress,
    )


def publish(context: Context) -> list[str]:
    """Let the newest step serve; return the versions that became ready."""
    return promote.publish(context)


def sweep(context: Context, limit: int) -> DueWork:
    """Return what is due and nobody works on, at most `limit` windows."""
    with context.database.transaction() as tx:
        return window_rows.sweep(tx, context.lineage.name, limit)


# --- by hand -----------------------------------------------------------------------------------


def enqueue(context: Context, window_id: str, scoring: str | None = None) -> Window:
    """Make one window due by name, however old; with `scoring` for that scorer, and again.

    Raises:
        UserError: No window id, not ended and settled, nobody in it, or too few agents.
    """
    return intake.enqueue(context, window_id, scoring)


def retry(context: Context, window_ids: Sequence[str] | None) -> list[str]:
    """Make failed or skipped windows due again (None: all that failed); return their ids."""
    return intake.retry(context, window_ids)
