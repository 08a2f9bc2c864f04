"""The live experiment in one process: windows of the market, and what follows from each.

Agents, scores and decisions are the product's: `Share.takes`, the scorer's verdict on the window,
`serving.decide` and `serving.bad_answers`. What the agents answer is drawn from the probabilities
of the version that each was drawn for.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from gate_world import ACTIONS, NAME, SETTINGS, Pool, ServedWorld, Version

from babylon_tasks.records.experiments import (
    FAILED_PART,
    Arm,
    Experiment,
    ExperimentState,
    FailedAgents,
    WindowEvidence,
)
from babylon_tasks.records.scores import Score
from babylon_tasks.records.shares import Share
from babylon_tasks.records.traces import Outcome
from babylon_tasks.records.windows import window_id_at
from babylon_tasks.scoring import filters
from babylon_tasks.scoring.heuristic import Heuristic
from babylon_tasks.scoring.rubric import Rubric
from babylon_tasks.scoring.scorer import Group, Scorer
from babylon_tasks.scoring.verdict import verdict_on
from babylon_tasks.serving import bad_answers
from babylon_tasks.serving.decide import decide
from babylon_tasks.simulation.agents import agent
from babylon_tasks.simulation.game.hour import BROKEN, DECISIONS, Player
from babylon_tasks.simulation.game.market import Outcome as MarketOutcome
from babylon_tasks.simulation.game.market import draw_outcome
from babylon_tasks.simulation.values import seeded

START = datetime(2026, 3, 1, tzinfo=UTC)
LONGEST = 60  # characters of an answer that a judge of lengths likes best
HARM = "harm"
FAILED_AGENTS = "failed agents"


class LongAnswers:
    """A judge that likes long answers, and nothing else; `lengths` are by trajectory id."""

    name = "length"
    sees_runs = False
    rubric: Rubric | None = None

    def __init__(self, lengths: dict[str, float]) -> None:
        self._lengths = lengths

    async def score(self, group: Group) -> list[Score]:
        """Score by the mean length of a run's answers."""
        scores = [(o, min(1.0, self._lengths[o.trajectory_id] / LONGEST)) for o in group.outcomes]
        return [
            Score(o.trajectory_id, o.agent_id, score, score, {}, "length", o.content_hash)
            for o, score in scores
        ]


@dataclass(frozen=True)
class Ended:
    """How an experiment ended, in what window, counted from 1, and why."""

    state: ExperimentState
    windows: int
    why: str


class Running:
    """An experiment that runs."""

    def __init__(self, live: Live, served: Version, candidate: Version) -> None:
        self._live, self._served, self.candidate = live, served, candidate
        self._experiment = Experiment(
            live.windows, candidate.step, served.step, ExperimentState.RUNNING, "",
            SETTINGS.experiment_percent, window_id_at(START), START, None,
        )  # fmt: skip
        self._seen: list[WindowEvidence] = []
        self._failed: list[FailedAgents] = []

    def look(self, newer: int | None = None) -> Ended | None:
        """Play a window, and return how that ends the experiment; None: it goes on.

        `newer` is a step that passed its exam since.
        """
        versions = self._served, self.candidate
        runs = self._live.play(*versions, self._experiment.percent)
        self._failed.append(_failed(runs, *versions))
        if bad_answers.is_worse(self._failed):
            return Ended(ExperimentState.ROLLED_BACK, len(self._failed), FAILED_AGENTS)
        self._seen.append(self._live.evidence(runs, *versions))
        told = decide(self._experiment, self._seen, SETTINGS.experiment_windows, newer)
        self._experiment = replace(self._experiment, percent=told.percent)
        if told.end is None:
            return None
        why = HARM if told.end == ExperimentState.ROLLED_BACK else str(told.decision)
        return Ended(told.end, len(self._seen), why)

    def end(self) -> Ended:
        """Play windows until the experiment ends."""
        while True:
            if ended := self.look():
                return ended


@dataclass
class _Run:
    """What an agent did in a window; `lengths` has the characters of its answers."""

    version: int | None  # None: scripted
    outcome: Outcome
    broken: int
    length: float


class Live:
    """The windows in which the versions of a trial meet, from one experiment to the next.

    `long_answers`: scores are by a judge that rewards length.
    """

    def __init__(self, world: ServedWorld, number: int, *, long_answers: bool = False) -> None:
        self.world, self._long_answers = world, long_answers
        self.pool: Pool = world.pool(number)
        self._rng = seeded("live", world.world.seed, number, long_answers)
        self._draw = f"experiment-{world.world.seed}-{number}"
        self._chances: dict[int, list[list[float]]] = {}
        self.windows = 0

    def value(self, version: Version) -> float:
        """Return the expected P&L of a decision, in dollars."""
        return self.pool.value(self.chances(version))

    def chances(self, version: Version) -> list[list[float]]:
        """Return a version's chances in the pool."""
        if version.step not in self._chances:
            self._chances[version.step] = self.pool.chances(version)
        return self._chances[version.step]

    def begin(self, served: Version, candidate: Version) -> Running:
        """Begin to try a candidate with a part of the agents."""
        return Running(self, served, candidate)

    def play(self, served: Version, candidate: Version, percent: float) -> list[_Run]:
        moment = START + timedelta(hours=self.windows)
        self.windows += 1
        share = Share(moment, candidate.step, percent, self._draw)
        outcomes = [draw_outcome(self._rng, market) for market in self.pool.markets]
        runs = []
        for player in self.world.world.players:
            id_ = agent(player.number, self.world.world.seed).id
            version = None
            if player.persona is None:
                version = candidate if share.takes(NAME, id_, moment) else served
            runs.append(self._run(player, id_, version, outcomes))
        return runs

    def _run(
        self,
        player: Player,
        agent_id: str,
        version: Version | None,
        outcomes: Sequence[MarketOutcome],
    ) -> _Run:
        pnl, broken, length = 0.0, 0, 0
        for place in self._rng.sample(range(len(outcomes)), DECISIONS):
            market = self.pool.markets[place]
            if version is None:
                assert player.persona is not None
                chances: Sequence[float] = player.persona.chances(market)
            else:
                chances = self.chances(version)[place]
            drawn = _draw(self._rng, chances)
            if drawn is None:
                broken += 1
                length += len(BROKEN)
                continue
            action, text = self.pool.answers[drawn]
            pnl += outcomes[place].pnl(market, ACTIONS[action])
            length += len(text)
        answered = {} if version is None else {f"{NAME}@{version.step}": DECISIONS}
        outcome = Outcome(
            trajectory_id=agent_id, agent_id=agent_id, pnl=pnl, steps=DECISIONS + 1,
            failed=broken, calls=DECISIONS, left_out={}, text_bytes=1, content_hash=agent_id,
            answered=answered,
        )  # fmt: skip
        return _Run(None if version is None else version.step, outcome, broken, length / DECISIONS)

    def evidence(self, runs: Sequence[_Run], served: Version, candidate: Version) -> WindowEvidence:
        version_of = {run.outcome.agent_id: run.version for run in runs}
        kept, _ = filters.apply(
            [run.outcome for run in runs], SETTINGS, str(self.windows),
            lambda outcome: version_of[outcome.agent_id] is not None,
        )  # fmt: skip
        scored = [outcome for outcome in kept if outcome.floored is None]
        floored = [outcome for outcome in kept if outcome.floored is not None]
        group = Group(str(self.windows), scored, {}, [], floored)
        scorer: Scorer = Heuristic()
        if self._long_answers:
            scorer = LongAnswers({run.outcome.trajectory_id: run.length for run in runs})
        scores = asyncio.run(verdict_on(group, scorer, SETTINGS)).scores
        arms: dict[int | None, list[float]] = {served.step: [], candidate.step: [], None: []}
        for score in scores:
            arms[version_of[score.agent_id]].append(score.score)
        return WindowEvidence(served=_arm(arms[served.step]), candidate=_arm(arms[candidate.step]))


def _draw(rng: random.Random, chances: Sequence[float]) -> int | None:
    """Draw an answer's number; None: what the chances miss to 1, a malformed one."""
    left = rng.random()
    for number, chance in enumerate(chances):
        left -= chance
        if left < 0:
            return number
    return None


def _failed(runs: Sequence[_Run], served: Version, candidate: Version) -> FailedAgents:
    def count(version: Version) -> tuple[int, int]:
        own = [run for run in runs if run.version == version.step]
        return len(own), sum(run.broken >= FAILED_PART * DECISIONS for run in own)

    (asked, failed), (tried, tried_failed) = count(served), count(candidate)
    return FailedAgents(str(len(runs)), asked, failed, tried, tried_failed)


def _arm(scores: Sequence[float]) -> Arm:
    if not scores:
        return Arm(0, 0.0, 0.0)
    mean = sum(scores) / len(scores)
    return Arm(len(scores), mean, sum((score - mean) ** 2 for score in scores))
