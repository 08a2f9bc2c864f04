"""Settings: which versions may serve."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from babylon_tasks.settings.group import INT32, PER_LINEAGE, Group


class Gate(Group):
    """The gate.

    [gate.md](gate.md) says what is measured, and what decides.
    """

    publish: Literal["gate", "always", "manual"] = Field(
        "gate",
        description="`gate`: a step serves after it passed its exam, and where the endpoint "
        "answers agents, after an experiment with a part of them. `always`: every step serves, "
        "without an exam. `manual`: steps are examined, and a person promotes them.",
        json_schema_extra=PER_LINEAGE,
    )
    exam_percent: float = Field(
        0,
        ge=0,
        le=50,
        description="Percent of the agents, always the same ones, whose runs are for exams alone "
        "and never train. Rows with `isEvaluation` are so anyway.",
        json_schema_extra=PER_LINEAGE,
    )
    rejected_windows: Literal["leave", "retry"] = Field(
        "leave",
        description="What becomes of the windows of a step that may not serve. `leave`: they do "
        "not train again. `retry`: they are due again, for the step before it.",
        json_schema_extra=PER_LINEAGE,
    )
    experiment_percent: float = Field(
        20,
        ge=0,
        le=50,
        description="Percent of the agents with which an experiment begins; it gives the new "
        "version more, up to half of them. 0: no experiments, the exam alone decides.",
        json_schema_extra=PER_LINEAGE,
    )
    experiment_windows: int = Field(
        24,
        ge=1,
        le=INT32,
        description="Windows after which an experiment ends that has not shown the new version to "
        "be better; the old one goes on serving.",
        json_schema_extra=PER_LINEAGE,
    )
    form_check: str | None = Field(
        None,
        pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$",
        description="Function that tells whether an answer is well-formed, `module:function`; it "
        "takes the answer's text and returns true or false, within milliseconds: exams and the "
        "endpoint wait for it. Without it, an answer is well-formed if an action of the app can be "
        "read from it.",
    )
