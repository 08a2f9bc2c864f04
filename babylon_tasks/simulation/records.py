"""Rows of Babylon's tables, and the kinds of windows and rows that the simulation makes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, get_args

from babylon_tasks.simulation.agents import Agent

Kind = Literal["good", "no_signal", "too_few", "unfinished"]
Malformed = Literal["truncated", "null", "empty", "not_a_list", "pnl_is_text"]
Odd = Literal[
    "string_numbers", "missing_state", "many_calls", "no_calls", "unicode",
    "lone_surrogate", "nul_escape", "repeated_agent", "scenario_only", "scenario_prefix",
    "messages", "prompt", "image", "odd_step",
]  # fmt: skip
NeverCounts = Literal["not_training_data", "evaluation", "benchmark"]

MALFORMED: tuple[Malformed, ...] = get_args(Malformed)
ODD: tuple[Odd, ...] = get_args(Odd)
NEVER_COUNTS: tuple[NeverCounts, ...] = get_args(NeverCounts)


@dataclass(frozen=True, slots=True)
class TrajectoryRow:
    """A row of `trajectories`; the other columns keep their defaults."""

    id: str
    trajectory_id: str
    agent_id: str
    start_time: datetime
    end_time: datetime
    duration_ms: int
    window_id: str | None
    scenario_id: str
    episode_id: str
    steps_json: str
    reward_components_json: str
    metrics_json: str
    metadata_json: str
    total_reward: float
    episode_length: int
    final_status: str
    final_balance: float
    final_pnl: float
    trades_executed: int
    posts_created: int
    is_training_data: bool
    is_evaluation: bool
    updated_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class OutcomeRow:
    """A row of `market_outcomes`, for a stock or for a prediction market."""

    id: str
    window_id: str
    stock_ticker: str | None = None
    start_price: float | None = None
    end_price: float | None = None
    change_percent: float | None = None
    sentiment: str | None = None
    prediction_market_id: str | None = None
    question: str | None = None
    outcome: str | None = None
    final_probability: float | None = None
    created_at: datetime


@dataclass(frozen=True, slots=True)
class WindowRows:
    """All rows of one window; the keys of the three mappings are `trajectoryId`s."""

    window_id: str
    kind: Kind
    agents: tuple[Agent, ...]
    trajectories: tuple[TrajectoryRow, ...]
    outcomes: tuple[OutcomeRow, ...]
    malformed: Mapping[str, Malformed]
    odd: Mapping[str, tuple[Odd, ...]]
    never_counts: Mapping[str, NeverCounts]
