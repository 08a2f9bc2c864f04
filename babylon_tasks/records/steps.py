"""A training step as data: the request, the trainer's progress, and the result.

The records cross process borders as JSON, so they hold plain values only. Every trainer (`torch`,
`serverless`, `noop`) satisfies the one protocol `Trainer`. What it is asked besides steps is in
`babylon_tasks.records.trainer_requests`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, Protocol

import msgspec

from babylon_tasks.records.trainer_requests import (
    EvaluateRequest,
    EvaluateResult,
    GenerateRequest,
    GenerateResult,
)

# vLLM writes -9999 for a token that cannot occur; a value far below that is no log-probability.
LEAST_LOGPROB = -1e6


class Logprobs(msgspec.Struct, frozen=True):
    """The tokens of a response and their log-probabilities, by the policy that answered.

    Both have the same length; values are from `LEAST_LOGPROB` to 0. The end-of-turn token is the
    last one, or missing.
    """

    token_ids: tuple[int, ...]
    values: tuple[float, ...]


class Call(msgspec.Struct, frozen=True):
    """One recorded LLM call: exactly what the agent saw and what it answered.

    What is more than a system and a user message is in `messages`, as the JSON of a list of chat
    messages; the two texts are empty then. `tools` is the JSON of a list of definitions. The two
    are unset rather than None, so that other calls are written as they always were: a step's
    recipe has a digest of them.

    `ended` is set for an answer that was done badly, and that the lineage itself gave: whether the
    model ended it. An empty one is trained as its end alone, one that was cut off without its end.
    """

    system: str
    user: str
    response: str
    logprobs: Logprobs | None = None
    messages: str | msgspec.UnsetType = msgspec.UNSET
    tools: str | msgspec.UnsetType = msgspec.UNSET
    ended: bool | msgspec.UnsetType = msgspec.UNSET

    def prompt(self) -> list[dict[str, Any]]:
        """Return what the agent saw, as chat messages of OpenAI's API; none has a list of parts."""
        if self.messages is not msgspec.UNSET:
            return msgspec.json.decode(self.messages, type=list[dict[str, Any]])
        texts = (("system", self.system), ("user", self.user))
        # Without any text there is one empty message: templates fail on none at all.
        told = [{"role": role, "content": text} for role, text in texts if text]
        return told or [{"role": "user", "content": ""}]

    def has_prompt(self) -> bool:
        """Tell whether the agent was told anything: whether a message not its own has text."""
        if self.messages is msgspec.UNSET:
            user, system = self.user, self.system
            return bool((user and not user.isspace()) or (system and not system.isspace()))
        return any(m["role"] != "assistant" and m["content"].strip() for m in self.prompt())

    def shown_tools(self) -> list[dict[str, Any]] | None:
        """Return the definitions of tools that the agent saw besides, as OpenAI's API has them."""
        if self.tools is msgspec.UNSET:
            return None
        return msgspec.json.decode(self.tools, type=list[dict[str, Any]])

    def prompt_bytes(self) -> int:
        """Return the bytes of the texts of `prompt` and `shown_tools`."""
        texts = (self.system, self.user, self.messages or "", self.tools or "")
        return sum(len(text.encode()) for text in texts)


class Sample(msgspec.Struct, frozen=True):
    """Calls of one trajectory to train on: they share the reward's advantage.

    What a trajectory did badly is a sample of its own, beside that of its other calls.
    """

    window_id: str
    trajectory_id: str
    reward: float
    calls: list[Call]


class Hyperparameters(msgspec.Struct, frozen=True):
    """The settings that a step depends on, under their names in `Settings`.

    What has a default here came later: a recipe without it was made as the default says, and is
    made so again. The defaults of `Settings` are others.

    A training step trains on each sequence in `passes` passes. One update of the optimizer is by
    `windows_per_update` windows (0: by all of the step). An importance ratio is at most
    `ratio_cap`. `unrecorded_ratio` says who counts as having answered where nothing was recorded:
    `one`, the policy as it is (a ratio of 1), the `base` model, or the step's `parent`, which is
    the policy at its start. `kl_reference` is the one that the KL penalty holds the policy to.
    Without `group_deviation` an advantage is not divided by its group's deviation. Without
    `learning_rate` the model's size decides. A step that moves the mean answer's log-probability by
    more than `max_policy_change` nats a window is shortened to that; None: it is not.
    """

    learning_rate: float | None
    warmup_steps: int
    lora_rank: int
    lora_alpha: int
    kl_penalty: float
    negative_scale: float
    max_sequence_tokens: int
    micro_batch_tokens: int
    passes: int = 1
    windows_per_update: int = 0
    ratio_cap: float = 5.0
    unrecorded_ratio: Literal["one", "base", "parent"] = "one"
    kl_reference: Literal["base", "parent"] = "base"
    group_deviation: bool = True
    max_policy_change: float | None = None


class OpenJob(msgspec.Struct, frozen=True):
    """A job at W&B that an earlier attempt left open.

    `remote_step` is the step of W&B's model before the job. Without `job_id` it is unknown whether
    the job exists. `wanted`: the job trains exactly this step's windows and traces, so its result
    may become the step.
    """

    remote_step: int
    job_id: str | None
    age_seconds: float
    wanted: bool


class Remote(msgspec.Struct, frozen=True):
    """Where the serverless trainer trains; its key is in its environment.

    A job whose POST got no answer counts as lost after `lost_seconds`.
    """

    url: str
    entity: str | None
    project: str
    usd_per_job: float | None
    lost_seconds: float
    job: OpenJob | None


class StepRequest(msgspec.Struct, frozen=True, tag="step"):
    """One step of one model, asked for by the holder of the model's lease.

    `samples_path` is a file of JSON lines, one `Sample` each, a window's lines together: a window
    is a group (ART's `TrajectoryGroup`). `parent` is the checkpoint folder of the head, or None for
    the first step. The trainer writes the new checkpoint's files into `output_dir` (made by the
    trainer, inside `scratch_dir`, which belongs to this attempt alone). `remote` is for the
    serverless trainer.

    With `base_revision`, only that revision of the base model will do; without it, any will. It is
    the commit hash of a hub id, or the fingerprint of a folder: what `StepResult.base_revision`
    says.
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
    base_revision: str | None = None


class JobNote(msgspec.Struct, frozen=True):
    """What became of a job at W&B.

    `intent`: it is about to be posted, and W&B's model is at `remote_step`. `posted`: it has this
    `job_id`. The other states end it, and `why` gives the reason: W&B `refused` it, it `failed`, it
    counts as `lost`, or it is `abandoned` since its result is not wanted any more.
    """

    state: Literal["intent", "posted", "refused", "failed", "lost", "abandoned"]
    remote_step: int | None = None
    job_id: str | None = None
    why: str | None = None


class Progress(msgspec.Struct, frozen=True, tag="progress"):
    """A sign of life of a trainer.

    `phase` is one of load, tokenize, post, queue, train, save, evaluate, generate; `done` and
    `total` count its units. `share` is that of the whole request, from 0 to 1. It goes back only
    where memory ran out and a pass begins again. `seconds_left` are those of the phase, None until
    its pace is known. A trainer of an older release tells neither.

    `job` must be durable before the trainer goes on.
    """

    phase: str
    done: int = 0
    total: int = 0
    loss: float | None = None
    tokens_per_second: float | None = None
    job: JobNote | None = None
    share: float | None = None
    seconds_left: float | None = None


class WindowShare(msgspec.Struct, frozen=True):
    """A window's share of a step: `sequences` LLM calls with `trainable_tokens` in all.

    `dropped` calls were longer than `max_sequence_tokens` or than the model takes, or `refused` by
    its chat template or tokenizer. The window's other calls belong to trajectories of average
    reward, which teach nothing.
    """

    sequences: int
    dropped: int
    trainable_tokens: int
    refused: int = 0


class StepResult(msgspec.Struct, frozen=True, tag="step_result"):
    """What a step did. `metrics` holds finite numbers only.

    `loss` is the mean over the step's trainable tokens (and over its updates); None if W&B did not
    report it. `optimizer_steps` are the updates done.
    `trainable_tokens` counts the response tokens (with their end token) that took part in the loss;
    `context_tokens` counts all unpadded tokens of the sequences; `dropped_sequences` counts calls
    that are empty or longer than `max_sequence_tokens`. `seconds_by_phase` has load, tokenize,
    forward_backward, optimizer and checkpoint, if the trainer has the phase. `windows` has the
    shares by window id. `mfu` is the share of the device's matrix rate (0 to 1);
    `peak_memory_bytes` is the most memory held, on the GPU or, without one, in the process; both
    are None if unknown. `cost_usd` is set by a trainer that knows its price. `inference_name` is
    the name of the new version at W&B's endpoint. `base_revision` is that of the base model in
    memory, or None if the trainer has none there. `packages` has the versions of the packages that
    a step depends on, by name, as far as they are installed.
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
    base_revision: str | None = None
    packages: dict[str, str] = {}


class Trainer(Protocol):
    """Does one thing at a time, for any number of lineages in turn.

    The base model stays in memory from one request to the next, as long as it is the same. Nothing
    else does: what a request gives depends on no other that came before it.
    """

    def step(self, request: StepRequest, on_beat: Callable[[Progress | None], None]) -> StepResult:
        """Run one step; the caller holds the model's lease meanwhile.

        `on_beat` is called with each sign of life, and with None at least every heartbeat while
        there is none. An error that it raises ends the step and is passed on.

        Raises:
            TrainerDied: The process ended or stalled; the same step may be tried again.
            Final: The step can never work like this (nothing in it can be trained, or one sequence
                needs more memory than the GPU has); the message says which setting to change.
            UserError: This machine cannot train at all (a package or the base model is missing, or
                the base model is of another revision).
        """
        ...

    def evaluate(
        self, request: EvaluateRequest, on_beat: Callable[[Progress | None], None]
    ) -> EvaluateResult:
        """Return how likely a model finds recorded answers; `on_beat` and errors as for `step`.

        Raises:
            TrainerDied, Final: As for a step.
            UserError: As for a step; or this trainer has no model to ask.
        """
        ...

    def generate(
        self, request: GenerateRequest, on_beat: Callable[[Progress | None], None]
    ) -> GenerateResult:
        """Return a model's answers to prompts; `on_beat` and errors as for `step`.

        Raises:
            TrainerDied, Final: As for a step.
            UserError: As for a step; or this trainer has no model to ask.
        """
        ...

    def close(self) -> None:
        """End the process behind this trainer, if any, and free its GPU."""
        ...


def compute_seconds(by_phase: Mapping[str, float]) -> float:
    """Return the seconds of the passes and the optimizer, without loading, reading and saving."""
    return sum(by_phase.get(name, 0.0) for name in ("forward_backward", "optimizer"))
