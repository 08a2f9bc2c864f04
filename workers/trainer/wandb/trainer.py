"""A step at W&B: posts a job once, follows it to its end, takes what it made.

W&B goes on from its model's newest checkpoint, whoever made it, and gives no way to ask which jobs
there are. So nothing is posted while an earlier job may run: see `_settle`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from babylon_tasks.checkpoints.export import REMOTE_FILE
from babylon_tasks.errors import (
    CheckpointUnreadable,
    Final,
    Retryable,
    UserError,
)
from babylon_tasks.records.steps import JobNote, OpenJob, Progress, Remote, StepRequest, StepResult
from babylon_tasks.records.trainer_requests import (
    EvaluateRequest,
    EvaluateResult,
    GenerateRequest,
    GenerateResult,
)
from babylon_tasks.text import one_line
from workers.trainer.packages import package_versions
from workers.trainer.samples import read_samples
from workers.trainer.wandb.answers import generate_answers
from workers.trainer.wandb.client import RemoteModel, Unsure, WandbClient, open_client
from workers.trainer.wandb.job import SPAN, JobFollower, JobGone, MadeCheckpoint
from workers.trainer.wandb.recorded import Recorded, recorded_groups

log = logging.getLogger(__name__)

DEFAULT_RATE = 1e-5  # where LEARNING_RATE leaves it to the model: W&B does not say its size


class RemoteCheckpoint(msgspec.Struct, frozen=True):
    """What stands in `remote.json`: the weights are W&B's, and stay there."""

    inference_name: str
    url: str
    model_id: str
    remote_step: int
    base_model: str
    job_id: str | None


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

    def evaluate(
        self, request: EvaluateRequest, on_progress: Callable[[Progress], None]
    ) -> EvaluateResult:
        """Refuse: W&B does not say how likely an answer is that others gave.

        Raises:
            UserError: Always.
        """
        raise UserError(
            f"W&B has the weights of {request.model_name}, so TRAINER=serverless cannot evaluate: "
            "train the model here with TRAINER=torch"
        )

    def generate(
        self, request: GenerateRequest, on_progress: Callable[[Progress], None]
    ) -> GenerateResult:
        """Let W&B answer, by the step's name there or the base model's.

        Raises:
            RemoteUnavailable: W&B does not answer.
            UserError: It refuses the key; or of the base model, the request has no `remote_url`.
            CheckpointUnreadable: The checkpoint is not here, or W&B does not have the model.
            Final: It refuses every prompt.
        """
        started = time.monotonic()
        step = _read(Path(request.checkpoint) / REMOTE_FILE) if request.checkpoint else None
        url = request.remote_url or (step.url if step else None)
        if url is None:
            raise UserError("W&B's address is not known: the request has no remote_url")
        model = step.inference_name if step else request.base_model
        generations = asyncio.run(generate_answers(self._key, url, model, request, on_progress))
        everything = [each for answers in generations for each in answers]
        return GenerateResult(
            generations=generations,
            dropped=sum(not answers for answers in generations),
            tokens=sum(len(each.logprobs) for each in everything),
            device="W&B",
            seconds=time.monotonic() - started,
        )


def _read(path: Path) -> RemoteCheckpoint:
    """Read what names W&B's weights.

    Raises:
        CheckpointUnreadable: It is not here.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=RemoteCheckpoint)
    except (OSError, msgspec.DecodeError) as error:
        raise CheckpointUnreadable(f"cannot read the checkpoint {path}: {error}") from error


class _Step:
    def __init__(
        self, request: StepRequest, remote: Remote, on_progress: Callable[[Progress], None]
    ) -> None:
        self._request = request
        self._remote = remote
        self._on_progress = on_progress
        self._progress = Progress("load", share=0.0)

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
            follower = JobFollower(client, self._remote, self._tell)
            made = await self._settle(follower, model, self._remote.job)
            if made is None:
                before = await client.newest_step(model.id)
                _compare(before, parent)
                made = await self._post(client, follower, model, recorded, before)
        self._tell(Progress("save", loss=self._progress.loss, share=SPAN[1]))
        name = f"wandb-artifact:///{model.entity}/{model.project}/{model.name}"
        name = f"{name}:step{made.remote_step}"
        self._save(model, made, name)
        metrics = made.events.metrics()
        loss = metrics.get("loss", metrics.get("policy_loss"))
        shares = recorded.shares
        return StepResult(
            loss=loss,
            sequences=sum(share.sequences for share in shares.values()),
            dropped_sequences=sum(share.dropped for share in shares.values()),
            trainable_tokens=sum(share.trainable_tokens for share in shares.values()),
            context_tokens=0,  # W&B has the tokenizer
            optimizer_steps=made.events.gradient_steps,
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
            packages=package_versions(),
        )

    async def _settle(
        self, follower: JobFollower, model: RemoteModel, job: OpenJob | None
    ) -> MadeCheckpoint | None:
        """See an earlier attempt's job to its end; what it made, if that is wanted.

        Raises:
            Retryable: It failed, or is lost: it may be posted again.
        """
        if job is None:
            return None
        log.info("going on with the job %s of an earlier attempt", job.job_id or "(id not known)")
        seconds_left = self._remote.lost_seconds - job.age_seconds
        try:
            made = await follower.follow(model.id, job.remote_step, job.job_id, seconds_left)
        except JobGone as gone:
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
        self,
        client: WandbClient,
        follower: JobFollower,
        model: RemoteModel,
        recorded: Recorded,
        before: int,
    ) -> MadeCheckpoint:
        if not recorded.groups:
            raise Final(
                "nothing to train: each LLM call is longer than "
                f"{self._request.hyperparameters.max_sequence_tokens} tokens (MAX_SEQUENCE_TOKENS)"
            )
        wanted = self._request.hyperparameters
        config = {
            "learning_rate": wanted.learning_rate or DEFAULT_RATE,
            "advantage_balance": 1 - wanted.negative_scale,
            "scale_rewards": wanted.group_deviation,
        }
        self._tell(Progress("post", share=SPAN[0]))
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
            return await follower.follow(model.id, before, job_id, self._remote.lost_seconds)
        except JobGone as gone:
            self._note(gone.note)
            raise Retryable(gone.note.why) from None

    def _save(self, model: RemoteModel, made: MadeCheckpoint, name: str) -> None:
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
        """Read the head's checkpoint.

        Raises:
            CheckpointUnreadable: It is not here.
            UserError: It belongs to another model of W&B.
        """
        if self._request.parent is None:
            return None
        parent = _read(Path(self._request.parent) / REMOTE_FILE)
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
        """Tell the worker of a job, and return once that is durable."""
        self._on_progress(msgspec.structs.replace(self._progress, job=note))


def _compare(remote_step: int, parent: RemoteCheckpoint | None) -> None:
    """Say so where W&B would not go on from the head: it takes its own newest checkpoint."""
    parent_step = parent.remote_step if parent else 0
    if remote_step != parent_step:
        log.warning(
            "W&B's model stands at step %d, the head is its step %d: what was trained between is "
            "an abandoned job's, or somebody else's",
            remote_step,
            parent_step,
        )
