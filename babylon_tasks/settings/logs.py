"""Settings: what is logged, and how it is written."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from babylon_tasks.settings.group import Group


class Logs(Group):
    """Logging."""

    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        "INFO", description="Lowest level that is logged: `DEBUG`, `INFO`, `WARNING` or `ERROR`."
    )
    log_format: Literal["console", "json"] = Field(
        "console",
        description="`console`: lines for people. `json`: one JSON object a line, for programs.",
    )
