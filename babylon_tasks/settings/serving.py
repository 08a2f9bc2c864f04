"""Settings: the model server."""

from __future__ import annotations

from pydantic import Field, SecretStr

from babylon_tasks.settings.group import Group


class Serving(Group):
    """Serving."""

    serve_api_key: SecretStr | None = Field(
        None,
        min_length=16,
        description="Key that the model server asks for, 16 characters or more (`openssl rand -hex "
        "24`). Clients send it as OpenAI's do: `Authorization: Bearer`; `/healthz` is open. "
        "Without it the server listens on loopback only. Docker Compose requires it.",
    )
