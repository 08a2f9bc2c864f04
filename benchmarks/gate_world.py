"""The market of `gate.py`: a version that serves, hours that it played, and what versions say.

The version that serves is half-way to what pays. Its hours, which train and examine candidates,
are played with generated answers and recorded with their log-probabilities, as our endpoint
remembers them. The windows of an experiment are many, so in them the answers are drawn from each
version's exact probabilities instead (`Pool`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
from loop import MAX_ANSWER_TOKENS, NAME, SETTINGS, Loop, World, samples_of
from recorded_calls import write_samples

from babylon_tasks.records.steps import Call, Hyperparameters, Logprobs, Sample, StepRequest
from babylon_tasks.records.trainer_requests import (
    EvaluateRequest,
    EvaluateResult,
    GenerateRequest,
    GenerateResult,
)
from babylon_tasks.simulation.agents import NAMES
from babylon_tasks.simulation.game.hour import Answer, Hour, Question, play_hour
from babylon_tasks.simulation.game.look import fresh_markets
from babylon_tasks.simulation.game.market import DOWN, HOLD, UP, Market, Rules
from babylon_tasks.simulation.game.personas import expected
from babylon_tasks.simulation.game.prompts import messages, write_answer
from babylon_tasks.training.recipe import hyperparameters_in_force
from workers.trainer.torch.trainer import OnProgress, TorchTrainer

HALF_TRAINED = 7  # steps: about half of the gap is closed then (docs/learning.md)
FIRST_HOUR = 100  # of the trials: what serves was trained on hours before it
POOL = 96  # markets of an experiment
ACTIONS = (UP, DOWN, HOLD)
SHIPPED = hyperparameters_in_force(SETTINGS)
# What may stand behind the action of an answer: it makes it longer, and no better.
PLAIN, WORDY = ("",), ("", ',"note":"small risk, good odds"')


def _quiet(progress: object) -> None:
    return None


class CachingTrainer(TorchTrainer):
    """Answers the same question about the same files once: what serves sits every exam of a trial.

    What was answered is kept until `forget`.
    """

    def __init__(self) -> None:
        super().__init__("cpu-0")
        self._evaluated: dict[bytes, EvaluateResult] = {}
        self._generated: dict[bytes, GenerateResult] = {}

    def evaluate(self, request: EvaluateRequest, on_progress: OnProgress) -> EvaluateResult:
        """Evaluate, unless the same was asked before."""
        nowhere = msgspec.structs.replace(request, samples_path="")
        key = msgspec.json.encode(nowhere) + Path(request.samples_path).read_bytes()
        if key not in self._evaluated:
            self._evaluated[key] = super().evaluate(request, on_progress)
        return self._evaluated[key]

    def generate(self, request: GenerateRequest, on_progress: OnProgress) -> GenerateResult:
        """Generate, unless the same was asked before."""
        key = msgspec.json.encode(request)
        if key not in self._generated:
            self._generated[key] = super().generate(request, on_progress)
        return self._generated[key]

    def close(self) -> None:
        """Keep the model: there is no process behind it."""

    def forget(self) -> None:
        """Drop what was answered."""
        self._evaluated.clear()
        self._generated.clear()


@dataclass(frozen=True)
class Version:
    """A step's number and its files."""

    step: int
    checkpoint: str


@dataclass(frozen=True)
class Game:
    """A game: `agents` are those that our endpoint answers, beside the scripted ones.

    What serves was trained honestly in `steps` steps; without `floor`, calls that broke were left
    out of them. `notes` are what an answer may have behind the action.
    """

    seed: int
    agents: int
    steps: int = HALF_TRAINED
    rules: Rules = field(default_factory=Rules)
    notes: Sequence[str] = PLAIN
    floor: bool = True


class ServedWorld:
    """A game, in which the version `served` answers the agents."""

    def __init__(self, folder: Path, model: Path, trainer: CachingTrainer, game: Game) -> None:
        self.folder, self.model, self.trainer, self.notes = folder, model, trainer, game.notes
        self.world = World(game.seed, game.rules, policies=game.agents)
        loop = Loop(folder / "served", model, World(game.seed, game.rules), SHIPPED, trainer)
        for number in range(game.steps):
            loop.train(samples_of(loop.play(number), game.seed, floor=game.floor))
        assert loop.checkpoint is not None
        self.served = Version(loop.step, loop.checkpoint)
        self._steps = loop.step

    def play(self, number: int) -> Hour:
        """Play an hour with the version that serves."""
        world, version = self.world, f"{NAME}@{self.served.step}"

        def ask(questions: Sequence[Question]) -> list[Answer]:
            request = GenerateRequest(
                model_name=NAME, base_model=str(self.model), checkpoint=self.served.checkpoint,
                prompts=[each.messages for each in questions],
                max_tokens=MAX_ANSWER_TOKENS, temperature=1.0, seed=world.seed * 10_000 + number,
            )  # fmt: skip
            return [
                Answer(one.text, version, Logprobs(one.token_ids, one.logprobs), NAME,
                       one.finish_reason)
                for (one,) in self.trainer.generate(request, _quiet).generations
            ]  # fmt: skip

        return play_hour(world.seed, number, world.rules, world.players, ask)

    def train(
        self,
        parent: Version,
        samples: Sequence[Sample],
        seed: int,
        wanted: Hyperparameters = SHIPPED,
    ) -> Version:
        """Train one step on these samples."""
        step = self.new_step()
        scratch = self.folder / f"step-{step}"
        scratch.mkdir()
        path = scratch / "samples.jsonl"
        write_samples(path, list(samples))
        request = StepRequest(
            model_name=NAME, base_model=str(self.model), parent=parent.checkpoint,
            samples_path=str(path), scratch_dir=str(scratch), output_dir=str(scratch / "out"),
            seed=seed, hyperparameters=wanted,
        )  # fmt: skip
        self.trainer.step(request, _quiet)
        return Version(step, request.output_dir)

    def new_step(self) -> int:
        """Return the number of a version that is to be made."""
        self._steps += 1
        return self._steps

    def pool(self, number: int) -> Pool:
        """Return the markets of a trial's experiments."""
        return Pool(self, fresh_markets(self.world.seed * 1000 + number, FIRST_HOUR,
                                        self.world.rules, POOL))  # fmt: skip


class Pool:
    """Markets that are played in every window anew, and how likely each version's answers are."""

    def __init__(self, world: ServedWorld, markets: Sequence[Market]) -> None:
        self.markets, self._world = markets, world
        self.answers = list(_answers(world.notes))

    def chances(self, version: Version) -> list[list[float]]:
        """Return for each market the probability of each of `answers`; the rest is malformed."""
        path = self._world.folder / "pool.jsonl"
        write_samples(path, list(self._questions()))
        request = EvaluateRequest(
            NAME, str(self._world.model), version.checkpoint, str(path), 4096, 16_384
        )
        each = iter(self._world.trainer.evaluate(request, _quiet).trajectories)
        return [[math.exp(next(each).logprob) for _ in self.answers] for _ in self.markets]

    def value(self, chances: Sequence[Sequence[float]]) -> float:
        """Return the expected P&L of a decision in dollars."""
        worth = []
        for market, of_market in zip(self.markets, chances, strict=True):
            up, down, hold = (math.fsum(of_market[n :: len(ACTIONS)]) for n in range(len(ACTIONS)))
            worth.append(expected((up, down, hold), market))
        return math.fsum(worth) / len(worth)

    def _questions(self) -> Iterator[Sample]:
        for number, market in enumerate(self.markets):
            system, user = (message["content"] for message in messages(NAMES[0], market))
            for place, (_, text) in enumerate(self.answers):
                yield Sample("pool", f"{number}-{place}", 0.0, [Call(system, user, text)])


def _answers(notes: Sequence[str]) -> Iterator[tuple[int, str]]:
    """Yield every well-formed answer with its action; the action changes fastest."""
    for note in notes:
        for action in ACTIONS:
            yield action, with_note(write_answer(action), note)


def with_note(answer: str, note: str) -> str:
    """Return a plain answer with a note behind its action."""
    return answer.removesuffix("}") + note + "}"
