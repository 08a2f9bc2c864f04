"""Stage 3, training: scored windows, up to a limit, become one committed step."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from babylon_tasks.records.doing import Doing
from babylon_tasks.records.steps import Trainer
from babylon_tasks.records.windows import Window
from babylon_tasks.store import attempts, clock, exams, leases
from babylon_tasks.store.database import Connection
from babylon_tasks.store.leases import Lease
from babylon_tasks.training.backend import TrainingBackend
from babylon_tasks.training.choice import WindowChoice
from babylon_tasks.training.cleanup import give_up_old_steps, remove_unfinished
from babylon_tasks.training.ladder import Ladder
from babylon_tasks.training.local import LocalBackend
from babylon_tasks.training.step import StepReport
from babylon_tasks.training.wandb_jobs import WandbBackend
from babylon_tasks.work import failures
from babylon_tasks.work.context import Context
from babylon_tasks.work.leases import LeaseKeeper, claim_lineage
from babylon_tasks.work.stopwatch import Stopwatch


def train(
    context: Context,
    trainer: Trainer,
    only: Sequence[str] | None,
    requested_version: str | None,
    on_doing: Callable[[Doing], None],
) -> StepReport | None:
    """Claim the lineage and train its scored windows, until one step is committed.

    Returns the committed step, or None if nothing is due or another worker holds the lineage.

    Raises:
        UserError: Nothing can train here (settings, packages, unreadable checkpoint, W&B away, no
            log-probabilities for it); the windows wait and are tried again later.
        LeaseLost, StaleClaim: Another worker has taken over; the work done is discarded.
        ServerUnavailable: Postgres does not answer.
        Retryable: A step failed twice, and its job at W&B is still running.
        OSError: This machine cannot read or write its files; the windows wait.
    """
    context.settings.require_training_allowed()
    stopwatch = Stopwatch()
    backend = _backend(context)
    choice = WindowChoice(context, backend, only)
    claimed = _claim(context, choice)
    if claimed is None:
        return None
    lease, windows = claimed
    with LeaseKeeper(context, [lease], on_doing) as keeper:
        give_up_old_steps(context, keeper)
        remove_unfinished(context, keeper)
        ladder = Ladder(context, backend, trainer, keeper, choice)
        return ladder.climb_down(windows, requested_version, stopwatch)


def _backend(context: Context) -> TrainingBackend:
    if context.settings.trainer == "serverless":
        return WandbBackend(context)
    return LocalBackend(context)


def _claim(context: Context, choice: WindowChoice) -> tuple[Lease, list[Window]] | None:
    """Lease the lineage if it is active and a window is due; end the attempts of dead workers."""
    settings, lineage = context.settings, context.lineage
    with context.database.transaction() as tx:
        claimed = claim_lineage(tx, context)
        if claimed is None:
            return None
        lease, _ = claimed
        if settings.publish != "always" and _may_not_go_on(tx, lineage.name):
            leases.release(tx, [lease])
            return None
        lost = attempts.reap_steps(tx, lineage.name, settings.max_attempts)
        failures.answer_for(tx, lineage.name, lost)
        windows = choice.next(tx)
        if not windows and clock.obey(tx, settings.lease_seconds):
            windows = choice.next(tx)
        if not windows:
            leases.release(tx, [lease])
            return None
    return lease, windows


def _may_not_go_on(tx: Connection, lineage: str) -> bool:
    """Tell whether nothing may continue the head until the next exam is claimed.

    It has no verdict yet, or an experiment rolled back a step on its way while it was examined.
    """
    return bool(exams.awaited(tx, lineage) or exams.rolled_back(tx, lineage))
