"""All settings, read once from the environment.

Each group has a file; `Settings` inherits them all. A variable's name is its field's in capitals.
`python -m babylon_tasks.settings` writes `.env.example` and `docs/settings.md` from the fields.
Importing this package needs neither torch nor Celery.
"""

from __future__ import annotations

import functools
from typing import Any

from pydantic import ValidationError, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource

from babylon_tasks.settings import running
from babylon_tasks.settings.checkpoints import Checkpoints
from babylon_tasks.settings.filters import Filters
from babylon_tasks.settings.gate import Gate
from babylon_tasks.settings.group import DAY, INT32, load, one_line
from babylon_tasks.settings.judge import Judge
from babylon_tasks.settings.lineage import Lineage
from babylon_tasks.settings.logprobs import Logprobs
from babylon_tasks.settings.logs import Logs
from babylon_tasks.settings.scoring import Scoring
from babylon_tasks.settings.servers import Servers
from babylon_tasks.settings.serving import Serving
from babylon_tasks.settings.training import Training
from babylon_tasks.settings.wandb import Wandb
from babylon_tasks.settings.worker import QUEUES, Worker

__all__ = ["DAY", "INT32", "QUEUES", "Settings", "changed", "load_settings"]


class Settings(
    Servers,
    Lineage,
    Checkpoints,
    Filters,
    Scoring,
    Judge,
    Logprobs,
    Training,
    Gate,
    Wandb,
    Worker,
    Serving,
    Logs,
):
    """All groups, in the order in which the documentation shows them."""

    @model_validator(mode="before")
    @classmethod
    def _a_wandb_key_chooses_the_trainer(cls, given: dict[str, object]) -> dict[str, object]:
        if given.get("wandb_api_key") and not given.get("trainer"):
            return {**given, "trainer": "serverless"}
        return given


class _Given(Settings):
    """Settings with the given values alone: no look into the environment, which takes longer."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings,)


@functools.cache
def load_settings() -> Settings:
    """Read the process's settings once; later calls return the same object.

    Where neither server is set and `babylon up` runs in this folder, they are its servers.

    Raises:
        UserError: A value is out of range; the message names the variable, never its value.
    """
    settings = load(Settings)
    if settings.database_url or settings.redis_url:
        return settings
    found = {name.lower(): value for name, value in running.read().items()}
    return changed(settings, **found) if found else settings


def changed(settings: Settings, **changes: object) -> Settings:
    """Return a copy of the settings with these changes; nothing is read again.

    Raises:
        UserError: A value is out of range.
    """
    values: dict[str, Any] = {**settings.model_dump(), **changes, "_env_file": None}
    try:
        return settings.model_copy(update=dict(_Given(**values)))
    except ValidationError as error:
        raise one_line(error) from None
