"""A lineage: one name, and the steps that follow each other under it."""

from __future__ import annotations

from dataclasses import dataclass

from babylon_tasks.settings import Settings


@dataclass(frozen=True, slots=True)
class Lineage:
    """A model under training: `name` is in every row, versions are `{name}-vX.Y.Z`.

    `base_model` is the hub id or the folder of the first step's weights. Only the `primary` lineage
    answers the app's requests and is written into the app's own tables.
    """

    name: str
    base_model: str
    primary: bool

    @classmethod
    def of_deployment(cls, settings: Settings) -> Lineage:
        """Return the lineage that MODEL_NAME, BASE_MODEL and PRIMARY name."""
        return cls(settings.model_name, settings.base_model, settings.primary)
