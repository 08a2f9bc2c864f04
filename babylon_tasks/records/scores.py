"""A score: one number in [0, 1] for a trajectory, comparable within its window."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

# The scorers that ask a judge.
JUDGED = ("ruler", "blend")


@dataclass(frozen=True, slots=True)
class Score:
    """A row of `rl.scores`.

    `raw_score` is the scorer's (or the judge's) own number before any scaling. `judge_model` names
    the judge, and `rubric_hash` what it was told to value, if one was asked. An `exam_only`
    trajectory never trains.
    """

    trajectory_id: str
    agent_id: str
    score: float
    raw_score: float
    components: dict[str, float]
    reasoning: str
    content_hash: str
    judge_model: str | None = None
    rubric_hash: str | None = None
    exam_only: bool = False


def no_signal(rewards: Sequence[float], min_spread: float) -> str | None:
    """Return why a group teaches nothing, or None if it can be trained on.

    Dividing by a tiny standard deviation turns rounding noise into full-strength advantages,
    so the spread (largest minus smallest reward) must reach a tolerance first.
    """
    if len(rewards) < 2:
        return f"{len(rewards)} trainable trajectories, a comparison needs 2"
    spread = max(rewards) - min(rewards)
    if spread <= 0 or spread < min_spread:
        return f"no signal: rewards spread {spread:.4f}, below MIN_REWARD_SPREAD={min_spread:g}"
    return None
