"""The pipeline, top to bottom: read this file first.

    produce   trajectories → rl.windows `due`                   (cpu, every minute)
    score     `due` → `scored` or `skipped`, with rl.scores     (cpu)
    evaluate  the newest step on these windows: may it go on?   (gpu, before it trains)
    train     every scored window up to a limit → one step      (gpu)
    publish   a step that may serve does, or is tried           (cpu)
    sweep     find due work that nobody does                    (cpu, every few seconds)

Each stage claims what is due in Postgres; it does not rely on the message that woke it. A stage may
run any number of times at once: a lease decides who works, a compare-and-set decides who writes.
A call works for one lineage, that of its context; `work/fleet.py` says whose turn it is.
Nothing here knows Celery or torch. The stages do not know each other: they meet in Postgres.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from babylon_tasks.evaluation import stage as evaluation
from babylon_tasks.intake import stage as intake
from babylon_tasks.records.doing import Doing
from babylon_tasks.records.steps import Trainer
from babylon_tasks.records.windows import Window
from babylon_tasks.scoring import stage as scoring
from babylon_tasks.serving import promote
from babylon_tasks.store import lineages
from babylon_tasks.store.lineages import DueWork
from babylon_tasks.training import stage as training
from babylon_tasks.training.step import StepReport
from babylon_tasks.work.context import Context

# The most windows that one scoring task claims, and that one message announces.
SCORE_BATCH = 16


def produce(*contexts: Context) -> list[str]:
    """Make ended and settled windows due for these lineages, and take the app's requests.

    Returns the ids of the windows made due, one a lineage.

    Raises:
        ServerUnavailable: Postgres does not answer.
    """
    return intake.produce(contexts)


def score(
    context: Context,
    only: Sequence[str] | None = None,
    limit: int = SCORE_BATCH,
    on_doing: Callable[[Doing], None] = lambda _: None,
) -> list[str]:
    """Claim up to `limit` due windows (with `only`, of those) and score each.

    Returns the ids of the windows that moved on; `on_doing` hears how far it is.

    Raises:
        LeaseLost, StaleClaim: Another worker has taken over; nothing was written.
        ServerUnavailable: Postgres does not answer.
    """
    return scoring.score(context, only, limit, on_doing)


def train(
    context: Context,
    trainer: Trainer,
    *,
    only: Sequence[str] | None = None,
    requested_version: str | None = None,
    on_doing: Callable[[Doing], None] = lambda _: None,
) -> StepReport | None:
    """Claim the lineage and train the scored windows that are due, until one step is committed.

    They examine its newest step first, unless PUBLISH is `always`: without a verdict nothing
    continues it, and one that fails is continued by none.

    A step that fails is tried again at once, then by halves, so that an attempt counts only against
    a window that fails alone. Returns the committed step, or None if nothing is due or another
    worker holds the lineage.

    Raises:
        UserError: Nothing can train here (settings, packages, unreadable checkpoint, W&B away, no
            log-probabilities for it); the windows wait and are tried again later.
        LeaseLost, StaleClaim: Another worker has taken over; the work done is discarded.
        ServerUnavailable: Postgres does not answer.
        Retryable: A step failed twice, and its job at W&B is still running.
        OSError: This machine cannot read or write its files; the windows wait.
    """
    evaluation.examine(context, trainer, only, on_doing)
    return training.train(context, trainer, only, requested_version, on_doing)


def publish(context: Context, on_said: Callable[[str], None] = lambda _: None) -> list[str]:
    """Let the steps serve that may, as PUBLISH says; return the versions that came to serve.

    `on_said` hears the reason, and what was decided about an experiment.

    Raises:
        ServerUnavailable: Postgres does not answer.
    """
    return promote.publish(context, on_said)


def sweep(context: Context, limit: int) -> DueWork:
    """Return the due work that nobody does, at most `limit` windows.

    Raises:
        ServerUnavailable: Postgres does not answer.
    """
    with context.database.transaction() as tx:
        return lineages.sweep(tx, {context.lineage.name: context.settings}, limit)


# --- by hand -----------------------------------------------------------------------------------


def enqueue(context: Context, window_id: str, scoring: str | None = None) -> Window:
    """Make one window due by its id, however old it is; return its row.

    With `scoring` that scorer scores it, even if it was scored, skipped or failed before.

    Raises:
        UserError: The id is malformed, or the window has not ended and settled, or has no or too
            few agents.
        ServerUnavailable: Postgres does not answer.
    """
    return intake.enqueue(context, window_id, scoring)


def retry(context: Context, window_ids: Sequence[str] | None) -> list[str]:
    """Make failed or skipped windows due again (None: all that failed); return their ids.

    Raises:
        ServerUnavailable: Postgres does not answer.
    """
    return intake.retry(context, window_ids)


def retry_steps(context: Context, names: Sequence[str]) -> list[str]:
    """Make the windows due again that these given-up steps trained; return their ids.

    Each of `names` is a step, a version, or a run of steps such as 5-14.

    Raises:
        UserError: There is no such step, or it is on the way to the head; nothing was written.
        ServerUnavailable: Postgres does not answer.
    """
    return intake.retry_steps(context, names)
