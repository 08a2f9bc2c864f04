"""The arguments of one run of `python -m babylon_tasks`; they are no settings of a deployment."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from babylon_tasks.settings.group import Group


class RunArguments(Group):
    """Arguments of `python -m babylon_tasks`.

    They belong to one run: `MODE=list python -m babylon_tasks`.
    """

    mode: Literal["list", "single", "continuous"] = Field(
        "single",
        description="`list` prints the windows that are ready. `single` trains one window and asks "
        "the new version a question. `continuous` trains whatever becomes due until it is stopped.",
    )
    window_id: str | None = Field(
        None,
        description="`MODE=single`: the window to train, such as `2025-01-15T10:00`; without it "
        "the newest that is ready.",
    )
    batch_id: str | None = Field(
        None, description="`MODE=single`: the id of the `training_batches` row to answer."
    )
    model_version: str | None = Field(
        None,
        description="`MODE=single`: the version asked for, `vX.Y.Z`; given only if it is free.",
    )
