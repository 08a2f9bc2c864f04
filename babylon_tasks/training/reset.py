"""Moves the head of a lineage to another step, by hand: the next step starts from that one."""

from __future__ import annotations

from dataclasses import dataclass

from babylon_tasks.errors import LeaseLost, UserError
from babylon_tasks.records.lineages import Lineage
from babylon_tasks.records.versions import Head
from babylon_tasks.store import heads, leases, lineages, steps, training_batches, transitions
from babylon_tasks.store.database import Connection
from babylon_tasks.store.heads import Moved
from babylon_tasks.store.steps import Step
from babylon_tasks.text import one_line
from babylon_tasks.work.context import Context
from babylon_tasks.work.leases import LeaseKeeper
from babylon_tasks.work.step_names import find_step


@dataclass(frozen=True, slots=True)
class ResetReport:
    """What a reset has done; `version` is None for step 0, the base model."""

    from_step: int
    to_step: int
    version: str | None
    moved: Moved


def reset(context: Context, version_or_step: str, why: str) -> ResetReport:
    """Move the head under the lineage's lease, in one transaction.

    The steps after the new head are given up: their versions are archived, their windows stay
    trained until `babylon windows retry --step`. What the steps up to the new head trained is
    trained again, whatever became of it meanwhile.

    Raises:
        UserError: A step of the lineage trains now, it has no such step, the step cannot be trained
            on, or no reason is given.
        LeaseLost: Another one took the lineage over in an outage; nothing was written.
        ServerUnavailable: Postgres does not answer.
    """
    name, why = context.lineage.name, one_line(why)
    if not why:
        raise UserError("say why: the reason is kept with the move")
    resource = f"model/{name}"
    with context.database.transaction() as tx:
        lease = leases.acquire(tx, resource, context.holder, context.settings.lease_seconds)
        if lease is None:
            raise UserError(
                f"{leases.holder(tx, resource)} trains a step of {name} now: wait until it has "
                f"ended, or `babylon lineages pause {name}` and try again"
            )
    with LeaseKeeper(context, [lease]) as keeper:
        return _Reset(context, keeper, version_or_step, why).run()


class _Reset:
    """The one transaction of a reset, which may be repeated if the answer to COMMIT is lost."""

    def __init__(
        self, context: Context, keeper: LeaseKeeper, version_or_step: str, why: str
    ) -> None:
        self._context, self._keeper = context, keeper
        self._version_or_step, self._why = version_or_step, why
        self._report: ResetReport | None = None

    def run(self) -> ResetReport:
        return self._keeper.until_written("move the head", self._write)

    def _write(self, tx: Connection) -> ResetReport:
        claim, name = self._keeper.claim, self._context.lineage.name
        if self._report and heads.was_reset(tx, claim):
            return self._report
        head = heads.lock(tx, claim)
        if head is None:
            if heads.read(tx, name) is None:
                raise UserError(f"no step of {name} is committed yet")
            raise LeaseLost(f"the lease on {name} ran out or went to another holder")
        row = next(iter(lineages.read(tx, [name])), self._context.lineage)
        step = find_step(tx, name, self._version_or_step)
        to_step = step.step if step else 0
        _require_possible(row, head, to_step)
        _require_trainable(row, steps.read(tx, name, head.step), step)
        moved = heads.move(tx, claim, head.step, to_step, self._why)
        trained = transitions.restore_trained(tx, name, claim.holder)
        for window_id, batch_id in trained.items():
            if batch_id:
                training_batches.complete_trained(tx, name, window_id, batch_id)
        self._report = ResetReport(head.step, to_step, step.version if step else None, moved)
        return self._report


def _require_possible(row: Lineage, head: Head, to_step: int) -> None:
    """Require a head that may move to this step.

    Raises:
        UserError: The lineage is retired, the head is there, or the step is before the fork.
    """
    row.require_not_retired()
    if to_step == head.step:
        raise UserError(f"step {to_step} is the head of {row.name} already")
    if row.forked_step and to_step < row.forked_step:
        raise UserError(
            f"{row.name} was forked from step {row.forked_step} of {row.forked_from} and cannot go "
            f"back behind it: `babylon lineages fork {row.forked_from}@{to_step} NEW`"
        )


def _require_trainable(row: Lineage, head_step: Step | None, step: Step | None) -> None:
    """Require that the next step can start from this one.

    Raises:
        UserError: Its files are gone, or W&B trains the lineage.
    """
    for each in (head_step, step):
        if each is not None and each.trainer == "serverless":
            raise UserError(
                f"step {each.step} of {row.name} is at W&B, whose model goes on from its own "
                "newest step and cannot go back: give a new lineage a name of its own"
            )
    if step is not None:
        step.files()
