"""Settings: Weights & Biases, which shows steps and may train them."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, SecretStr

from babylon_tasks.settings.group import DAY, Group


class Wandb(Group):
    """Weights & Biases.

    [training.md](training.md#serverless-wb) says what W&B trains, and what happens at a crash.
    """

    wandb_api_key: SecretStr | None = Field(
        None,
        min_length=1,
        description="API key. With it steps are logged to W&B, and W&B trains unless `TRAINER` "
        "says otherwise.",
    )
    wandb_project: str = Field(
        "babylon-rl", min_length=1, description="Project of the run and of the model."
    )
    wandb_entity: str | None = Field(
        None,
        min_length=1,
        description="Team or user that the project belongs to; without it the key's own.",
    )
    wandb_mode: Literal["online", "offline", "disabled"] | None = Field(
        None,
        description="How steps are logged: `online`, `offline` or `disabled`. Without it `online` "
        "if there is a key, else `offline`.",
    )
    serverless_url: str = Field(
        "https://api.training.wandb.ai/v1",
        pattern=r"^https?://\S+$",
        description="Address of W&B's training API, which also serves the models that W&B trained.",
    )
    serverless_usd_per_job: float | None = Field(
        None,
        ge=0,
        le=1_000_000,
        description="Dollars for a training job; written into `rl.steps.cost_usd`.",
    )
    serverless_lost_seconds: float = Field(
        3600,
        gt=0,
        le=7 * DAY,
        description="Seconds after which a job that was posted without an answer counts as lost "
        "and is posted again. Choose more than any job takes, its waiting included; training of "
        "the model stands still meanwhile.",
    )
