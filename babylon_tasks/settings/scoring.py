"""Settings: how a window is scored."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from babylon_tasks.settings.group import PER_LINEAGE, Group


class Scoring(Group):
    """Scoring.

    [scoring.md](scoring.md) says what each scorer does, and shows them on the same window.
    """

    scoring: Literal["heuristic", "correctness", "ruler", "blend"] = Field(
        "heuristic",
        description="How a window is scored. `heuristic`: upstream's formula. `correctness`: what "
        "the traces hold, against market outcomes. `ruler`: a judge. `blend`: the heuristic and a "
        "judge.",
        json_schema_extra=PER_LINEAGE,
    )
    ruler_weight: float = Field(
        0.5,
        ge=0,
        le=1,
        description="Weight of RULER's score in `blend`; the heuristic has the rest.",
        json_schema_extra=PER_LINEAGE,
    )
