"""Settings: which windows, trajectories and calls may train."""

from __future__ import annotations

from typing import Self

from pydantic import Field, field_validator, model_validator

from babylon_tasks.settings.group import DAY, INT32, PER_LINEAGE, Group, listed


class Filters(Group):
    """What may train.

    `babylon windows show` counts what each of these left out. What else is left out needs no
    setting: unreadable traces, a run that was recorded twice, and LLM calls that are empty, cut off
    by their token limit, or recorded twice in one run. Of what versions of the lineage itself did,
    runs with too few or failed actions and calls that are empty or cut off are not left out: they
    train with the lowest score of their window.
    """

    min_agents_per_window: int = Field(
        2,
        ge=2,
        le=INT32,
        description="Smallest number of agents a window may have; fewer cannot be compared.",
        json_schema_extra=PER_LINEAGE,
    )
    lookback_hours: int = Field(
        72,
        ge=1,
        le=24 * 365,
        description="How many hours back windows are looked for; older ones are ignored.",
        json_schema_extra=PER_LINEAGE,
    )
    settle_seconds: int = Field(
        600,
        ge=0,
        le=DAY,
        description="Seconds to wait after a window's end, for slow agents and late outcomes.",
        json_schema_extra=PER_LINEAGE,
    )
    excluded_scenarios: str = Field(
        "benchmark-%,market-decisions-%",
        description="Scenarios that never count: `LIKE` patterns of `scenarioId`, separated by "
        "commas.",
        json_schema_extra=PER_LINEAGE,
    )
    agents: str = Field(
        "",
        description="Agents that count: `LIKE` patterns of `agentId`, separated by commas. Without "
        "it all agents count.",
        json_schema_extra=PER_LINEAGE,
    )
    max_trace_bytes: int = Field(
        33_554_432,
        ge=1024,
        le=INT32,
        description="Largest `stepsJson` in bytes. A larger one is set aside before it is parsed.",
        json_schema_extra=PER_LINEAGE,
    )
    min_actions: int = Field(
        1,
        ge=1,
        le=INT32,
        description="Smallest number of steps a trajectory may have. Upstream's original trainer "
        "wanted 5.",
        json_schema_extra=PER_LINEAGE,
    )
    max_failed_share: float = Field(
        0.5,
        ge=0,
        le=1,
        description="Largest share of failed actions (`success: false`) a trajectory may have, "
        "counted over its steps.",
        json_schema_extra=PER_LINEAGE,
    )
    max_staleness: int | None = Field(
        None,
        ge=0,
        le=INT32,
        description="Largest number of steps that an LLM call's recorded version may be behind the "
        "head. A call that names no version of this model stays.",
        json_schema_extra=PER_LINEAGE,
    )
    max_per_window: int | None = Field(
        None,
        ge=2,
        le=INT32,
        description="Largest number of trajectories a window may have, no fewer than "
        "`MIN_AGENTS_PER_WINDOW`. The rest are left out, the same ones each time; as many agents "
        "as possible stay.",
        json_schema_extra=PER_LINEAGE,
    )
    dropout: float = Field(
        0.0,
        ge=0,
        le=0.5,
        description="Share of a window's trajectories to leave out, the same ones each time.",
        json_schema_extra=PER_LINEAGE,
    )
    min_reward_spread: float = Field(
        0.01,
        ge=0,
        le=1,
        description="Smallest difference between a window's best and worst score. A window "
        "with less has no signal and is skipped.",
        json_schema_extra=PER_LINEAGE,
    )

    @field_validator("excluded_scenarios", "agents")
    @classmethod
    def _postgres_takes_the_patterns(cls, patterns: str) -> str:
        for pattern in listed(patterns):
            if (len(pattern) - len(pattern.rstrip("\\"))) % 2:
                raise ValueError("a LIKE pattern must not end with a single backslash")
        return patterns

    @model_validator(mode="after")
    def _the_largest_window_is_no_smaller_than_the_smallest(self) -> Self:
        if self.max_per_window is not None and self.max_per_window < self.min_agents_per_window:
            raise ValueError("MAX_PER_WINDOW must be at least MIN_AGENTS_PER_WINDOW")
        return self

    def excluded_scenario_patterns(self) -> list[str]:
        """Return the LIKE patterns of scenarios that never count."""
        return listed(self.excluded_scenarios)

    def agent_patterns(self) -> list[str]:
        """Return the LIKE patterns of agents that count; none: all agents count."""
        return listed(self.agents)
