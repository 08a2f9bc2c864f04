"""A step at W&B: posts a job once, follows it to its end, takes what it made.

W&B goes on from its model's newest checkpoint, whoever made it, and gives no way to ask which jobs
there are. So nothing is posted while an earlier job may run: see `_settle`.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from babylon_tasks.checkpoints.export import REMOTE_FILE
from babylon_tasks.errors import (
    CheckpointUnreadable,
    Final,
    RemoteUnavailable,
    Retryable,
    UserError,
)
from babylon_tasks.records.steps import JobNote, OpenJob, Progress, Remote, StepRequest, StepResult
from babylon_tasks.text import one_line
from workers.trainer.samples import read_samples
from workers.trainer.wandb.client import Event, RemoteModel, Unsure, WandbClient, open_client
from workers.trainer.wandb.recorded import Recorded, recorded_groups

log = logging.getLogger(__name__)

POLL_SECONDS = 1.0
MAX_POLL_SECONDS = 30.0  # while W&B does not answer
UNKNOWN_SECONDS = 60.0  # for a job that W&B does not know (yet), a checkpoint that it does not list


class RemoteCheckpoint(msgspec.Struct, frozen=True):
    """What stands in `remote.json`: the weights are W&B's, and stay there."""

    inference_name: str
    url: str
    model_id: str
    remote_step: int
    base_model: str
    job_id: str | None


@dataclass
class _Told:
    """What a job's events said so far."""

    total: int = 0
    after: str | None = None
    sums: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    counts: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    gradient_steps: int = 0
    ended: bool = False
    error: str | None = None

    def hear(self, event: Event) -> float | None:
        """Take in one event; the loss, where it tells one."""
        if event.type == "training_started":
            # Told again with each question, until there is a gradient step to name.
            self.total = int(_number(event.data.get("num_sequences")) or 0)
            return None
        self.after = event.id
        if event.type == "training_ended":
            self.ended = True
        elif event.type == "training_failed":
            self.ended = True
            message = event.data.get("error_message") or "no reason given"
            self.error = one_line(str(message))
        elif event.type == "gradient_step":
            self.gradient_steps += 1
            for name, value in event.data.items():
                number = _number(value)
                if number is not None:
                    self.sums[name] += number
                    self.counts[name] += 1
            return _number(event.data.get("loss", event.data.get("policy_loss")))
        return None

    def metrics(self) -> dict[str, float]:
        """Means over the gradient steps."""
        return {name: total / self.counts[name] for name, total in self.sums.items()}


@dataclass(frozen=True)
class _Made:
    """A checkpoint that a job made."""

    remote_step: int
    told: _Told
    job_id: str | None


class _Gone(Exception):
    """A job ended without a checkpoint, or is taken for lost; its note says how."""

    def __init__(self, note: JobNote) -> None:
        super().__init__(note.why)
        self.note = note


class ServerlessTrainer:
    """Trains on W&B with this key."""

    def __init__(self, api_key: str) -> None:
        self._key = api_key

    def step(self, request: StepRequest, on_progress: Callable[[Progress], None]) -> StepResult:
        """Run one step; see `babylon_tasks.records.steps.Trainer`.

        `on_progress` returns from a progress with a job once that is durable.

        Raises:
            RemoteUnavailable: W&B does not answer, and no job was posted.
            UserError: It refuses the key, or the model.
            Final: It refuses the step, or nothing of it fits MAX_SEQUENCE_TOKENS.
            Retryable: The job failed, or is lost.
        """
        assert request.remote is not None
        return asyncio.run(_Step(request, request.remote, on_progress).run(self._key))


class _Step:
    def __init__(
        self, request: StepRequest, remote: Remote, on_progress: Callable[[Progress], None]
    ) -> None:
        self._request = request
        self._remote = remote
        self._on_progress = on_progress
        self._progress = Progress("load")

    async def run(self, key: str) -> StepResult:
        started = time.monotonic()
        self._alive()
        samples = read_samples(self._request.samples_path)
        recorded = recorded_groups(samples, self._request.hyperparameters.max_sequence_tokens)
        async with open_client(key, self._remote.url, self._alive) as client:
            model = await client.open_model(
                self._remote.entity,
                self._remote.project,
                self._request.model_name,
                self._request.base_model,
            )
            parent = self._read_parent(model)
            made = await self._settle(client, model, self._remote.job)
            if made is None:
                before = await client.newest_step(model.id)
                _compare(before, parent)
                made = await self._post(client, model, before, recorded)
        self._tell(Progress("save"))
        name = f"wandb-artifact:///{model.entity}/{model.project}/{model.name}"
        name = f"{name}:step{made.remote_step}"
        self._save(model, made, name)
        metrics = made.told.metrics()
        loss = metrics.get("loss", metrics.get("policy_loss"))
        shares = recorded.shares
        return StepResult(
            loss=loss,
            sequences=sum(share.sequences for share in shares.values()),
            dropped_sequences=sum(share.dropped for share in shares.values()),
            trainable_tokens=sum(share.trainable_tokens for share in shares.values()),
            context_tokens=0,  # W&B has the tokenizer
            optimizer_steps=made.told.gradient_steps,
            device="W&B",
            gpu_seconds=0.0,
            seconds_by_phase={"job": time.monotonic() - started},
            metrics={
                **metrics,
                "remote_step": float(made.remote_step),
                "groups": float(len(recorded.groups)),
                "trajectories": float(len(samples)),
            },
            windows=shares,
            cost_usd=self._remote.usd_per_job,
            inference_name=name,
        )

    async def _settle(
        self, client: WandbClient, model: RemoteModel, job: OpenJob | None
    ) -> _Made | None:
        """See an earlier attempt's job to its end; what it made, if that is wanted.

        Raises:
            Retryable: It failed, or is lost: it may be posted again.
        """
        if job is None:
            return None
        log.info("going on with the job %s of an earlier attempt", job.job_id or "(id not known)")
        left = self._remote.lost_seconds - job.age_seconds
        try:
            made = await self._follow(client, model, job.remote_step, job.job_id, left)
        except _Gone as gone:
            self._note(gone.note)
            if job.wanted:
                raise Retryable(gone.note.why) from None
            return None
        if job.wanted:
            return made
        why = (
            f"the windows changed while it ran; W&B's model has what it trained, in its "
            f"step {made.remote_step}"
        )
        log.warning("job %s is abandoned: %s", job.job_id, why)
        self._note(JobNote("abandoned", why=why))
        return None

    async def _post(
        self, client: WandbClient, model: RemoteModel, before: int, recorded: Recorded
    ) -> _Made:
        if not recorded.groups:
            raise Final(
                "nothing to train: each LLM call is longer than "
                f"{self._request.hyperparameters.max_sequence_tokens} tokens (MAX_SEQUENCE_TOKENS)"
            )
        wanted = self._request.hyperparameters
        config = {
            "learning_rate": wanted.learning_rate,
            "advantage_balance": 1 - wanted.negative_scale,
            "scale_rewards": True,
        }
        self._tell(Progress("post"))
        self._note(JobNote("intent", remote_step=before))
        job_id = None
        try:
            job_id = await client.post_job(model.id, recorded.groups, config)
        except Unsure as error:
            log.warning("W&B gave no answer to a job (%s): waiting for its model to move", error)
        except Exception as error:
            self._note(JobNote("refused", why=one_line(str(error))))
            raise
        else:
            self._note(JobNote("posted", job_id=job_id))
        try:
            return await self._follow(client, model, before, job_id, self._remote.lost_seconds)
        except _Gone as gone:
            self._note(gone.note)
            raise Retryable(gone.note.why) from None

    async def _follow(
        self,
        client: WandbClient,
        model: RemoteModel,
        before: int,
        job_id: str | None,
        lost_seconds: float,
    ) -> _Made:
        """Wait for the job's end, however long W&B is away meanwhile.

        Raises:
            _Gone: It failed, or nothing was heard of it for too long.
        """
        self._tell(Progress("queue"))
        told = _Told()
        # Without an id there are no events: only the model's newest checkpoint tells.
        if job_id is None:
            gone = JobNote(
                "lost",
                why=f"no answer came to a job, and W&B's model stayed at step {before} for "
                f"{self._remote.lost_seconds:g} s (SERVERLESS_LOST_SECONDS)",
            )
            return _Made(
                await self._moved(client, model.id, before, lost_seconds, gone), told, None
            )
        known = await self._hear_out(client, job_id, told)
        if told.error is not None:
            raise _Gone(JobNote("failed", why=f"W&B's job {job_id} failed: {told.error}"))
        why = "ended without a new checkpoint" if known else "is not known to W&B"
        gone = JobNote("failed" if known else "lost", why=f"W&B's job {job_id} {why}")
        moved = await self._moved(client, model.id, before, UNKNOWN_SECONDS, gone)
        return _Made(moved, told, job_id)

    async def _hear_out(self, client: WandbClient, job_id: str, told: _Told) -> bool:
        """Until the job's last event; False where W&B knows no such job."""
        wait_seconds = POLL_SECONDS
        unknown_since: float | None = None
        while not told.ended:
            try:
                events = await client.events(job_id, told.after)
            except RemoteUnavailable as error:
                log.warning("%s", error)
                wait_seconds = min(2 * wait_seconds, MAX_POLL_SECONDS)
                await client.pause(wait_seconds)
                continue
            wait_seconds = POLL_SECONDS
            if events is None:
                unknown_since = unknown_since or time.monotonic()
                if time.monotonic() - unknown_since > UNKNOWN_SECONDS:
                    return False
            for event in events or ():
                self._relay(told, event)
            if not told.ended:
                await client.pause(wait_seconds)
        return True

    def _relay(self, told: _Told, event: Event) -> None:
        loss = told.hear(event)
        if told.total:
            done = told.gradient_steps
            self._tell(Progress("train", done, max(told.total, done), loss or self._progress.loss))

    async def _moved(
        self, client: WandbClient, model_id: str, before: int, seconds: float, gone: JobNote
    ) -> int:
        """Wait until W&B's model stands beyond `before`; its step.

        Raises:
            _Gone: It does not, though it could be asked at the end.
        """
        deadline = time.monotonic() + seconds
        wait_seconds = POLL_SECONDS
        while True:
            last = time.monotonic() >= deadline
            try:
                step = await client.newest_step(model_id)
            except RemoteUnavailable as error:
                log.warning("%s", error)
                wait_seconds = min(2 * wait_seconds, MAX_POLL_SECONDS)
            else:
                if step > before:
                    return step
                if last:
                    raise _Gone(gone)
                wait_seconds = POLL_SECONDS
            await client.pause(wait_seconds)

    def _save(self, model: RemoteModel, made: _Made, name: str) -> None:
        output = Path(self._request.output_dir)
        output.mkdir(parents=True, exist_ok=True)
        checkpoint = RemoteCheckpoint(
            inference_name=name,
            url=self._remote.url,
            model_id=model.id,
            remote_step=made.remote_step,
            base_model=self._request.base_model,
            job_id=made.job_id,
        )
        (output / REMOTE_FILE).write_bytes(msgspec.json.encode(checkpoint))

    def _read_parent(self, model: RemoteModel) -> RemoteCheckpoint | None:
        """The head's checkpoint.

        Raises:
            CheckpointUnreadable: It is not here.
            UserError: It belongs to another model of W&B.
        """
        if self._request.parent is None:
            return None
        path = Path(self._request.parent) / REMOTE_FILE
        try:
            parent = msgspec.json.decode(path.read_bytes(), type=RemoteCheckpoint)
        except (OSError, msgspec.DecodeError) as error:
            raise CheckpointUnreadable(f"cannot read the checkpoint {path}: {error}") from error
        if parent.model_id != model.id:
            raise UserError(
                f"the head is {parent.inference_name}, and not of W&B's model "
                f"{model.entity}/{model.project}/{model.name}: set WANDB_ENTITY and WANDB_PROJECT "
                "back, or MODEL_NAME to a new name"
            )
        return parent

    def _alive(self) -> None:
        self._on_progress(self._progress)

    def _tell(self, progress: Progress) -> None:
        self._progress = progress
        self._alive()

    def _note(self, note: JobNote) -> None:
        """Returns once it is durable."""
        self._on_progress(msgspec.structs.replace(self._progress, job=note))


def _compare(remote_step: int, parent: RemoteCheckpoint | None) -> None:
    """Say so where W&B would not go on from the head: it takes its own newest checkpoint."""
    known = parent.remote_step if parent else 0
    if remote_step != known:
        log.warning(
            "W&B's model stands at step %d, the head is its step %d: what was trained between is "
            "an abandoned job's, or somebody else's",
            remote_step,
            known,
        )


def _number(value: object) -> float | None:
    """A finite number, or None for anything else."""
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None
