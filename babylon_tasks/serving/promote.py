"""Stage 5, serving: which step a lineage's name answers with, by itself and by hand."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from babylon_tasks.errors import UserError
from babylon_tasks.logs import bound
from babylon_tasks.records.lineages import LineageState
from babylon_tasks.records.promotions import Pause, PromotionKind
from babylon_tasks.records.versions import Head
from babylon_tasks.serving import experiment
from babylon_tasks.serving.experiment import Outcome
from babylon_tasks.store import experiments, heads, lineages, promotions, shares
from babylon_tasks.store.database import Connection
from babylon_tasks.text import one_line
from babylon_tasks.work.context import Context
from babylon_tasks.work.step_names import find_step

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Served:
    """What a lineage serves after a change; `version` is None for step 0, the base model.

    `head` is its newest step. `pause` says that this is not promoted by itself.
    """

    from_step: int
    step: int
    version: str | None
    head: int
    pause: Pause | None


def publish(context: Context, on_said: Callable[[str], None]) -> list[str]:
    """Let the steps serve that may, as PUBLISH says; return the versions that came to serve.

    Those before them that can be asked for now are among them. `always`: the step that trains next.
    `gate`: the newest that passed its exam, after an experiment. `manual`: none. Nothing is
    promoted while automatic promotion or the lineage is paused. `on_said` hears the reason, and
    what was decided about an experiment.

    Raises:
        ServerUnavailable: Postgres does not answer, or the app holds a row of a version just now.
    """
    name, mode = context.lineage.name, context.settings.publish
    with context.database.transaction() as tx:
        heads.hold(tx, name)
        head = heads.read(tx, name)
        if head is None or not _is_active(tx, context):
            return []
        experiments.set_gated(tx, name, mode != "always")
        outcome = Outcome()
        if mode == "gate":
            outcome = experiment.follow(tx, context)
        else:
            experiment.stop(tx, context, f"PUBLISH is {mode}")
        if mode == "always":
            by = (context.holder, "the newest step")
            outcome.versions += promotions.publish(tx, name, head.step, by)
    with bound(lineage=name):
        for sentence in outcome.said:
            log.info("%s", sentence)
            on_said(sentence)
        if outcome.versions:
            log.info("promoted: %s", ", ".join(outcome.versions))
    return outcome.versions


def promote(context: Context, version_or_step: str, why: str) -> Served:
    """Let a newer step serve, by hand.

    Raises:
        UserError: It cannot serve, serves already, is older than the one that does, or would be
            replaced at once by the newest.
        ServerUnavailable: Postgres does not answer, or the app holds a row of a version just now.
    """
    why = _reason(why)
    with context.database.transaction() as tx:
        head = _locked(tx, context)
        step = _servable(tx, context, version_or_step)
        if step == head.published_step:
            raise UserError(f"step {step} of {context.lineage.name} serves already")
        if step < head.published_step:
            raise UserError(
                f"step {step} is older than step {head.published_step}, which serves: "
                f"`babylon models rollback {version_or_step}`"
            )
        by_itself = context.settings.publish == "always" and head.promotion_paused_at is None
        if step != head.step and by_itself:
            raise UserError(
                f"step {head.step} is newer and will be promoted by itself: "
                "`babylon models pause` first"
            )
        return _move(tx, context, step, PromotionKind.PROMOTE, why)


def roll_back(context: Context, version_or_step: str | None, why: str) -> Served:
    """Let an older step serve, without a name the one that served before; pause promotion.

    Raises:
        UserError: It cannot serve, or is not older than the one that does.
        ServerUnavailable: Postgres does not answer, or the app holds a row of a version just now.
    """
    why, name = _reason(why), context.lineage.name
    with context.database.transaction() as tx:
        head = _locked(tx, context)
        if version_or_step is None:
            step = promotions.previous_step(tx, name)
            if step is None:
                raise UserError(f"step {head.published_step} is the first that {name} can serve")
        else:
            step = _servable(tx, context, version_or_step)
        if step >= head.published_step:
            raise UserError(
                f"step {head.published_step} serves, and step {step} is not older: "
                f"`babylon models promote {step}` serves a newer one"
            )
        return _move(tx, context, step, PromotionKind.ROLLBACK, why)


def pause(context: Context, why: str) -> Served:
    """Promote no new step by itself until a person resumes it.

    Raises:
        UserError: It is paused already, or no reason is given.
        ServerUnavailable: Postgres does not answer.
    """
    why, name = _reason(why), context.lineage.name
    with context.database.transaction() as tx:
        head = _locked(tx, context)
        if not promotions.pause(tx, name, context.holder, why):
            raise UserError(f"promotion of {name} is paused {promotions.current_pause(tx, name)}")
        return _served(tx, context, head.published_step)


def resume(context: Context, why: str) -> Served:
    """Promote new steps by themselves again: the newest one within seconds.

    Raises:
        UserError: It is not paused, or no reason is given.
        ServerUnavailable: Postgres does not answer.
    """
    why, name = _reason(why), context.lineage.name
    with context.database.transaction() as tx:
        head = _locked(tx, context)
        if not promotions.resume(tx, name, context.holder, why):
            raise UserError(f"promotion of {name} is not paused")
        return _served(tx, context, head.published_step)


def share(context: Context, version_or_step: str, percent: float, why: str) -> tuple[int, datetime]:
    """Let a step answer so many percent of the agents from the next window on; 0 ends it.

    Returns:
        The step's number, and when that window starts.

    Raises:
        UserError: The step cannot serve, or no reason is given.
        ServerUnavailable: Postgres does not answer.
    """
    why, name = _reason(why), context.lineage.name
    if not 0 <= percent <= 100:
        raise UserError("a share is from 0 to 100 percent of the agents")
    with context.database.transaction() as tx:
        _locked(tx, context)
        step = _servable(tx, context, version_or_step, ends=percent == 0)
        starts_at = shares.start(tx, name, step, percent, (context.holder, why))
        experiment.stop(tx, context)
        return step, starts_at


def _is_active(tx: Connection, context: Context) -> bool:
    """Tell whether the lineage is active by now: whoever pauses it waits for the head."""
    row = next(iter(lineages.read(tx, [context.lineage.name])), context.lineage)
    return row.state == LineageState.ACTIVE


def _reason(why: str) -> str:
    why = one_line(why)
    if not why:
        raise UserError("say why: the reason is kept")
    return why


def _locked(tx: Connection, context: Context) -> Head:
    """Return the head, which stays as it is until the transaction ends, with all files."""
    heads.hold(tx, context.lineage.name)
    head = heads.read(tx, context.lineage.name)
    if head is None:
        raise UserError(f"no step of {context.lineage.name} is committed yet")
    row = next(iter(lineages.read(tx, [context.lineage.name])), context.lineage)
    row.require_not_retired()
    return head


def _servable(tx: Connection, context: Context, version_or_step: str, *, ends: bool = False) -> int:
    """Return the number of a step that a lineage can serve, or whose share ends.

    Raises:
        UserError: It was given up or its files were removed, it is before the fork, or there is no
            such step.
    """
    name = context.lineage.name
    step = find_step(tx, name, version_or_step)
    if step is None or ends:
        return step.step if step else 0
    if step.removed_at is not None:
        raise UserError(
            f"the files of step {step.step} ({step.version}) were removed: "
            "`babylon models list` shows the steps that have theirs"
        )
    if step.given_up_at is not None:
        raise UserError(
            f"step {step.step} ({step.version}) was given up: `babylon models reset {step.step}` "
            "goes on from it, then it is promoted"
        )
    if step.model_name != name:
        forked_step = next(iter(lineages.read(tx, [name])), context.lineage).forked_step
        if step.step != forked_step:  # nobody keeps its files for the fork
            raise UserError(
                f"{name} was forked from step {forked_step} of {step.model_name} and cannot go "
                f"back behind it: ask {step.model_name}@{step.step}"
            )
    return step.step


def _move(tx: Connection, context: Context, step: int, kind: PromotionKind, why: str) -> Served:
    head = heads.read(tx, context.lineage.name)
    assert head is not None
    promotions.move(tx, context.lineage.name, step, kind, (context.holder, why))
    experiment.stop(tx, context)
    return _served(tx, context, head.published_step)


def _served(tx: Connection, context: Context, from_step: int) -> Served:
    name = context.lineage.name
    head = heads.read(tx, name)
    assert head is not None
    step = find_step(tx, name, str(head.published_step))
    return Served(
        from_step,
        head.published_step,
        step.version if step else None,
        head.step,
        promotions.current_pause(tx, name),
    )
