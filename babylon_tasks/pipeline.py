"""The pipeline, top to bottom: read this file first.

    produce   trajectories → rl.windows `due`                   (cpu, every minute)
    score     `due` → `scored` or `skipped`, with rl.scores     (cpu)
    train     every scored window up to a limit → one step      (gpu)
    publish   the newest step becomes the one that serves       (cpu)
    sweep     what Postgres says is due and nobody works on     (cpu, every few seconds)

Each stage claims what is due in Postgres, whatever the message that woke it said, and may run any
number of times at once: a lease decides who works, a compare-and-set who writes. Nothing here
knows Celery or torch.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Container, Sequence

from babylon_tasks.checkpoints import files as checkpoint_files
from babylon_tasks.checkpoints import retention
from babylon_tasks.errors import (
    BabylonError,
    Final,
    LeaseLost,
    NotRecorded,
    ServerUnavailable,
    StaleClaim,
    UserError,
)
from babylon_tasks.records.steps import Progress, Trainer
from babylon_tasks.records.windows import State, Window, due_at, parse_window_id, share_a_step
from babylon_tasks.scoring.registry import WITH_JUDGE, WITHOUT_JUDGE, judged_scorers
from babylon_tasks.scoring.stage import judge_claimed, score_claimed
from babylon_tasks.settings import Settings
from babylon_tasks.store import attempts, leases, steps, training_batches
from babylon_tasks.store import windows as window_rows
from babylon_tasks.store.database import Connection, now
from babylon_tasks.store.windows import DueWork
from babylon_tasks.training import wandb_jobs
from babylon_tasks.training.step import StepReport, attempt_step
from babylon_tasks.work import aio, failures
from babylon_tasks.work.context import Context
from babylon_tasks.work.leases import LeaseKeeper
from babylon_tasks.work.stopwatch import Stopwatch

log = logging.getLogger(__name__)

# Windows that one scoring task claims, and that one message wakes for.
SCORE_BATCH = 16

# Steps that one run gives up, and folders that it removes: a store's refusals cost little time.
_REMOVE_BATCH = 16


# --- produce ---------------------------------------------------------------------------------


def produce(context: Context) -> list[str]:
    """Make windows due and take the app's pending requests; return the windows made due."""
    with context.database.transaction() as tx:
        made = window_rows.produce(tx, context.settings)
        waiting = training_batches.pending(tx) if context.settings.primary else []
    for request in waiting:
        # A transaction each: an odd request must not undo the windows, or stop the others.
        with context.database.transaction() as tx:
            made += _take_request(tx, context.settings, request)
    if made:
        log.info("due: %s", ", ".join(made))
    return made


def enqueue(context: Context, window_id: str, scoring: str | None = None) -> Window:
    """Make one window due by name, however old, and return its row.

    With `scoring` it is due for that scorer, even where it was scored, skipped or failed before;
    a request that failed with it waits for it again.

    Raises:
        UserError: No window id, not ended and settled, nobody in it, or too few agents.
    """
    settings = context.settings
    parse_window_id(window_id)
    with context.database.transaction() as tx:
        if not window_rows.read(tx, settings.model_name, [window_id]):
            why_not = _why_not_due(tx, settings, window_id)
            if why_not:
                raise UserError(why_not)
            counts = window_rows.count(tx, settings, window_id)
            window_rows.enqueue(tx, settings.model_name, window_id, counts)
        if scoring and window_rows.score_otherwise(tx, settings.model_name, window_id, scoring):
            log.info("window %s is due for %s", window_id, scoring)
        (window,) = window_rows.read(tx, settings.model_name, [window_id])
        if scoring and window.state == State.DUE and window.batch_id:
            training_batches.reopen(tx, window.batch_id)
    return window


def must_wait(context: Context, window_id: str) -> bool:
    """Whether the window has not ended and settled yet, by the database's clock.

    Raises:
        UserError: No window id.
    """
    due = due_at(window_id, context.settings.settle_seconds)
    with context.database.transaction() as tx:
        return now(tx) < due


def answer_request(context: Context, batch_id: str, window: Window) -> None:
    """Let this window answer the request; done at once where it was trained before."""
    with context.database.transaction() as tx:
        _answer(tx, context.settings.model_name, batch_id, window)


def _take_request(
    tx: Connection, settings: Settings, request: training_batches.Request
) -> list[str]:
    """Attach a request to its window, wait for the window, or end the request."""
    try:
        window_id = (request.window_id or "").strip()
        due = due_at(window_id, settings.settle_seconds)
    except UserError as error:
        training_batches.fail(tx, request.batch_id, f"scenarioId must name a window: {error}")
        return []
    made: list[str] = []
    found = window_rows.read(tx, settings.model_name, [window_id])
    if not found:
        if now(tx) < due:
            return []
        why_not = _why_not_due(tx, settings, window_id)
        if why_not:
            training_batches.fail(tx, request.batch_id, why_not)
            return []
        counts = window_rows.count(tx, settings, window_id)
        window_rows.enqueue(tx, settings.model_name, window_id, counts)
        made = [window_id]
        found = window_rows.read(tx, settings.model_name, [window_id])
    _answer(tx, settings.model_name, request.batch_id, found[0])
    return made


def _answer(tx: Connection, model_name: str, batch_id: str, window: Window) -> None:
    """Attach a request to its window, or end it as the window ended."""
    if window.state == State.TRAINED:
        training_batches.complete_known(tx, model_name, window.window_id, batch_id)
    elif window.state in (State.SKIPPED, State.FAILED):
        training_batches.fail(tx, batch_id, f"window {window.window_id} is {_story(window)}")
    else:
        training_batches.attach(tx, model_name, window.window_id, batch_id)


def _why_not_due(tx: Connection, settings: Settings, window_id: str) -> str | None:
    """One line why a window without a row cannot be due, or None where it can."""
    due = due_at(window_id, settings.settle_seconds)
    if now(tx) < due:
        return (
            f"window {window_id} is not complete: it ends and settles at "
            f"{due:%Y-%m-%d %H:%M} UTC (SETTLE_SECONDS={settings.settle_seconds})"
        )
    counts = window_rows.count(tx, settings, window_id)
    if counts.agents >= settings.min_agents_per_window:
        return None
    rows = window_rows.count_excluded(tx, settings, window_id)
    if not rows["trajectories"]:
        return (
            f"no trajectories in window {window_id}: "
            "`babylon windows list` shows the windows there are"
        )
    return (
        f"window {window_id} has {counts.agents} agents, needs {settings.min_agents_per_window} "
        f"(MIN_AGENTS_PER_WINDOW); of its {rows['trajectories']} trajectories "
        f"{rows['not_training_data']} are not training data, {rows['evaluation']} are evaluation, "
        f"{rows['excluded']} are of excluded scenarios"
    )


def _story(window: Window) -> str:
    return f"{window.state}: {window.reason or window.last_error or 'no reason given'}"


# --- score -----------------------------------------------------------------------------------


def score(
    context: Context, only: Sequence[str] | None = None, limit: int = SCORE_BATCH
) -> list[str]:
    """Claim due windows and score them, one commit each; return the windows moved on."""
    settings = context.settings
    with context.database.transaction() as tx:
        failures.answer_for(
            tx, attempts.reap_scores(tx, settings.model_name, settings.max_attempts)
        )
        claimed = window_rows.claim_due(tx, settings, context.holder, limit, only, WITHOUT_JUDGE)
        if not claimed and not window_rows.wait_for_judge(tx, settings, WITH_JUDGE, only):
            return []
    if claimed:
        with LeaseKeeper(context.database, settings, list(claimed.values())) as keeper:
            moved = aio.run(score_claimed(context, keeper, claimed))
        if moved:
            return moved
        with context.database.transaction() as tx:
            if not window_rows.wait_for_judge(tx, settings, WITH_JUDGE, only):
                return []
    return _judge(context, only, limit)


def _judge(context: Context, only: Sequence[str] | None, limit: int) -> list[str]:
    """Claim due windows for a judge, and the judge with them.

    One worker at a time judges for a model, many questions at once: so JUDGE_CONCURRENCY holds
    for all of them together, and a judge that hangs keeps one pool process busy and no more.
    """
    settings = context.settings
    scorers = judged_scorers(context)  # may import for seconds: before anything is held
    with context.database.transaction() as tx:
        lease = leases.acquire(
            tx, f"judge/{settings.model_name}", context.holder, settings.lease_seconds
        )
        if lease is None:
            return []
        claimed = window_rows.claim_due(tx, settings, context.holder, limit, only, WITH_JUDGE)
    with LeaseKeeper(context.database, settings, [lease, *claimed.values()]) as keeper:
        return aio.run(judge_claimed(context, keeper, claimed, scorers))


# --- train -----------------------------------------------------------------------------------


def train(
    context: Context,
    trainer: Trainer,
    *,
    only: Sequence[str] | None = None,
    requested_version: str | None = None,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> StepReport | None:
    """Claim the model and train the scored windows that are due, until one step is committed.

    A step that fails is tried again at once, then by halves, so that only a window that fails
    alone is counted against. Returns the committed step; None where nothing is due or another
    worker holds the model.

    Raises:
        UserError: Nothing can train here (settings, packages, unreadable checkpoint, W&B away, no
            log-probabilities for it); the windows wait and are tried again later.
        LeaseLost, StaleClaim: Another worker has taken over; what was done is thrown away.
    """
    settings = context.settings
    settings.require_training_allowed()
    phases = Stopwatch()
    with context.database.transaction() as tx:
        lease = leases.acquire(
            tx, f"model/{settings.model_name}", context.holder, settings.lease_seconds
        )
        if lease is None:
            return None
        steps.head(tx, settings.model_name, settings.base_model)
        failures.answer_for(tx, attempts.reap_steps(tx, settings.model_name, settings.max_attempts))
        windows = _next_windows(tx, settings, only)
        if not windows:
            leases.release(tx, [lease])
            return None
    with LeaseKeeper(context.database, settings, [lease]) as keeper:
        _give_up_old_steps(context, keeper)
        _remove_unfinished(context, keeper)
        failed: list[str] = []
        unrecorded: dict[str, NotRecorded] = {}
        while windows:
            # What goes on with another's job may be about other windows than those asked for.
            asked = only is None or set(_ids(windows)) <= set(only)
            try:
                report = attempt_step(
                    context,
                    trainer,
                    keeper,
                    windows,
                    requested_version if asked else None,
                    on_progress,
                    phases,
                )
                if report:
                    return report
            except NotRecorded as error:
                unrecorded |= dict.fromkeys(_ids(windows), error)
            except (LeaseLost, StaleClaim, ServerUnavailable):
                raise
            except (UserError, OSError) as error:
                failures.blame_nobody(context, windows, keeper.held[0], error)
                raise
            except Exception as error:
                if not isinstance(error, BabylonError):
                    log.exception("a step over %s failed", ", ".join(_ids(windows)))
                first = windows[0].attempts == 0 and windows[0].may_share is None
                again = first and _ids(windows) != failed and not isinstance(error, Final)
                begun = [] if isinstance(error, Final) else wandb_jobs.goes_on(context, windows)
                if begun:
                    failures.job_goes_on(context, begun, keeper.held[0], error)
                    if _ids(windows) == failed:
                        raise
                else:
                    failures.step_failed(context, windows, keeper.held[0], error, again)
                failed = _ids(windows)
            phases = Stopwatch()
            with context.database.transaction() as tx:
                windows = _next_windows(tx, settings, only, unrecorded)
        if unrecorded:
            raise next(iter(unrecorded.values()))
    return None


def _next_windows(
    tx: Connection,
    settings: Settings,
    only: Sequence[str] | None,
    but: Container[str] = (),
) -> list[Window]:
    """What the next step takes: a job at W&B that may be running comes before all else."""
    if settings.trainer == "serverless":
        begun = wandb_jobs.windows_of_open_job(tx, settings.model_name)
        if begun is not None and not any(w.window_id in but for w in begun):
            return begun
    due = window_rows.scored(tx, settings.model_name, only)
    return share_a_step([w for w in due if w.window_id not in but], settings.max_step_tokens)


def _ids(windows: Sequence[Window]) -> list[str]:
    return [window.window_id for window in windows]


def _give_up_old_steps(context: Context, keeper: LeaseKeeper) -> None:
    """Note which steps' files go, as KEEP_CHECKPOINTS says, before any of them does."""
    settings = context.settings
    with context.database.transaction() as tx:
        head = steps.lock_head(tx, settings.model_name, keeper.held[0].token)
        if head is None:
            return
        there = steps.with_files(tx, settings.model_name)
        may_go = retention.may_go(there, head, settings.keep_checkpoints, settings.keep_every)
        gone = steps.give_up(tx, settings.model_name, may_go, _REMOVE_BATCH) if may_go else []
    if gone:
        log.info("the files of steps %s go (KEEP_CHECKPOINTS)", ", ".join(map(str, gone)))


def _remove_unfinished(context: Context, keeper: LeaseKeeper) -> None:
    """Delete what dead attempts left, and steps given up; nobody else holds the model."""
    with context.database.transaction() as tx:
        left = steps.unfinished_checkpoints(tx, context.settings.model_name, _REMOVE_BATCH)
    for checkpoint, nonce in left.items():
        keeper.beat()
        try:
            gone = checkpoint_files.remove_unfinished(checkpoint, nonce)
        except Exception as error:  # noqa: BLE001 - each store has its own; the step matters more
            log.warning("cannot remove %s, which no step needs: %s", checkpoint, error)
            continue
        if gone:
            log.info("removed %s, which no step needs", checkpoint)
            with context.database.transaction() as tx:
                steps.forget_checkpoint(tx, checkpoint)


# --- publish, sweep --------------------------------------------------------------------------


def publish(context: Context) -> list[str]:
    """Let the newest step serve; return the versions that became ready."""
    with context.database.transaction() as tx:
        versions = steps.publish(tx, context.settings.model_name)
    if versions:
        log.info("ready: %s", ", ".join(versions))
    return versions


def retry(context: Context, window_ids: Sequence[str] | None) -> list[str]:
    """Make failed or skipped windows due again (None: all that failed); return their ids.

    A request that failed with its window waits for it again.
    """
    with context.database.transaction() as tx:
        found = window_rows.retry(tx, context.settings.model_name, window_ids)
        for batch_id in found.values():
            if batch_id:
                training_batches.reopen(tx, batch_id)
    return sorted(found)


def sweep(context: Context, limit: int) -> DueWork:
    """What is due and nobody works on, at most `limit` windows."""
    with context.database.transaction() as tx:
        return window_rows.sweep(tx, context.settings.model_name, limit)
