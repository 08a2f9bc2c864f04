"""Settings: the model that is trained."""

from __future__ import annotations

from pydantic import Field

from babylon_tasks.settings.group import Group

LINEAGE_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"


class Lineage(Group):
    """The model."""

    model_name: str = Field(
        "babylon-agent",
        pattern=LINEAGE_NAME,
        description="Name of the lineage: 1 to 64 letters, digits, dots, dashes and underscores. "
        "Its versions are `{MODEL_NAME}-vX.Y.Z`.",
    )
    primary: bool = Field(
        True,
        description="`true`: the app knows this model. `false`: a model that is trained beside it; "
        "it answers no request, and writes nothing into `trained_models`, `training_batches` and "
        "`trajectories`.",
    )
    base_model: str = Field(
        "Qwen/Qwen2.5-0.5B-Instruct",
        min_length=1,
        description="Model to start from: a Hugging Face hub id or a folder.",
    )
    base_model_revision: str | None = Field(
        None,
        pattern=r"^[0-9a-f]{40}$",
        description="Commit of the hub's repository to start from, 40 hexadecimal digits. Without "
        "it the first step pins the one it finds.",
    )
