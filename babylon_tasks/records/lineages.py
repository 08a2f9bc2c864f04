"""A lineage: one name, what it starts from, and the tree of steps under it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from babylon_tasks.errors import UserError
from babylon_tasks.settings import Settings


class LineageState(StrEnum):
    """Whether workers serve a lineage; `retired` is final."""

    ACTIVE = "active"
    PAUSED = "paused"
    RETIRED = "retired"


@dataclass(frozen=True, slots=True)
class Lineage:
    """A model under training: `name` is in every row, versions are `{name}-vX.Y.Z`.

    `base_model` is the hub id or the folder of the first step's weights, `base_revision` its commit
    or fingerprint, None before the first step. Only the `primary` lineage answers the app's
    requests and is written into the app's own tables. A fork starts from step `forked_step` of
    `forked_from`, and its own steps have higher numbers. `config` has its overrides: the text of a
    setting by its name. With `own_settings` the lineage was made by workers of that MODEL_NAME, and
    only they serve it, by their own environment. `created_at` is None if it has no row yet.
    """

    name: str
    base_model: str
    primary: bool
    base_revision: str | None = None
    state: LineageState = LineageState.ACTIVE
    own_settings: bool = False
    forked_from: str | None = None
    forked_step: int | None = None
    config: Mapping[str, str] = field(default_factory=dict)
    created_by: str | None = None
    created_at: datetime | None = None
    changed_by: str | None = None
    changed_at: datetime | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "state", LineageState(self.state))

    def require_not_retired(self) -> None:
        """Require that something may change about the lineage.

        Raises:
            UserError: It is retired.
        """
        if self.state == LineageState.RETIRED:
            raise UserError(
                f"{self.name} is retired, which is final: `babylon lineages fork {self.name} NEW` "
                "goes on from its head"
            )

    def require_active(self) -> None:
        """Require that windows of the lineage may be scored and trained.

        Raises:
            UserError: It is paused or retired.
        """
        self.require_not_retired()
        if self.state == LineageState.PAUSED:
            raise UserError(
                f"{self.name} is paused: `babylon lineages resume {self.name}` lets it go on"
            )

    @classmethod
    def of_deployment(cls, settings: Settings) -> Lineage:
        """Return the lineage that MODEL_NAME, BASE_MODEL and PRIMARY name."""
        return cls(
            settings.model_name,
            settings.base_model,
            settings.primary,
            base_revision=settings.base_model_revision,
            own_settings=True,
        )
