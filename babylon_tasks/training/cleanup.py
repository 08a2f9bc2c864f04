"""Removes checkpoints that no step needs; only for the holder of the lineage's lease."""

from __future__ import annotations

import logging

from babylon_tasks.checkpoints import files as checkpoint_files
from babylon_tasks.checkpoints import retention
from babylon_tasks.store import heads, promotions, shares, steps
from babylon_tasks.work.context import Context
from babylon_tasks.work.leases import LeaseKeeper

log = logging.getLogger(__name__)

# Steps that one run gives up, and folders that it removes: few, since each refusal costs time.
_REMOVE_BATCH = 16


def give_up_old_steps(context: Context, keeper: LeaseKeeper) -> None:
    """Mark the steps that lose their files by KEEP_CHECKPOINTS, before any file is removed.

    Raises:
        ServerUnavailable: Postgres does not answer.
    """
    settings, name = context.settings, context.lineage.name
    with context.database.transaction() as tx:
        head = heads.lock(tx, keeper.claim)
        if head is None:
            return
        kept = steps.with_files(tx, name)
        not_on_the_way = [step for step, given_up in kept.items() if given_up]
        may_go = retention.may_go(
            kept, head, settings.keep_checkpoints, settings.keep_every, not_on_the_way
        )
        needed = heads.forked_steps(tx, name) | shares.shared_steps(tx, name)
        needed.add(promotions.previous_step(tx, name) or 0)
        may_go = [step for step in may_go if step not in needed]
        given_up = steps.give_up(tx, name, may_go, _REMOVE_BATCH) if may_go else []
    if given_up:
        log.info(
            "the files of steps %s will be removed (KEEP_CHECKPOINTS)",
            ", ".join(map(str, given_up)),
        )


def remove_unfinished(context: Context, keeper: LeaseKeeper) -> None:
    """Delete the files of dead attempts and of steps that were given up; a few at a time.

    Raises:
        LeaseLost: Another worker has taken over.
        ServerUnavailable: Postgres does not answer.
    """
    with context.database.transaction() as tx:
        unfinished = steps.unfinished_checkpoints(tx, context.lineage.name, _REMOVE_BATCH)
    for checkpoint, nonce in unfinished.items():
        keeper.beat()
        try:
            removed = checkpoint_files.remove_unfinished(checkpoint, nonce)
        except Exception as error:  # noqa: BLE001 - each store has its own errors; the step matters more
            log.warning("cannot remove %s, which no step needs: %s", checkpoint, error)
            continue
        if removed:
            log.info("removed %s, which no step needs", checkpoint)
            with context.database.transaction() as tx:
                steps.forget_checkpoint(tx, checkpoint)
