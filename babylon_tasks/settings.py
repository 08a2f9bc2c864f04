"""Every setting of every role, read once from the environment.

`.env` and, over it, `.env.local` are read from the working folder; the environment wins over both.
Importing this module needs neither torch nor Celery.
"""

from __future__ import annotations

import functools
from typing import Literal
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

from pydantic import Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from babylon_tasks.errors import UserError

# Parameters that Prisma puts into a database URL and libpq refuses.
_PRISMA_PARAMETERS = frozenset(
    {
        "schema",
        "pgbouncer",
        "connection_limit",
        "pool_timeout",
        "socket_timeout",
        "statement_cache_size",
        "max_connection_lifetime",
        "max_idle_connection_lifetime",
        "single_use_connections",
        "sslaccept",
        "sslidentity",
    }
)


QUEUES = ("cpu", "gpu")
DAY = 86_400
INT32 = 2**31 - 1


class Settings(BaseSettings):
    """Frozen settings; each field's environment variable is its name in capitals."""

    model_config = SettingsConfigDict(
        env_file=(".env", ".env.local"), extra="ignore", frozen=True, env_ignore_empty=True
    )

    # --- servers ---
    database_url: SecretStr | None = Field(None, description="Babylon's Postgres.")
    redis_url: SecretStr | None = Field(None, description="Redis, the Celery broker.")

    # --- the model ---
    model_name: str = Field(
        "babylon-agent",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$",
        description="Name of the lineage; versions are `{MODEL_NAME}-vX.Y.Z`.",
    )
    primary: bool = Field(
        True,
        description="Whether the app knows this model: `false` for one that is trained beside it, "
        "which answers no request and writes nothing into the app's tables.",
    )
    base_model: str = Field(
        "Qwen/Qwen2.5-0.5B-Instruct", min_length=1, description="Hub id or folder to start from."
    )
    checkpoint_store: str = Field(
        ".babylon/checkpoints",
        pattern=r"^(s3://.+|[^:]+)$",
        description="Folder that all GPU nodes share, or an S3 URL; one folder a step below it.",
    )
    keep_checkpoints: int = Field(
        72, ge=1, le=INT32, description="The files of so many steps, the newest, stay."
    )
    keep_every: int | None = Field(
        None, ge=1, le=INT32, description="Those of every step that is a multiple of it stay too."
    )

    # --- what may train ---
    train_rl_local: bool = Field(False, description="Nothing trains unless this is `true`.")
    trainer: Literal["torch", "serverless", "noop"] = Field(
        "torch",
        description="`torch` trains on this machine, `serverless` on W&B (the default with "
        "WANDB_API_KEY); `noop` moves windows only.",
    )
    min_agents_per_window: int = Field(
        2, ge=2, le=INT32, description="Fewer agents cannot be compared."
    )
    lookback_hours: int = Field(72, ge=1, le=24 * 365, description="How far back windows count.")
    settle_seconds: int = Field(
        600, ge=0, le=DAY, description="Wait after a window's end for slow agents and outcomes."
    )
    excluded_scenarios: str = Field(
        "benchmark-%,market-decisions-%",
        description="LIKE patterns of `scenarioId`, comma-separated, that never count.",
    )
    max_trace_bytes: int = Field(
        33_554_432,
        ge=1024,
        le=INT32,
        description="A larger `stepsJson` is set aside before it is parsed.",
    )
    min_actions: int = Field(
        1, ge=1, le=INT32, description="A trajectory of fewer steps is left out."
    )
    max_failed_share: float = Field(
        0.5, ge=0, le=1, description="A trajectory of whose actions more failed is left out."
    )
    max_staleness: int | None = Field(
        None,
        ge=0,
        le=INT32,
        description="An LLM call is left out whose recorded version is more steps behind the head.",
    )
    max_per_window: int | None = Field(
        None, ge=2, le=INT32, description="A window's trajectories beyond so many are left out."
    )
    dropout: float = Field(
        0.0, ge=0, le=0.5, description="Share of a window's trajectories that is left out."
    )
    min_reward_spread: float = Field(
        0.01, ge=0, le=1, description="A window whose scores differ less has no signal."
    )

    # --- scoring ---
    scoring: Literal["heuristic", "correctness", "ruler", "blend"] = Field(
        "heuristic", description="How a window is scored; `ruler` and `blend` ask a judge."
    )
    ruler_weight: float = Field(
        0.5, ge=0, le=1, description="Of RULER's score in `blend`; the heuristic has the rest."
    )
    judge_model: str = Field(
        "openai/gpt-4o-mini",
        min_length=1,
        description="The judge, as litellm names it: `provider/model`.",
    )
    judge_base_url: str | None = Field(
        None,
        pattern=r"^https?://\S+$",
        description="Of an OpenAI-compatible judge; without it the provider's own.",
    )
    judge_api_key: SecretStr | None = Field(
        None, description="The judge's key; without it litellm takes the provider's variable."
    )
    judge_rubric: str | None = Field(
        None, min_length=1, description="File with a rubric of your own."
    )
    judge_context_tokens: int = Field(
        32_000, ge=4_000, le=INT32, description="Tokens of prompt and answer that the judge takes."
    )
    judge_thinking_tokens: int = Field(
        0, ge=0, le=INT32, description="Tokens that a reasoning judge may spend before it answers."
    )
    judge_concurrency: int = Field(
        16, ge=1, le=1000, description="Questions to the judge at once, of all workers together."
    )
    judge_timeout_seconds: float = Field(
        60, gt=0, le=600, description="An answer that takes longer is given up."
    )
    judge_fallback: Literal["wait", "heuristic"] = Field(
        "wait", description="What a window does while the judge cannot be asked."
    )
    judge_daily_usd: float | None = Field(
        None, ge=0, le=1e9, description="No question that could cost more than this a day (UTC)."
    )
    judge_input_usd_per_million: float | None = Field(
        None, ge=0, le=1e6, description="Price of the judge's input tokens, if litellm knows none."
    )
    judge_output_usd_per_million: float | None = Field(
        None, ge=0, le=1e6, description="Price of the judge's output tokens, if litellm knows none."
    )

    # --- log-probabilities of recorded answers ---
    logprobs_url: str | None = Field(
        None,
        pattern=r"^https?://\S+$",
        description="Of a vLLM server that still holds the versions that answered.",
    )
    logprobs_api_key: SecretStr | None = Field(None, description="Its key, if it asks for one.")
    logprobs_model: str | None = Field(
        None,
        min_length=1,
        description="Whom it is asked about where a call names no version of this model.",
    )

    # --- a step ---
    max_step_tokens: int = Field(
        1_000_000,
        ge=1,
        le=INT32,
        description="Windows share a step up to this many (estimated) tokens.",
    )
    max_sequence_tokens: int = Field(
        4096, ge=16, le=INT32, description="A longer LLM call is left out of the step and counted."
    )
    micro_batch_tokens: int = Field(
        16_384,
        ge=16,
        le=INT32,
        description="Padded tokens in one forward pass; halved on out-of-memory; CPU: <= 4,096.",
    )
    learning_rate: float = Field(
        1e-5, gt=0, lt=1, description="AdamW's, constant after the warm-up."
    )
    warmup_steps: int = Field(
        5, ge=0, le=INT32, description="A model's first steps, in which the learning rate grows."
    )
    lora_rank: int = Field(8, ge=1, le=512, description="LoRA rank.")
    lora_alpha: int = Field(16, ge=1, le=INT32, description="LoRA alpha.")
    kl_penalty: float = Field(
        0.1, ge=0, le=100, description="Weight of the KL penalty to the base model (0: off)."
    )
    negative_scale: float = Field(
        0.3, ge=0, le=1, description="Factor on negative advantages (traces are off-policy)."
    )
    gpu_usd_per_hour: float | None = Field(
        None, ge=0, le=1e6, description="Price of a GPU; what a step cost is then in its row."
    )
    trainer_stall_seconds: float = Field(
        900, gt=0, le=DAY, description="Without a sign of life for so long the trainer is killed."
    )
    trainer_idle_seconds: float = Field(
        600, gt=0, le=DAY, description="A trainer without work ends after this and frees its GPU."
    )

    # --- leases, retries, the clockwork ---
    lease_seconds: float = Field(
        30, ge=1, le=DAY, description="A dead worker's work is free after this."
    )
    heartbeat_seconds: float = Field(10, gt=0, le=DAY, description="How often a lease is renewed.")
    sweep_seconds: float = Field(
        10, gt=0, le=DAY, description="How often lost messages are sent again."
    )
    produce_seconds: float = Field(
        60, gt=0, le=DAY, description="How often new windows are looked for."
    )
    max_attempts: int = Field(3, ge=1, le=INT32, description="Then a window ends `failed`.")
    retry_seconds: float = Field(
        30,
        ge=0,
        le=DAY,
        description="Wait after a failure, doubled with each; a step's first repeat comes at once.",
    )

    # --- serving ---
    serve_api_key: SecretStr | None = Field(
        None,
        min_length=16,
        description="Key that the model server asks for; without it, it listens on loopback only.",
    )

    # --- upstream's entry point ---
    mode: Literal["list", "single", "continuous"] = Field(
        "single", description="What `python -m babylon_tasks` does."
    )
    window_id: str | None = Field(None, description="MODE=single: the window to train.")
    batch_id: str | None = Field(None, description="MODE=single: the request to answer.")
    model_version: str | None = Field(None, description="MODE=single: the version asked for.")

    # --- logging ---
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        "INFO", description="How much is logged."
    )

    # --- Weights & Biases ---
    wandb_api_key: SecretStr | None = Field(
        None,
        min_length=1,
        description="With it steps are logged to W&B, and without TRAINER W&B trains.",
    )
    wandb_project: str = Field(
        "babylon-rl", min_length=1, description="W&B project of the run and of the model."
    )
    wandb_entity: str | None = Field(
        None, min_length=1, description="W&B team or user; without it the key's own."
    )
    wandb_mode: Literal["online", "offline", "disabled"] | None = Field(
        None, description="How steps are logged; without it `online` with a key, else `offline`."
    )
    serverless_url: str = Field(
        "https://api.training.wandb.ai/v1",
        pattern=r"^https?://\S+$",
        description="W&B's training API, which also answers for what it has trained.",
    )
    serverless_usd_per_job: float | None = Field(
        None, ge=0, le=1e6, description="Price of a training job; it goes into `rl.steps.cost_usd`."
    )
    serverless_lost_seconds: float = Field(
        3600,
        gt=0,
        le=7 * DAY,
        description="A job posted without an answer is taken for lost after this; longer than a "
        "job takes, waiting included.",
    )

    @model_validator(mode="before")
    @classmethod
    def _a_wandb_key_chooses_the_trainer(cls, given: dict[str, object]) -> dict[str, object]:
        if given.get("wandb_api_key") and not given.get("trainer"):
            return {**given, "trainer": "serverless"}
        return given

    @model_validator(mode="after")
    def _lease_outlives_its_heartbeat(self) -> Settings:
        if self.heartbeat_seconds * 2 > self.lease_seconds:
            raise ValueError("HEARTBEAT_SECONDS must be at most half of LEASE_SECONDS")
        return self

    @model_validator(mode="after")
    def _settings_fit_each_other(self) -> Settings:
        if self.max_per_window is not None and self.max_per_window < self.min_agents_per_window:
            raise ValueError("MAX_PER_WINDOW must be at least MIN_AGENTS_PER_WINDOW")
        prices = (self.judge_input_usd_per_million, self.judge_output_usd_per_million)
        if (prices[0] is None) != (prices[1] is None):
            raise ValueError(
                "JUDGE_INPUT_USD_PER_MILLION and JUDGE_OUTPUT_USD_PER_MILLION go together: "
                "set both, or neither"
            )
        return self

    def postgres(self) -> str:
        """The database URL without the parameters only Prisma knows.

        Raises:
            UserError: DATABASE_URL is missing or no URL.
        """
        if self.database_url is None:
            raise UserError(
                "DATABASE_URL is not set: export DATABASE_URL=postgresql://user:password@host/db "
                "(or run `babylon demo`, which brings its own database)"
            )
        try:
            parts = urlsplit(self.database_url.get_secret_value().strip())
            _ = parts.port
        except ValueError:
            raise UserError(
                "DATABASE_URL is not a Postgres URL; it must look like "
                "postgresql://user:password@host:5432/database"
            ) from None
        query = [p for p in parse_qsl(parts.query) if p[0] not in _PRISMA_PARAMETERS]
        # Not urlunsplit: it drops the slashes of a URL without a host (a unix socket).
        rebuilt = f"{parts.scheme}://{parts.netloc}{parts.path}"
        return f"{rebuilt}?{urlencode(query, quote_via=quote)}" if query else rebuilt

    def redis(self) -> str:
        """The broker's URL.

        Raises:
            UserError: REDIS_URL is missing or no Redis URL.
        """
        if self.redis_url is None:
            raise UserError("REDIS_URL is not set: export REDIS_URL=redis://:password@host:6379/0")
        url = self.redis_url.get_secret_value().strip()
        try:
            parts = urlsplit(url)
            usable = parts.scheme in ("redis", "rediss") and bool(parts.hostname)
            _ = parts.port
        except ValueError:
            usable = False
        if not usable:
            raise UserError(
                "REDIS_URL is not a Redis URL; it must look like redis://:password@host:6379/0"
            )
        return url

    def excluded_scenario_patterns(self) -> list[str]:
        """LIKE patterns of scenarios that never count."""
        return [p.strip() for p in self.excluded_scenarios.split(",") if p.strip()]

    def require_training_allowed(self) -> None:
        """Refuse to train unless the deployment says so.

        Raises:
            UserError: TRAIN_RL_LOCAL is not `true`.
        """
        if not self.train_rl_local:
            raise UserError("training is off: set TRAIN_RL_LOCAL=true to allow it")


@functools.cache
def load_settings() -> Settings:
    """The process's settings, read once.

    Raises:
        UserError: A value is out of range; the message names the variable, never its value.
    """
    try:
        return Settings()  # type: ignore[call-arg]
    except ValidationError as error:
        raise _in_one_line(error) from None
    except UnicodeDecodeError:
        raise UserError(".env or .env.local is not UTF-8 text: save it as UTF-8") from None


def changed(settings: Settings, **changes: object) -> Settings:
    """The settings, with some of them otherwise.

    Raises:
        UserError: A value is out of range.
    """
    try:
        return Settings.model_validate({**settings.model_dump(), **changes})
    except ValidationError as error:
        raise _in_one_line(error) from None


def _in_one_line(error: ValidationError) -> UserError:
    first = error.errors()[0]
    name = str(first["loc"][0]).upper() if first["loc"] else "settings"
    return UserError(f"{name}: {first['msg']}")
