"""One attempt at a training step: read, load, train, save, commit."""

from __future__ import annotations

import logging
import time
import uuid
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from babylon_tasks.checkpoints import files as checkpoint_files
from babylon_tasks.errors import LeaseLost, StoreUnavailable
from babylon_tasks.logs import bound
from babylon_tasks.records.doing import Doing
from babylon_tasks.records.recipes import Recipe
from babylon_tasks.records.steps import (
    Progress,
    StepRequest,
    StepResult,
    Trainer,
    WindowShare,
)
from babylon_tasks.records.versions import Head
from babylon_tasks.records.windows import Window
from babylon_tasks.scratch import scratch as scratch_folder
from babylon_tasks.store import attempts, heads, steps, training_batches
from babylon_tasks.store.database import Connection
from babylon_tasks.store.steps import Commit, Step
from babylon_tasks.training.backend import TrainingBackend, require_same_kind
from babylon_tasks.training.recipe import (
    hyperparameters_in_force,
    recipe_of_request,
    with_result,
)
from babylon_tasks.words import loss_text
from babylon_tasks.work import aio, left_out
from babylon_tasks.work.context import Context
from babylon_tasks.work.leases import LeaseKeeper
from babylon_tasks.work.samples import Staleness, StepSamples, collect, staleness_at
from babylon_tasks.work.stopwatch import Stopwatch

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class StepOrder:
    """An order: the windows to train in one step, and the version that the step should get."""

    windows: Sequence[Window]
    requested_version: str | None


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


class StepAttempt:
    """One attempt, under a fencing token of its own; `stopwatch` has run since the claim began.

    Before the gradient any error may end the attempt, since little is lost. After it, hours of work
    may be at stake, so each write is repeated while Postgres is away
    (`LeaseKeeper.until_written`).
    """

    def __init__(
        self,
        context: Context,
        backend: TrainingBackend,
        trainer: Trainer,
        keeper: LeaseKeeper,
        order: StepOrder,
        stopwatch: Stopwatch,
    ) -> None:
        self._context, self._settings = context, context.settings
        self._backend, self._trainer, self._keeper = backend, trainer, keeper
        self._order, self._stopwatch = order, stopwatch

    def run(self) -> StepReport | None:
        """Train the windows in one step and commit it; None if none of them has signal.

        Raises:
            Retryable, Final: The step failed; no step was written.
            StaleClaim, LeaseLost: Another worker has taken over; no step was written.
            UserError, OSError: This machine cannot train; no step was written.
            NotRecorded: W&B cannot train on any of these windows; they wait.
        """
        self._backend.require_usable()
        ids = [window.window_id for window in self._order.windows]
        name = self._context.lineage.name
        self._keeper.tell(Doing("train", name, ids, phase="read", share=0.0))
        self._keeper.renew_token(self._open)
        head, parent, staleness = self._read_head()
        with bound(step=head.next_step):
            self._keeper.tell_change(step=head.next_step)
            with scratch_folder("steps") as scratch:
                samples = self._read(scratch, staleness)
                if not samples.windows:
                    return None
                ids = [window.window_id for window in samples.windows]
                self._keeper.tell_change(windows=ids, runs=len(samples.rewards), phase="load")
                checkpoint = self._reserve(head, samples)
                request = self._load(scratch, head, parent, checkpoint)
                # Before the gradient: what fails here costs little.
                recipe = recipe_of_request(self._context, request, parent, samples)
                result = self._train(request, samples)
                self._save(request, checkpoint)
            self._keeper.tell_change(phase="commit", share=_SAVED)
            recipe = with_result(recipe, result)
            return self._commit(self._commit_of(head, recipe, samples, result, checkpoint))

    def _open(self, tx: Connection, token: int) -> None:
        name, ids = self._context.lineage.name, [w.window_id for w in self._order.windows]
        attempts.open_step(tx, name, self._context.holder, token, ids)
        self._backend.on_attempt(tx, token)

    def _read_head(self) -> tuple[Head, Step | None, Staleness]:
        lineage = self._context.lineage
        with self._context.database.transaction() as tx:
            head = heads.ensure(tx, lineage)
            parent = steps.read(tx, lineage.name, head.step)
            staleness = staleness_at(tx, self._context, head.step)
        require_same_kind(lineage, self._settings.trainer, parent)
        self._stopwatch.end("claim")
        return head, parent, staleness

    def _read(self, scratch: Path, staleness: Staleness) -> StepSamples:
        """Write the samples that can be trained into the scratch folder."""
        path = scratch / _SAMPLES
        reading = collect(self._context, self._order.windows, staleness, path, self._keeper.beat)
        samples = aio.run(self._keeper.beating(reading))
        left_out.settle(self._context, self._keeper, samples.left_out)
        if samples.windows:
            samples = self._backend.prepare(self._keeper, samples, path)
            self._stopwatch.end("read")
        return samples

    def _reserve(self, head: Head, samples: StepSamples) -> str:
        """Note in the app's request that training began; return where the checkpoint will be."""
        batch_id = samples.windows[0].batch_id
        if batch_id:
            with self._context.database.transaction() as tx:
                training_batches.start(tx, batch_id)
        return checkpoint_files.folder_of(
            self._settings.checkpoint_store,
            self._context.lineage.name,
            head.next_step,
            self._keeper.claim.lease.token,
        )

    def _load(self, scratch: Path, head: Head, parent: Step | None, checkpoint: str) -> StepRequest:
        """Fetch the parent's checkpoint, and return the trainer's request."""
        lineage, folder = self._context.lineage, None
        if parent is not None:
            folder = checkpoint_files.open_local(parent.files(), self._keeper.beat)
        checkpoint_files.check_writable(checkpoint)
        return StepRequest(
            model_name=lineage.name,
            base_model=lineage.base_model,
            parent=str(folder) if folder else None,
            samples_path=str(scratch / _SAMPLES),
            scratch_dir=str(scratch / "trainer"),
            output_dir=str(scratch / "checkpoint"),
            seed=head.next_step,
            base_revision=head.base_revision or lineage.base_revision,
            hyperparameters=hyperparameters_in_force(self._settings),
            remote=self._backend.remote(),
        )

    def _train(self, request: StepRequest, samples: StepSamples) -> StepResult:
        def on_beat(progress: Progress | None) -> None:
            self._keeper.beat()
            if progress is None:
                return
            if progress.job is not None:
                self._backend.note_job(self._keeper, request.seed, progress.job)
            self._keeper.tell(self._keeper.doing.at(progress, ends=_TRAINED))

        self._stopwatch.end("load")
        result = self._trainer.step(request, on_beat)
        # The rest: the process's start and imports, and the wait for a GPU that is in use.
        self._stopwatch.end_measured(result.seconds_by_phase, rest="start")
        self._keeper.beat()
        return msgspec.structs.replace(result, metrics=result.metrics | samples.staleness())

    def _save(self, request: StepRequest, checkpoint: str) -> None:
        self._keeper.tell_change(phase="save", done=0, total=0, share=_TRAINED, seconds_left=None)
        claim, nonce = self._keeper.claim, str(uuid.uuid4())
        self._keeper.until_written(
            f"announce the checkpoint of step {request.seed}",
            lambda tx: steps.begin_checkpoint(tx, claim, checkpoint, nonce),
        )
        ends_at = time.monotonic() + _STORE_SECONDS
        while True:
            try:
                checkpoint_files.save(
                    Path(request.output_dir), checkpoint, nonce, self._keeper.beat
                )
                break
            except StoreUnavailable as error:
                if time.monotonic() > ends_at:
                    raise
                log.warning("trying again: %s", error)
            self._clear(checkpoint, nonce)
        self._stopwatch.end("checkpoint")

    def _clear(self, checkpoint: str, nonce: str) -> None:
        """Wait a little, and remove what a store that went away has of this checkpoint."""
        time.sleep(_STORE_AGAIN_SECONDS)
        self._keeper.beat()
        try:
            checkpoint_files.remove_unfinished(checkpoint, nonce)
        except Exception as error:  # noqa: BLE001 - each store has its own; the next try says it
            log.debug("cannot remove the rest of %s: %s", checkpoint, error)

    def _commit_of(
        self,
        head: Head,
        recipe: Recipe,
        samples: StepSamples,
        result: StepResult,
        checkpoint: str,
    ) -> Commit:
        return Commit(
            claim=self._keeper.claim,
            lineage=self._context.lineage,
            expected_step=head.step,
            step=head.next_step,
            recipe=recipe,
            trainer=self._settings.trainer,
            windows=samples.windows,
            rewards=samples.rewards,
            funnels=_with_shares(samples.funnels, result),
            result=result,
            checkpoint=checkpoint,
            seconds=self._stopwatch.seconds,
            cost_usd=self._backend.cost_usd(result),
            requested_version=self._requested_version(samples.windows[0].batch_id),
        )

    def _requested_version(self, batch_id: str | None) -> str | None:
        """Return the version that a person chose, else that of the app's request."""
        if self._order.requested_version is not None or batch_id is None:
            return self._order.requested_version
        request = self._keeper.until_written(
            f"read the request {batch_id}", lambda tx: training_batches.read(tx, batch_id)
        )
        return request.version if request else None

    def _commit(self, new: Commit) -> StepReport:
        """Commit; if the connection is lost in COMMIT, look the step up by its token.

        A refused commit removes the files. If it remains unknown whether the step was committed,
        the files stay: a COMMIT on its way may still name them, and if none does, the next holder
        of the lease removes them.
        """
        step, tries = new.step, 0

        def write(tx: Connection) -> str:
            nonlocal tries
            tries += 1
            committed = steps.version_of_token(tx, new.claim) if tries > 1 else None
            return committed or steps.commit(tx, new)

        try:
            version = self._keeper.until_written(f"commit step {step}", write)
        except LeaseLost:
            raise
        except Exception:
            if tries == 1:
                checkpoint_files.remove(new.checkpoint)
            raise
        report = StepReport(
            step=step,
            version=version,
            checkpoint=new.checkpoint,
            window_ids=[w.window_id for w in new.windows],
            trajectories=len(new.rewards),
            result=new.result,
            seconds=sum(new.seconds.values()),
        )
        log.info(
            "step %d (%s): %d windows, %d trajectories, loss %s, %.1f s",
            step,
            version,
            len(report.window_ids),
            report.trajectories,
            loss_text(new.result.loss),
            report.seconds,
        )
        return report


_SAMPLES = "samples.jsonl"
# How much of the step is done after the trainer's request and after the save, by rule of thumb.
_TRAINED, _SAVED = 0.97, 0.99
_STORE_SECONDS = 600.0  # for a remote store to come back: hours of work may wait for it
_STORE_AGAIN_SECONDS = 1.0


def _with_shares(funnels: dict[str, Counter[str]], result: StepResult) -> dict[str, dict[str, int]]:
    """Return the funnels, completed by the trainer's counts of the calls that it was sent."""
    completed = {}
    for window_id, funnel in funnels.items():
        sent = funnel.pop("sent")
        share = result.windows.get(window_id, WindowShare(0, 0, 0))
        completed[window_id] = {
            **funnel,
            "too_long": share.dropped - share.refused,
            **({"template": share.refused} if share.refused else {}),
            "no_advantage": sent - share.sequences - share.dropped,
            "sequences": share.sequences,
            "tokens": share.trainable_tokens,
        }
    return completed
