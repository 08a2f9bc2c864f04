"""A training step as data: what a trainer is asked for, what it says, what it gives back.

The records cross process borders as JSON, so they hold nothing but plain values. Every trainer
(torch on this machine, none at all in benchmarks) satisfies the one protocol `Trainer`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Protocol

import msgspec

# vLLM says -9999 of what could not be said; far below it nobody meant a log-probability.
LEAST_LOGPROB = -1e6


class Logprobs(msgspec.Struct, frozen=True):
    """The tokens of a response and their log-probabilities, by the policy that answered.

    Both of one length; values from `LEAST_LOGPROB` to 0. The end-of-turn token may be the last of
    them, or missing.
    """

    token_ids: tuple[int, ...]
    values: tuple[float, ...]


class Call(msgspec.Struct, frozen=True):
    """One recorded LLM call: exactly what the agent saw and what it answered."""

    system: str
    user: str
    response: str
    logprobs: Logprobs | None = None

    def prompt(self) -> list[dict[str, str]]:
        """Return what the agent saw, as chat messages."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, {"role": "user", "content": self.user}]


class Sample(msgspec.Struct, frozen=True):
    """One trajectory to train on: its calls share the reward's advantage."""

    window_id: str
    trajectory_id: str
    reward: float
    calls: list[Call]


class Hyperparameters(msgspec.Struct, frozen=True):
    """What a step may vary by setting; the names are those of `Settings`."""

    learning_rate: float
    warmup_steps: int
    lora_rank: int
    lora_alpha: int
    kl_penalty: float
    negative_scale: float
    max_sequence_tokens: int
    micro_batch_tokens: int


class OpenJob(msgspec.Struct, frozen=True):
    """A job at W&B that an earlier attempt left open.

    `remote_step` is where W&B's model stood before it; without `job_id` it is not known whether
    the job exists. `wanted` says whether it is about the very windows and traces of this step, so
    that its result may become the step.
    """

    remote_step: int
    job_id: str | None
    age_seconds: float
    wanted: bool


class Remote(msgspec.Struct, frozen=True):
    """Where the serverless trainer trains; the key to it is in its environment.

    A job that was posted without an answer is taken for lost after `lost_seconds`.
    """

    url: str
    entity: str | None
    project: str
    usd_per_job: float | None
    lost_seconds: float
    job: OpenJob | None


class StepRequest(msgspec.Struct, frozen=True):
    """One step of one model, asked for by the holder of the model's lease.

    `samples_path` is a file of JSON lines, one `Sample` each, a window's lines together: a window
    is a group (ART's `TrajectoryGroup`). `parent` is the checkpoint folder of the head, or None for
    the first step. The trainer writes the new checkpoint's files into `output_dir` (made by the
    trainer, inside `scratch_dir`, which belongs to this attempt alone). `remote` is for the
    serverless trainer.
    """

    model_name: str
    base_model: str
    parent: str | None
    samples_path: str
    scratch_dir: str
    output_dir: str
    seed: int
    hyperparameters: Hyperparameters
    remote: Remote | None = None


class JobNote(msgspec.Struct, frozen=True):
    """What became of a job at W&B.

    `intent`: it is about to be posted, W&B's model stands at `remote_step`. `posted`: it has this
    `job_id`. The others end it, `why` says how: W&B `refused` it, or it `failed`; it is taken for
    `lost`; or its result is not wanted any more.
    """

    state: Literal["intent", "posted", "refused", "failed", "lost", "abandoned"]
    remote_step: int | None = None
    job_id: str | None = None
    why: str | None = None


class Progress(msgspec.Struct, frozen=True):
    """A sign of life in a step; `phase` is one of load, tokenize, post, queue, train, save.

    `job` must be durable before the trainer goes on.
    """

    phase: str
    done: int = 0
    total: int = 0
    loss: float | None = None
    tokens_per_second: float | None = None
    job: JobNote | None = None


class WindowShare(msgspec.Struct, frozen=True):
    """What one window gave to a step: `sequences` LLM calls of so many `trainable_tokens`.

    `dropped` calls were longer than `max_sequence_tokens`, or could not be put into the template;
    the window's other calls belong to trajectories of the average reward, which teach nothing.
    """

    sequences: int
    dropped: int
    trainable_tokens: int


class StepResult(msgspec.Struct, frozen=True):
    """What a step did. `metrics` holds finite numbers only.

    `trainable_tokens` counts response tokens (with their end token) that took part in the loss;
    `context_tokens` all unpadded tokens of the sequences; `dropped_sequences` calls longer than
    `max_sequence_tokens`, or empty ones; `loss` is the mean over the step's trainable tokens;
    `seconds_by_phase` names load, tokenize, forward_backward, optimizer and checkpoint, each as
    far as the trainer has it; `mfu` is the share of the device's matrix rate (0 to 1), and
    `peak_memory_bytes` the most memory held, on the GPU or without one in the process; None where
    not known. `cost_usd` is set by a trainer that knows its price. `windows` has the shares by
    window id. `inference_name` is what W&B's endpoint calls the new version; `loss` is None where
    W&B has not said it.
    """

    loss: float | None
    sequences: int
    dropped_sequences: int
    trainable_tokens: int
    context_tokens: int
    optimizer_steps: int
    device: str
    gpu_seconds: float
    seconds_by_phase: dict[str, float]
    metrics: dict[str, float]
    windows: dict[str, WindowShare]
    mfu: float | None = None
    peak_memory_bytes: int | None = None
    cost_usd: float | None = None
    inference_name: str | None = None


class Trainer(Protocol):
    """Runs one step at a time; the caller holds the model's lease meanwhile."""

    def step(self, request: StepRequest, on_beat: Callable[[Progress | None], None]) -> StepResult:
        """Run one step.

        `on_beat` is called with each sign of life, and with None at least every heartbeat while
        there is none; what it raises ends the step and is passed on.

        Raises:
            TrainerDied: The process ended or stalled; the same step may be tried again.
            Final: The step can never work as asked (nothing in it can be trained, or one sequence
                needs more memory than the GPU has); the message says which setting to change.
            UserError: This machine cannot train at all (a package or the base model is missing).
        """
        ...

    def close(self) -> None:
        """End the process behind this trainer, if any, and free its GPU."""
        ...
