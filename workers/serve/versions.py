"""Finds the checkpoint that a model's name stands for, by the rows of the database."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from babylon_tasks.checkpoints import files as checkpoint_files
from babylon_tasks.errors import CheckpointUnreadable, ServerUnavailable, UserError
from babylon_tasks.records.lineages import Lineage, LineageState
from babylon_tasks.settings import Settings
from babylon_tasks.store import heads, lineages, steps
from babylon_tasks.store.database import Connection, Database
from babylon_tasks.store.steps import Step
from workers.serve.engine import ServedModel

log = logging.getLogger(__name__)
T = TypeVar("T")

_ANSWER_SECONDS = 3.0  # for Postgres: somebody waits for an answer of the model
_AWAY_SECONDS = 10.0  # after it did not answer, it is not asked again for so long
_SAY_SECONDS = 60.0
_KNOWN = 1000  # names


@dataclass(frozen=True, slots=True)
class _Found:
    """What Postgres says of a name; `step` is None for the bare base model."""

    base_model: str
    base_revision: str | None
    number: int
    step: Step | None


class _Memory:
    """What Postgres said last, for as long as it does not answer."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._lock = threading.Lock()  # requests come on threads, the connection is one
        self._known: dict[str, tuple[object, float]] = {}  # and when it was said
        self._ask_at = self._say_at = 0.0

    def ask(self, what: str, read: Callable[[Connection], T | None]) -> T | None:
        """Return what `read` returns, now or the last time; None is not remembered.

        Raises:
            ServerUnavailable: Postgres does not answer, and this was not asked before.
        """
        with self._lock:
            known, said_at = self._known.get(what, (None, 0.0))
            if known is not None and time.monotonic() < self._ask_at:
                return known  # type: ignore[return-value]
            try:
                with self._database.transaction() as tx:
                    answer = read(tx)
            except ServerUnavailable as error:
                now = time.monotonic()
                self._ask_at = now + _AWAY_SECONDS
                if known is None:
                    raise
                if now >= self._say_at:
                    self._say_at = now + _SAY_SECONDS
                    age = now - said_at
                    log.warning("%s is answered as it was %.0f s ago: %s", what, age, error)
                return known  # type: ignore[return-value]
            if answer is None:
                self._known.pop(what, None)
            elif len(self._known) < _KNOWN or what in self._known:
                self._known[what] = answer, time.monotonic()
            return answer


class ServedModels:
    """Resolves a lineage's name to its published step, and `{name}@{step}` to that one.

    Every lineage of the database can be asked. A fork has the steps before it by its own name.
    While Postgres or the store is away, what was served before is served on.
    """

    def __init__(self, settings: Settings) -> None:
        self._own = Lineage.of_deployment(settings)
        self._wandb_url = settings.serverless_url.rstrip("/")
        self._memory = _Memory(Database(settings.postgres(), _ANSWER_SECONDS))
        self._opened: dict[str, Path] = {}  # checkpoints that were found whole

    def resolve(self, name: str) -> ServedModel | None:
        """Find the checkpoint of a name; None where there is no such step.

        Raises:
            CheckpointRemoved: There was such a step, and its files were removed.
            CheckpointUnreadable: The step's files cannot be read from this machine.
            UserError: W&B has the weights; the message says whom to ask.
            ServerUnavailable: Postgres does not answer, and the name was not asked for before.
        """
        found = self._memory.ask(name, lambda tx: self._find(tx, name))
        if found is None:
            return None
        step = found.step
        if step and step.inference_name:
            raise UserError(
                f"{name} is served by W&B: ask {self._wandb_url}/chat/completions for "
                f"{step.inference_name}, with WANDB_API_KEY"
            )
        folder = self._open(step.files()) if step else None
        return ServedModel(found.base_model, found.number, folder, found.base_revision)

    def names(self) -> list[str]:
        """List each served lineage's name, and the name of its published step.

        Raises:
            ServerUnavailable: Postgres does not answer, and did not before.
        """
        return self._memory.ask("the list of models", self._names) or []

    def _find(self, tx: Connection, name: str) -> _Found | None:
        lineage_name, number = parse_name(name)
        lineage = self._lineage(tx, lineage_name)
        if lineage is None:
            return None
        head = heads.read(tx, lineage_name)
        if number is None:
            number = head.published_step if head else 0
        step = steps.read(tx, lineage_name, number) if number else None
        if number and step is None:
            return None
        row = head or lineage
        return _Found(row.base_model, row.base_revision, number, step)

    def _names(self, tx: Connection) -> list[str]:
        rows = lineages.read(tx)
        active = [row.name for row in rows if row.state != LineageState.RETIRED]
        names = [self._own.name, *sorted(set(active) - {self._own.name})]
        return [
            each
            for name, position in heads.positions(tx, names).items()
            for each in (name, f"{name}@{position.published_step}")
        ]

    def _open(self, checkpoint: str) -> Path:
        """Return the folder with the checkpoint's files.

        One that was opened before is not opened again. If its folder is not there any more, it is
        fetched again; if the store is away then, the model may still be in memory.
        """
        folder = self._opened.get(checkpoint)
        if folder is not None and folder.is_dir():
            return folder
        try:
            self._opened[checkpoint] = checkpoint_files.open_local(checkpoint)
        except CheckpointUnreadable:
            if folder is None:
                raise
            return folder
        return self._opened[checkpoint]

    def _lineage(self, tx: Connection, name: str) -> Lineage | None:
        rows = lineages.read(tx, [name])
        if rows:
            return rows[0]
        return self._own if name == self._own.name else None


def parse_name(name: str) -> tuple[str, int | None]:
    """Split `{name}@{step}`; without a step it is None."""
    prefix, at, number = name.rpartition("@")
    # At most nine digits, which the column of steps can hold.
    if prefix and at and re.fullmatch(r"[0-9]{1,9}", number):
        return prefix, int(number)
    return name, None
