"""The loop that the demo runs: hours played by the newest version, trained by the real roles."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import psycopg

from babylon_tasks import pipeline
from babylon_tasks.checkpoints import files as checkpoint_files
from babylon_tasks.cli.demo_screen import Round, TrainedHour
from babylon_tasks.cli.progress import wait_until_idle
from babylon_tasks.local.supervisor import Stack
from babylon_tasks.records.steps import Trainer
from babylon_tasks.records.trainer_requests import EvaluateRequest
from babylon_tasks.records.windows import window_id_at
from babylon_tasks.simulation.game.faults import faulty_rows
from babylon_tasks.simulation.game.hour import Ask, Player, play_hour
from babylon_tasks.simulation.game.look import Look, fresh_markets, look, questions
from babylon_tasks.simulation.game.market import LURE, UP, Market, Rules
from babylon_tasks.simulation.game.memory import without_remembered
from babylon_tasks.simulation.game.population import POLICIES, POPULATION, players
from babylon_tasks.simulation.game.record import record
from babylon_tasks.simulation.write import write
from babylon_tasks.store import heads, steps
from babylon_tasks.work.context import Context

_LOOKED_AT = 64  # markets
_ASKED_ABOUT = 512  # markets, of which two are asked about
_CLEAR = 0.9  # the probability that they go the way they should
_SETTLED_HOURS = 2  # the newest hour is so many before this one: it has ended and settled


def crowd(agents: int) -> list[Player]:
    """Return so many players: the usual personas and the model, in the usual shares."""
    usual = len(POPULATION)
    policies = max(1, round(agents * POLICIES / (usual + POLICIES)))
    scripted = agents - policies
    return players([POPULATION[n * usual // scripted] for n in range(scripted)], policies)


@dataclass(frozen=True)
class Game:
    """The demo's game: `windows` hours of the past, oldest first, the same for the same seed."""

    seed: int
    windows: int
    players: Sequence[Player]
    now: datetime  # naive UTC
    rules: Rules = field(default_factory=Rules)

    def start(self, number: int) -> datetime:
        """Return when an hour begins; the first is 0."""
        this_hour = self.now.replace(minute=0, second=0, microsecond=0)
        return this_hour - timedelta(hours=self.windows - 1 - number + _SETTLED_HOURS)

    @property
    def window_ids(self) -> list[str]:
        """The ids of the hours, oldest first."""
        starts = [self.start(number) for number in range(self.windows)]
        return [window_id_at(start.replace(tzinfo=UTC)) for start in starts]

    def fresh_markets(self) -> list[Market]:
        """Draw markets that nobody plays, as they are in the hour after the last."""
        return fresh_markets(self.seed, self.windows, self.rules, _LOOKED_AT)

    def questions(self) -> tuple[Market, Market]:
        """Return two new markets that are nearly decided: one to sell and one to buy.

        Who always answers the same gets one of them wrong. The strong signals decide them, against
        the weak ones.
        """
        markets = fresh_markets(self.seed + 1, self.windows, self.rules, _ASKED_ABOUT)

        def misleading(market: Market) -> tuple[int, float]:
            right = 1 if market.best == UP else -1
            weak = market.signals["momentum"] + market.signals[LURE]
            return right * weak, -market.value(market.best)

        falls = min((m for m in markets if m.chance < 1 - _CLEAR), key=misleading)
        rises = min((m for m in markets if m.chance > _CLEAR), key=misleading)
        return falls, rises


class Loop:
    """Plays the game's hours one after the other; see `rounds`.

    Args:
        context: Of the lineage that plays; `roles` are those that train it.
        game: What is played.
        ask: Asks the newest version that serves.
        trainer: Looks at versions; nobody else uses it meanwhile.
        folder: For the questions of a look.
    """

    def __init__(
        self, context: Context, roles: Stack, game: Game, ask: Ask, trainer: Trainer, folder: Path
    ) -> None:
        self._context, self._roles, self._game = context, roles, game
        self._ask, self._trainer = ask, trainer
        self._markets = game.fresh_markets()
        self._questions = folder / "look.jsonl"
        self._questions.write_bytes(
            b"".join(msgspec.json.encode(sample) + b"\n" for sample in questions(self._markets))
        )

    def rounds(self, say: Callable[[str], None]) -> Iterator[Round]:
        """Play, train and look, hour by hour; yield each round, first the base model's.

        The next hour is played while a version is looked at. `say` gets what is done now.

        Raises:
            UserError, ServerUnavailable: A role, a server or the endpoint gave up.
        """
        with (
            ThreadPoolExecutor(1) as looking,
            psycopg.connect(self._context.settings.postgres(), autocommit=True) as app,
        ):
            hour, look_at = None, looking.submit(self._look, None)
            for number in range(self._game.windows):
                started = time.monotonic()
                say(f"hour {number + 1} of {self._game.windows}: the agents play")
                self._play(app, number)
                yield Round(look_at.result(), hour)
                say(f"hour {number + 1} of {self._game.windows}: scored, trained, published")
                wait_until_idle(self._context, self._roles)
                hour, folder = self._trained(number, time.monotonic() - started)
                look_at = looking.submit(self._look, folder)
            yield Round(look_at.result(), hour)

    def _play(self, app: psycopg.Connection, number: int) -> None:
        """Let the agents play an hour, write it as the app does, and make it due."""
        game = self._game
        hour = play_hour(game.seed, number, game.rules, game.players, self._ask)
        if self._context.settings.capture_calls:
            hour = without_remembered(self._context.database, hour, game.seed)
        rows = [record(hour, game.start(number), game.seed)]
        if number == 0:
            rows = [*faulty_rows(game.start(0), game.seed), *rows]
        write(app, rows)
        pipeline.produce(self._context)

    def _trained(self, number: int, seconds: float) -> tuple[TrainedHour, str | None]:
        """Return what became of an hour, and the files of what serves now."""
        name = self._context.lineage.name
        with self._context.database.transaction() as tx:
            head = heads.read(tx, name)
            step = steps.read(tx, name, head.published_step) if head else None
        window_id = self._game.window_ids[number]
        if step is None:
            return TrainedHour(window_id, 0, None, None, seconds), None
        loss = step.metrics.get("loss")
        files = str(checkpoint_files.open_local(step.files()))
        return TrainedHour(window_id, step.step, step.version, loss, seconds), files

    def _look(self, checkpoint: str | None) -> Look:
        settings = self._context.settings
        request = EvaluateRequest(
            model_name=self._context.lineage.name,
            base_model=settings.base_model,
            checkpoint=checkpoint,
            samples_path=str(self._questions),
            max_sequence_tokens=settings.max_sequence_tokens,
            micro_batch_tokens=settings.micro_batch_tokens,
        )
        found = self._trainer.evaluate(request, lambda beat: None).trajectories
        return look(self._markets, [one.logprob for one in found])
