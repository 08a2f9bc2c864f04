"""A score: one number in [0, 1] for a trajectory, comparable within its window."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Score:
    """A row of `rl.scores`.

    `raw_score` is the scorer's own number before any scaling; where a judge was asked, the judge's.
    `judge_model` is who that was.
    """

    trajectory_id: str
    agent_id: str
    score: float
    raw_score: float
    components: dict[str, float]
    reasoning: str
    content_hash: str
    judge_model: str | None = None
