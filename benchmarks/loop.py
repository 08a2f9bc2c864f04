"""The closed loop in one process: agents play an hour, the trainer learns from it, and so on.

No server takes part; what decides what is learned does: the product's own decoding, filters,
scoring, tokens and trainer. `recipe.py` and `tests/integration/test_loop.py` use it.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

os.environ.update(
    LITELLM_LOCAL_MODEL_COST_MAP="True", WANDB_MODE="disabled", TQDM_DISABLE="1",
    TOKENIZERS_PARALLELISM="false", HF_HUB_OFFLINE="1",
)  # fmt: skip
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the trainer process has it
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from recorded_calls import write_samples
from transformers.utils import logging as transformers_logging

from babylon_tasks.records.recorded_steps import RawTrace
from babylon_tasks.records.steps import Hyperparameters, Logprobs, Sample, StepRequest
from babylon_tasks.records.traces import decode
from babylon_tasks.records.trainer_requests import EvaluateRequest, GenerateRequest
from babylon_tasks.records.versions import Versions
from babylon_tasks.scoring import filters
from babylon_tasks.scoring.heuristic import Heuristic
from babylon_tasks.scoring.own import OwnVersions
from babylon_tasks.scoring.scorer import Group
from babylon_tasks.scoring.verdict import verdict_on
from babylon_tasks.settings import Settings
from babylon_tasks.simulation.game.hour import Answer, Decision, Hour, Player, Question, play_hour
from babylon_tasks.simulation.game.look import Look, fresh_markets, look, questions
from babylon_tasks.simulation.game.market import Rules
from babylon_tasks.simulation.game.personas import Persona
from babylon_tasks.simulation.game.population import POLICIES, POPULATION, players
from babylon_tasks.simulation.game.record import record
from workers.trainer.torch.trainer import TorchTrainer

os.environ.pop("WANDB_API_KEY", None)  # `import art` loads .env
transformers_logging.disable_progress_bar()  # one for each time that weights are loaded

NAME = "loop"
START = datetime(2026, 1, 1)
SETTINGS = Settings()  # as shipped
MAX_ANSWER_TOKENS = 24
LOOKED_AT = 64  # markets of a look


@dataclass(frozen=True)
class World:
    """A game of one seed: its rules and its population, of which `policies` are our model's."""

    seed: int
    rules: Rules = field(default_factory=Rules)
    population: Sequence[Persona] = POPULATION
    policies: int = POLICIES
    recorded: bool = True  # the model's answers are recorded with their log-probabilities

    @property
    def players(self) -> list[Player]:
        """Return the players, ours last."""
        return players(self.population, self.policies)


class Loop:
    """A lineage that is trained hour by hour, in `folder`; `model` is its base model.

    The version that plays is `lag` steps behind the newest.
    """

    def __init__(
        self,
        folder: Path,
        model: Path,
        world: World,
        wanted: Hyperparameters,
        trainer: TorchTrainer,
        lag: int = 0,
    ) -> None:
        self._folder, self._model, self._world = folder, model, world
        self._wanted, self._trainer, self._lag = wanted, trainer, lag
        self._checkpoints: list[str | None] = [None]  # of each step; None: the base model
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def step(self) -> int:
        """The steps trained so far."""
        return len(self._checkpoints) - 1

    @property
    def checkpoint(self) -> str | None:
        """The newest step's files; None: the base model."""
        return self._checkpoints[-1]

    def play(self, number: int) -> Hour:
        """Play an hour with the newest version."""
        return play_hour(
            self._world.seed, number, self._world.rules, self._world.players, self._ask
        )

    def _ask(self, questions: Sequence[Question]) -> list[Answer]:
        step = max(0, self.step - self._lag)
        request = GenerateRequest(
            model_name=NAME, base_model=str(self._model), checkpoint=self._checkpoints[step],
            prompts=[each.messages for each in questions],
            max_tokens=MAX_ANSWER_TOKENS, temperature=1.0,
            seed=self._world.seed * 10_000 + self.step,
        )  # fmt: skip
        answers = []
        for (one,) in self._trainer.generate(request, lambda progress: None).generations:
            likely = Logprobs(one.token_ids, one.logprobs) if self._world.recorded else None
            version = f"{NAME}@{step}"
            answers.append(Answer(one.text, version, likely, NAME, one.finish_reason))
        return answers

    def train(self, samples: Sequence[Sample], *, anew: bool = False) -> dict[str, float]:
        """Train one step, from which the next hour is played; return its metrics.

        `anew`: from the base model, not from the newest step.
        """
        path, scratch = self._folder / "samples.jsonl", self._folder / f"step-{self.step}"
        write_samples(path, list(samples))
        request = StepRequest(
            model_name=NAME, base_model=str(self._model),
            parent=None if anew else self._checkpoints[-1],
            samples_path=str(path), scratch_dir=str(scratch), output_dir=str(scratch / "out"),
            seed=self.step + 1 + self._world.seed * 1000, hyperparameters=self._wanted,
        )  # fmt: skip
        result = self._trainer.step(request, lambda progress: None)
        self._checkpoints.append(request.output_dir)
        old = self._checkpoints[max(0, self.step - self._lag - 1)]
        if old is not None:
            shutil.rmtree(Path(old).parent, ignore_errors=True)
        return result.metrics

    def look(self, number: int, *, base: bool = False, count: int = LOOKED_AT) -> Look:
        """Return what the newest version is worth in that hour, by the probability of each answer.

        `base`: what the base model is worth. `count` is that of the markets.
        """
        world, path = self._world, self._folder / "look.jsonl"
        markets = fresh_markets(world.seed, number, world.rules, count)
        write_samples(path, questions(markets))
        checkpoint = None if base else self._checkpoints[-1]
        request = EvaluateRequest(NAME, str(self._model), checkpoint, str(path), 4096, 16_384)
        found = self._trainer.evaluate(request, lambda progress: None).trajectories
        return look(markets, [one.logprob for one in found])


def runs_of(hour: Hour, seed: int) -> dict[str, Sequence[Decision]]:
    """Return an hour's decisions by trajectory id."""
    rows = record(hour, START + timedelta(hours=hour.number), seed).trajectories
    pairs = zip(rows, hour.decisions, strict=True)
    return {row.trajectory_id: decisions for row, decisions in pairs}


def samples_of(hour: Hour, seed: int, *, floor: bool = True) -> list[Sample]:
    """Return what the product trains of an hour: filtered, scored, its own bad calls floored.

    Without `floor` our versions' bad runs and calls are left out, as those of other models are.
    """
    rows = record(hour, START + timedelta(hours=hour.number), seed)
    traces = {
        row.trajectory_id: decode(
            RawTrace(row.trajectory_id, row.agent_id, len(row.steps_json), row.steps_json)
        )
        for row in rows.trajectories
    }
    steps = range(1, hour.number + 1) if floor else ()
    own = OwnVersions(Versions(NAME if floor else "", {(NAME, f"v1.0.{n - 1}"): n for n in steps}))
    outcomes = [own.claim(trace.outcome) for trace in traces.values()]
    kept, _ = filters.apply(outcomes, SETTINGS, rows.window_id, own.did)
    scored = [outcome for outcome in kept if outcome.floored is None]
    floored = [outcome for outcome in kept if outcome.floored is not None]
    group = Group(rows.window_id, scored, {}, [], floored)
    scores = asyncio.run(verdict_on(group, Heuristic(), SETTINGS)).scores
    lowest = min((score.score for score in scores), default=0.0)
    samples = []
    badly = {outcome.trajectory_id: outcome.badly for outcome in kept}
    for score in scores:
        trace = traces[score.trajectory_id]
        parts = [(score.score, trace.calls)]
        parts.append((lowest, trace.badly if badly[score.trajectory_id] else []))
        samples += [
            Sample(rows.window_id, score.trajectory_id, reward, calls)
            for reward, calls in parts
            if calls
        ]
    return samples
