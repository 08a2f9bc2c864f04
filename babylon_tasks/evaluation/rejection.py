"""What follows from a step that may not serve: the head leaves it, and nothing continues it."""

from __future__ import annotations

import logging
from dataclasses import replace

from babylon_tasks.logs import bound
from babylon_tasks.records.gates import FAILURES_IN_A_ROW, PAUSED_BY
from babylon_tasks.records.lineages import LineageState
from babylon_tasks.store import exams, heads, lineages, steps, transitions
from babylon_tasks.store.database import Connection
from babylon_tasks.store.leases import Claim
from babylon_tasks.work.context import Context

log = logging.getLogger(__name__)


def reject(context: Context, tx: Connection, claim: Claim, step: int, reason: str) -> None:
    """Move the head from a step that failed its exam to its parent; pause after three in a row.

    At W&B a model goes on from its own newest step: there the head stays, and does not serve.
    """
    name = context.lineage.name
    row = steps.read(tx, name, step)
    assert row is not None  # no row is ever deleted
    if row.trainer != "serverless":
        _give_up(context, tx, claim, (step, row.parent_step), f"failed its exam: {reason}")
    if exams.failures_in_a_row(tx, name) >= FAILURES_IN_A_ROW:
        lineage = lineages.lock(tx, name)
        assert lineage is not None  # the claim has read it
        lineages.change(tx, replace(lineage, state=LineageState.PAUSED), PAUSED_BY)


def leave_rolled_back(context: Context, tx: Connection, claim: Claim) -> None:
    """Move the head to the step that serves, if an experiment rolled back one on its way.

    What came after that one continues it, and the two were only compared as a whole with what
    serves.
    """
    name = context.lineage.name
    bad = exams.rolled_back(tx, name)
    head = heads.lock(tx, claim)
    if bad is None or head is None:
        return
    why = f"step {bad.step}: {bad.reason}"
    _give_up(context, tx, claim, (head.step, head.published_step), why)
    with bound(lineage=name, step=head.step):
        log.warning("%s goes on from step %d: %s", name, head.published_step, why)


def _give_up(
    context: Context, tx: Connection, claim: Claim, move: tuple[int, int], why: str
) -> None:
    """Move the head, which is locked; the windows of what it leaves are left or due again."""
    name = context.lineage.name
    moved = heads.move(tx, claim, *move, why)
    if context.settings.rejected_windows == "retry":
        for step in moved.given_up:
            transitions.retry_step(tx, name, step)
