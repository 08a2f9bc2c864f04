"""One attempt at a training step: read, train, save, commit; or leave no trace."""

from __future__ import annotations

import logging
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from babylon_tasks.checkpoints import files as checkpoint_files
from babylon_tasks.errors import ServerUnavailable
from babylon_tasks.records.steps import (
    Hyperparameters,
    Progress,
    StepRequest,
    StepResult,
    Trainer,
    WindowShare,
)
from babylon_tasks.records.versions import Versions
from babylon_tasks.records.windows import Window
from babylon_tasks.settings import Settings
from babylon_tasks.store import attempts, jobs, steps, training_batches
from babylon_tasks.store.database import Connection, Database
from babylon_tasks.store.steps import Commit
from babylon_tasks.training import wandb_jobs
from babylon_tasks.training.samples import Staleness, collect
from babylon_tasks.work import aio
from babylon_tasks.work.context import Context
from babylon_tasks.work.leases import LeaseKeeper
from babylon_tasks.work.stopwatch import Stopwatch

log = logging.getLogger(__name__)

_COMMIT_AGAIN_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class StepReport:
    """A committed step; `seconds` is its wall time."""

    step: int
    version: str
    checkpoint: str
    window_ids: list[str]
    trajectories: int
    result: StepResult
    seconds: float


def attempt_step(
    context: Context,
    trainer: Trainer,
    keeper: LeaseKeeper,
    windows: Sequence[Window],
    requested_version: str | None,
    on_progress: Callable[[Progress], None],
    phases: Stopwatch,
) -> StepReport | None:
    """Train the windows in one step and commit it; None where none of them had signal left.

    `phases` runs since the claim began.

    Raises:
        Retryable, Final: The step failed; nothing was written.
        StaleClaim, LeaseLost: Another worker has taken over; nothing was written.
        UserError: This machine cannot train; nothing was written.
        NotRecorded: W&B cannot train on any of these windows; they wait.
    """
    database, settings = context.database, context.settings
    on_wandb = settings.trainer == "serverless"
    if on_wandb:
        wandb_jobs.require_usable(settings)
    window_ids = [w.window_id for w in windows]

    def open_step(tx: Connection, token: int) -> None:
        attempts.open_step(tx, settings.model_name, context.holder, token, window_ids)
        if on_wandb:
            jobs.follow(tx, settings.model_name, token)

    lease = keeper.renew_token(open_step)
    with tempfile.TemporaryDirectory(prefix="babylon-step-") as scratch_name:
        scratch = Path(scratch_name)
        samples_path = scratch / "samples.jsonl"
        with database.transaction() as tx:
            head = steps.head(tx, settings.model_name, settings.base_model)
            parent = steps.read(tx, settings.model_name, head.step)
            known = steps.steps_of_versions(tx, settings.model_name)
            job = jobs.read_open(tx, settings.model_name) if on_wandb else None
        wandb_jobs.require_same_kind(settings, parent)
        staleness = Staleness(settings, head.step, Versions(settings.model_name, known))
        phases.end("claim")
        material = aio.run(collect(context, keeper, lease, windows, staleness, samples_path))
        if not material.windows:
            return None
        wanted = job is not None and job.windows == wandb_jobs.sent_of(material)
        if on_wandb:
            material = wandb_jobs.leave_out_unrecorded(
                context, keeper, material, samples_path, wanted
            )
        sent = wandb_jobs.sent_of(material)
        phases.end("read")
        with database.transaction() as tx:
            if material.windows[0].batch_id:
                training_batches.start(tx, material.windows[0].batch_id)
        checkpoint = checkpoint_files.folder_of(
            settings.checkpoint_store, settings.model_name, head.step + 1, lease.token
        )
        parent_folder = checkpoint_files.open_local(parent.files(), keeper.beat) if parent else None
        checkpoint_files.check_writable(checkpoint)
        request = StepRequest(
            model_name=settings.model_name,
            base_model=settings.base_model,
            parent=str(parent_folder) if parent_folder else None,
            samples_path=str(samples_path),
            scratch_dir=str(scratch / "trainer"),
            output_dir=str(scratch / "checkpoint"),
            seed=head.step + 1,
            hyperparameters=_hyperparameters(settings),
            remote=wandb_jobs.remote_of(settings, job, wanted) if on_wandb else None,
        )

        def on_beat(progress: Progress | None) -> None:
            keeper.beat()
            if progress is None:
                return
            if progress.job is not None:
                wandb_jobs.note_job(context, keeper, head.step + 1, sent, progress.job)
            on_progress(progress)

        phases.end("load")
        result = trainer.step(request, on_beat)
        # The rest: the process's start and imports, and the wait for a GPU that another has.
        phases.end_known(result.seconds_by_phase, rest="start")
        keeper.beat()
        metrics = result.metrics | material.staleness()
        result = msgspec.structs.replace(result, metrics=metrics)
        with database.transaction() as tx:
            nonce = steps.begin_checkpoint(tx, settings.model_name, checkpoint, lease.token)
        checkpoint_files.save(Path(request.output_dir), checkpoint, nonce, keeper.beat)
        phases.end("checkpoint")
    commit = Commit(
        model_name=settings.model_name,
        base_model=settings.base_model,
        expected_step=head.step,
        token=lease.token,
        holder=context.holder,
        trainer=settings.trainer,
        primary=settings.primary,
        windows=material.windows,
        rewards=material.rewards,
        funnels=_with_shares(material.funnels, result),
        result=result,
        checkpoint=checkpoint,
        seconds=phases.seconds,
        cost_usd=_cost_usd(settings, result),
        requested_version=_requested_version(database, material.windows, requested_version),
    )
    version = _commit(database, keeper, commit)
    log.info(
        "step %d (%s): %d windows, %d trajectories, loss %s, %.1f s",
        head.step + 1,
        version,
        len(material.windows),
        len(material.rewards),
        loss_text(result),
        sum(phases.seconds.values()),
    )
    return StepReport(
        step=head.step + 1,
        version=version,
        checkpoint=checkpoint,
        window_ids=[w.window_id for w in material.windows],
        trajectories=len(material.rewards),
        result=result,
        seconds=sum(phases.seconds.values()),
    )


def _commit(database: Database, keeper: LeaseKeeper, new: Commit) -> str:
    """Commit, again and again while the lease lives: a step may have taken hours.

    A connection lost in COMMIT leaves the outcome open: the row with our token decides. Where it
    stays open, the files stay too: a COMMIT on its way may still name them, and if none does, the
    next holder of the lease removes them. A commit that is refused removes them here.
    """
    unsure = False
    while True:
        try:
            with database.transaction() as tx:
                version = steps.version_of_token(tx, new.model_name, new.token) if unsure else None
                return version or steps.commit(tx, new)
        except ServerUnavailable as error:
            unsure = True
            log.warning("cannot commit step %d yet: %s", new.expected_step + 1, error)
            time.sleep(_COMMIT_AGAIN_SECONDS)
            keeper.beat()
        except Exception:
            if not unsure:
                checkpoint_files.remove(new.checkpoint)
            raise


def _cost_usd(settings: Settings, result: StepResult) -> float | None:
    """What the trainer said, or the price of the GPU time; W&B's GPUs have none of our prices."""
    if result.cost_usd is not None or settings.gpu_usd_per_hour is None:
        return result.cost_usd
    if settings.trainer == "serverless":
        return None
    return result.gpu_seconds / 3600 * settings.gpu_usd_per_hour


def _requested_version(
    database: Database, windows: Sequence[Window], requested: str | None
) -> str | None:
    if requested is not None or windows[0].batch_id is None:
        return requested
    with database.transaction() as tx:
        request = training_batches.read(tx, windows[0].batch_id)
    return request.version if request else None


def _with_shares(funnels: dict[str, Counter[str]], result: StepResult) -> dict[str, dict[str, int]]:
    """The counts, and what became of the calls that the trainer was sent."""
    told = {}
    for window_id, funnel in funnels.items():
        sent = funnel.pop("sent")
        share = result.windows.get(window_id, WindowShare(0, 0, 0))
        told[window_id] = {
            **funnel,
            "too_long": share.dropped,
            "no_advantage": sent - share.sequences - share.dropped,
            "sequences": share.sequences,
            "tokens": share.trainable_tokens,
        }
    return told


def loss_text(result: StepResult) -> str:
    """The loss for a line of text."""
    return "not known" if result.loss is None else f"{result.loss:.4f}"


def _hyperparameters(settings: Settings) -> Hyperparameters:
    return Hyperparameters(
        **{name: getattr(settings, name) for name in Hyperparameters.__struct_fields__}
    )
