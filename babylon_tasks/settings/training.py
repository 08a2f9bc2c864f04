"""Settings: whether, where and how a step is trained."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from babylon_tasks.errors import UserError
from babylon_tasks.settings.group import DAY, INT32, PER_LINEAGE, Group


class Training(Group):
    """Training."""

    train_rl_local: bool = Field(
        False, description="Nothing trains unless this is `true`; listing always works."
    )
    trainer: Literal["torch", "serverless", "noop"] = Field(
        "torch",
        description="`torch` trains on this machine. `serverless` trains on W&B, and is the "
        "default if `WANDB_API_KEY` is set. `noop` only moves windows through the pipeline.",
    )
    max_step_tokens: int = Field(
        1_000_000,
        ge=1,
        le=INT32,
        description="Largest number of (estimated) tokens of a step. Windows share a step up to "
        "this many.",
        json_schema_extra=PER_LINEAGE,
    )
    max_sequence_tokens: int = Field(
        4096,
        ge=16,
        le=INT32,
        description="Largest number of tokens of an LLM call. A longer call is left out of the "
        "step and counted.",
        json_schema_extra=PER_LINEAGE,
    )
    micro_batch_tokens: int = Field(
        16_384,
        ge=16,
        le=INT32,
        description="Tokens in one forward pass, padding included; halved on out-of-memory, and at "
        "most 4,096 on a CPU.",
        json_schema_extra=PER_LINEAGE,
    )
    learning_rate: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Learning rate of AdamW, constant after the warm-up. Without it the size of "
        "`BASE_MODEL` decides: 5e-4 at a hidden size of 2,000, a little more for smaller models "
        "(with `TRAINER=serverless`: 1e-5).",
        json_schema_extra=PER_LINEAGE,
    )
    warmup_steps: int = Field(
        5,
        ge=0,
        le=INT32,
        description="Number of a new model's first updates in which the learning rate grows evenly "
        "to the full one; `0`: no warm-up.",
        json_schema_extra=PER_LINEAGE,
    )
    passes: int = Field(
        2,
        ge=1,
        le=100,
        description="How often each LLM call is trained on in its step.",
        json_schema_extra=PER_LINEAGE,
    )
    windows_per_update: int = Field(
        1,
        ge=0,
        le=INT32,
        description="Windows that share an update of the weights; a step takes its windows one "
        "after the other, in each pass. `0`: all windows of the step share one.",
        json_schema_extra=PER_LINEAGE,
    )
    lora_rank: int = Field(
        8,
        ge=1,
        le=512,
        description="Rank of the LoRA adapter.",
        json_schema_extra=PER_LINEAGE,
    )
    lora_alpha: int = Field(
        16,
        ge=1,
        le=INT32,
        description="Alpha of the LoRA adapter.",
        json_schema_extra=PER_LINEAGE,
    )
    kl_penalty: float = Field(
        0.0,
        ge=0,
        le=100,
        description="Weight of the KL penalty; `0` turns it off.",
        json_schema_extra=PER_LINEAGE,
    )
    kl_reference: Literal["base", "parent"] = Field(
        "base",
        description="What the KL penalty holds the model to: the `base` model, or the step's "
        "`parent`, the version that it starts from.",
        json_schema_extra=PER_LINEAGE,
    )
    negative_scale: float = Field(
        0.3,
        ge=0,
        le=1,
        description="Factor on negative advantages, because recorded traces are off-policy.",
        json_schema_extra=PER_LINEAGE,
    )
    ratio_cap: float = Field(
        1,
        ge=1,
        le=1000,
        description="Largest importance ratio: how often a token may count at most that the model "
        "says more often than the policy that answered.",
        json_schema_extra=PER_LINEAGE,
    )
    unrecorded_ratio: Literal["one", "base", "parent"] = Field(
        "base",
        description="Who counts as having answered where no log-probabilities were recorded: the "
        "`base` model, the step's `parent`, or `one`: a ratio of 1.",
        json_schema_extra=PER_LINEAGE,
    )
    group_deviation: bool = Field(
        True,
        description="Whether advantages are divided by their window's standard deviation.",
        json_schema_extra=PER_LINEAGE,
    )
    max_policy_change: float | None = Field(
        0.2,
        gt=0,
        le=1000,
        description="Nats by which a step may move the log-probability of the mean answer, for "
        "each of its windows. A step that went further is shortened to that, so that the luck of "
        "one window does not undo what others taught. `1000`: in effect no limit.",
        json_schema_extra=PER_LINEAGE,
    )
    gpu_usd_per_hour: float | None = Field(
        None,
        ge=0,
        le=1_000_000,
        description="Dollars for one hour of one GPU. With it `rl.steps.cost_usd` has the cost of "
        "each step: its `gpu_seconds` at this price.",
    )
    trainer_stall_seconds: float = Field(
        900, gt=0, le=DAY, description="Seconds without a sign of life; then the trainer is killed."
    )
    trainer_idle_seconds: float = Field(
        600,
        gt=0,
        le=DAY,
        description="Seconds without work; then the trainer ends and frees its GPU.",
    )

    def require_training_allowed(self) -> None:
        """Refuse to train unless the deployment says so.

        Raises:
            UserError: TRAIN_RL_LOCAL is not `true`.
        """
        if not self.train_rl_local:
            raise UserError("training is off: set TRAIN_RL_LOCAL=true to allow it")
