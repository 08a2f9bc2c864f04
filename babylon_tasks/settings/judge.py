"""Settings: the judge, which `SCORING=ruler` and `blend` ask."""

from __future__ import annotations

from typing import Literal, Self
from urllib.parse import urlsplit, urlunsplit

from pydantic import Field, SecretStr, field_validator, model_validator

from babylon_tasks.settings.group import INT32, PER_LINEAGE, Group, unquoted


def _base_url(url: str) -> str:
    """Return the address below which `/chat/completions` is.

    Raises:
        ValueError: It is none, or holds what cannot be sent; the message does not show it.
    """
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        host = None
    if not host or parts.scheme not in ("http", "https") or not url.isprintable() or " " in url:
        raise ValueError("write an address such as https://host/v1, or http://host:8000/v1")
    path = parts.path.rstrip("/").removesuffix("/chat/completions").rstrip("/")
    return urlunsplit((parts.scheme, parts.netloc, path, parts.query, ""))


class Judge(Group):
    """The judge.

    It is asked only with `SCORING=ruler` or `SCORING=blend`.
    """

    judge_model: str = Field(
        "openai/gpt-4o-mini",
        min_length=1,
        description="The judge, as litellm names it: `provider/model`.",
        json_schema_extra=PER_LINEAGE,
    )
    judge_base_url: str | None = Field(
        None,
        repr=False,
        description="Address of an OpenAI-compatible judge: `https://host/v1`, with "
        "`user:password@` before the host or `?api-version=...` at its end where a proxy or Azure "
        "wants that. Without it the provider's own is used.",
        json_schema_extra=PER_LINEAGE,
    )
    judge_api_key: SecretStr | None = Field(
        None,
        description="The judge's key. Without it litellm takes the provider's own variable, such "
        "as `OPENAI_API_KEY`.",
    )
    judge_rubric: str | None = Field(
        None,
        min_length=1,
        description="File with a rubric of your own, UTF-8 text. Its hash is kept with each "
        "judgment.",
        json_schema_extra=PER_LINEAGE,
    )
    judge_context_tokens: int = Field(
        32_000,
        ge=4_000,
        le=INT32,
        description="Tokens that the judge takes, prompt and answer together. Larger windows are "
        "judged in overlapping groups.",
        json_schema_extra=PER_LINEAGE,
    )
    judge_thinking_tokens: int = Field(
        0,
        ge=0,
        le=INT32,
        description="Tokens that a reasoning judge may spend before it answers. They count towards "
        "its context and its price.",
        json_schema_extra=PER_LINEAGE,
    )
    judge_concurrency: int = Field(
        16,
        ge=1,
        le=1000,
        description="Largest number of questions to the judge at the same time, of all workers of "
        "a model together.",
        json_schema_extra=PER_LINEAGE,
    )
    judge_timeout_seconds: float = Field(
        60,
        gt=0,
        le=600,
        description="Seconds to wait for an answer. Then it is given up, and asked for again.",
        json_schema_extra=PER_LINEAGE,
    )
    judge_fallback: Literal["wait", "heuristic"] = Field(
        "wait",
        description="What happens to a window while the judge cannot be asked. `wait`: it waits. "
        "`heuristic`: the heuristic scores it.",
        json_schema_extra=PER_LINEAGE,
    )
    judge_daily_usd: float | None = Field(
        None,
        ge=0,
        le=1_000_000_000,
        description="Dollars that the judge may cost in a day (since 00:00 UTC), of all models on "
        "this database. A question that could cost more is not asked.",
    )
    judge_input_usd_per_million: float | None = Field(
        None,
        ge=0,
        le=1_000_000,
        description="Dollars for a million of the judge's input tokens, if litellm's list has no "
        "price (a judge of your own: `0`). It goes together with `JUDGE_OUTPUT_USD_PER_MILLION`.",
        json_schema_extra=PER_LINEAGE,
    )
    judge_output_usd_per_million: float | None = Field(
        None,
        ge=0,
        le=1_000_000,
        description="Dollars for a million of the judge's output tokens. It goes together with "
        "`JUDGE_INPUT_USD_PER_MILLION`.",
        json_schema_extra=PER_LINEAGE,
    )

    @field_validator("judge_model", mode="before")
    @classmethod
    def _plain_name(cls, given: object) -> object:
        return unquoted(given) if isinstance(given, str) else given

    @field_validator("judge_base_url")
    @classmethod
    def _plain_address(cls, given: str | None) -> str | None:
        return None if given is None else _base_url(unquoted(given))

    @field_validator("judge_api_key", mode="before")
    @classmethod
    def _key_that_a_header_can_carry(cls, given: object) -> object:
        key = given.get_secret_value() if isinstance(given, SecretStr) else given
        if not isinstance(key, str):
            return key
        key = unquoted(key)
        if not (key.isascii() and key.isprintable()) or " " in key:
            raise ValueError("it has characters that no key has, such as a space or a line break")
        return SecretStr(key) if key else None

    @model_validator(mode="after")
    def _both_prices_or_neither(self) -> Self:
        prices = (self.judge_input_usd_per_million, self.judge_output_usd_per_million)
        if (prices[0] is None) != (prices[1] is None):
            raise ValueError(
                "JUDGE_INPUT_USD_PER_MILLION and JUDGE_OUTPUT_USD_PER_MILLION go together: "
                "set both, or neither"
            )
        return self
