"""Settings: which windows, trajectories and calls may train."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from babylon_tasks.settings.group import DAY, INT32, Group


class Filters(Group):
    """What may train.

    `babylon windows show` counts what each of these left out. What else is left out needs no
    setting: unreadable traces, a run that was recorded twice, and LLM calls that are empty, cut off
    by their token limit, or recorded twice in one run.
    """

    min_agents_per_window: int = Field(
        2,
        ge=2,
        le=INT32,
        description="Smallest number of agents a window may have; fewer cannot be compared.",
    )
    lookback_hours: int = Field(
        72,
        ge=1,
        le=24 * 365,
        description="How many hours back windows are looked for; older ones are ignored.",
    )
    settle_seconds: int = Field(
        600,
        ge=0,
        le=DAY,
        description="Seconds to wait after a window's end, for slow agents and late outcomes.",
    )
    excluded_scenarios: str = Field(
        "benchmark-%,market-decisions-%",
        description="Scenarios that never count: `LIKE` patterns of `scenarioId`, separated by "
        "commas.",
    )
    max_trace_bytes: int = Field(
        33_554_432,
        ge=1024,
        le=INT32,
        description="Largest `stepsJson` in bytes. A larger one is set aside before it is parsed.",
    )
    min_actions: int = Field(
        1,
        ge=1,
        le=INT32,
        description="Smallest number of steps a trajectory may have. Upstream's original trainer "
        "wanted 5.",
    )
    max_failed_share: float = Field(
        0.5,
        ge=0,
        le=1,
        description="Largest share of failed actions (`success: false`) a trajectory may have, "
        "counted over its steps.",
    )
    max_staleness: int | None = Field(
        None,
        ge=0,
        le=INT32,
        description="Largest number of steps that an LLM call's recorded version may be behind the "
        "head. A call that names no version of this model stays.",
    )
    max_per_window: int | None = Field(
        None,
        ge=2,
        le=INT32,
        description="Largest number of trajectories a window may have, no fewer than "
        "`MIN_AGENTS_PER_WINDOW`. The rest are left out, the same ones each time; as many agents "
        "as possible stay.",
    )
    dropout: float = Field(
        0.0,
        ge=0,
        le=0.5,
        description="Share of a window's trajectories to leave out, the same ones each time.",
    )
    min_reward_spread: float = Field(
        0.01,
        ge=0,
        le=1,
        description="Smallest difference between a window's best and worst score. A window "
        "with less has no signal and is skipped.",
    )

    @model_validator(mode="after")
    def _the_largest_window_is_no_smaller_than_the_smallest(self) -> Self:
        if self.max_per_window is not None and self.max_per_window < self.min_agents_per_window:
            raise ValueError("MAX_PER_WINDOW must be at least MIN_AGENTS_PER_WINDOW")
        return self

    def excluded_scenario_patterns(self) -> list[str]:
        """Return the LIKE patterns of scenarios that never count."""
        return [p.strip() for p in self.excluded_scenarios.split(",") if p.strip()]
