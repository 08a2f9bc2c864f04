"""The protocol of all scorers, and the group that they score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from babylon_tasks.records.actions import AgentRun
from babylon_tasks.records.markets import Market
from babylon_tasks.records.scores import Score
from babylon_tasks.records.traces import Outcome
from babylon_tasks.scoring.rubric import Rubric


@dataclass(frozen=True, slots=True)
class Group:
    """A window's trajectories, scored against each other.

    `runs` (by trajectory id) and `markets` tell the future. They are filled only for scorers that
    ask for them (`sees_runs`), and only those read them. `floored` are the runs that versions of
    the lineage did badly: no scorer sees them, and each gets the lowest score of the others.
    """

    window_id: str
    outcomes: Sequence[Outcome]
    runs: Mapping[str, AgentRun]
    markets: Sequence[Market]
    floored: Sequence[Outcome] = ()

    def everything(self) -> list[Outcome]:
        """Return all trajectories that get a score."""
        return [*self.outcomes, *self.floored]


class Scorer(Protocol):
    """One way to score a group; a file each."""

    name: str  # the column `scorer` of rl.scores
    sees_runs: bool  # whether a group needs `runs` and `markets`
    rubric: Rubric | None  # of its judge; None without a judge

    async def score(self, group: Group) -> list[Score]:
        """Return one score for every outcome of the group, in any order.

        Raises:
            JudgeUnavailable: The scorer's judge cannot be asked now.
            JudgeFault: The judge was asked several times, and gave no usable answer.
            ServerUnavailable: Postgres does not answer.
        """
        ...
