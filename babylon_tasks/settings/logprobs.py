"""Settings: the server that gives log-probabilities of recorded answers."""

from __future__ import annotations

from pydantic import Field, SecretStr

from babylon_tasks.settings.group import PER_LINEAGE, Group


class Logprobs(Group):
    """Log-probabilities of recorded answers.

    [training.md](training.md#off-policy-data) says what they change.
    """

    logprobs_url: str | None = Field(
        None,
        pattern=r"^https?://\S+$",
        description="Address of a vLLM server: `http://host:8000/v1`. While a window is scored, "
        "each recorded answer without log-probabilities gets them from there. The server has step "
        "N of this model under the name `{MODEL_NAME}@N`.",
        json_schema_extra=PER_LINEAGE,
    )
    logprobs_api_key: SecretStr | None = Field(
        None, description="Key of that server, if it asks for one."
    )
    logprobs_model: str | None = Field(
        None,
        min_length=1,
        description="Model to query for calls without a recorded version of this model, by the "
        "server's name for it. Set it only if one model gave all these answers; without it they "
        "get no log-probabilities.",
        json_schema_extra=PER_LINEAGE,
    )
