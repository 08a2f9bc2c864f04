"""Finds the checkpoint that a model's name stands for, by the rows of the database."""

from __future__ import annotations

import re
import threading

from babylon_tasks.checkpoints import files as checkpoint_files
from babylon_tasks.errors import UserError
from babylon_tasks.records.lineages import Lineage, LineageState
from babylon_tasks.settings import Settings
from babylon_tasks.store import heads, lineages, steps
from babylon_tasks.store.database import Connection, Database
from workers.serve.engine import ServedModel


class ServedModels:
    """Resolves a lineage's name to its published step, and `{name}@{step}` to that one.

    Every lineage of the database can be asked. A fork has the steps before it by its own name.
    """

    def __init__(self, settings: Settings) -> None:
        self._own = Lineage.of_deployment(settings)
        self._wandb_url = settings.serverless_url.rstrip("/")
        self._database = Database(settings.postgres())
        self._lock = threading.Lock()  # requests come on threads, the connection is one

    def resolve(self, name: str) -> ServedModel | None:
        """Find the checkpoint of a name; None where there is no such step.

        Raises:
            CheckpointRemoved: There was such a step, and its files were removed.
            CheckpointUnreadable: The step's files cannot be read from this machine.
            UserError: W&B has the weights; the message says whom to ask.
            ServerUnavailable: Postgres does not answer.
        """
        lineage_name, number = parse_name(name)
        with self._lock, self._database.transaction() as tx:
            lineage = self._lineage(tx, lineage_name)
            if lineage is None:
                return None
            head = heads.read(tx, lineage_name)
            if number is None:
                number = head.published_step if head else 0
            step = steps.read(tx, lineage_name, number) if number else None
        if number and step is None:
            return None
        if step and step.inference_name:
            raise UserError(
                f"{name} is served by W&B: ask {self._wandb_url}/chat/completions for "
                f"{step.inference_name}, with WANDB_API_KEY"
            )
        base_model = head.base_model if head else lineage.base_model
        folder = checkpoint_files.open_local(step.files()) if step else None
        return ServedModel(base_model, number, folder)

    def names(self) -> list[str]:
        """List each served lineage's name, and the name of its published step.

        Raises:
            ServerUnavailable: Postgres does not answer.
        """
        with self._lock, self._database.transaction() as tx:
            rows = lineages.read(tx)
            active = [row.name for row in rows if row.state != LineageState.RETIRED]
            names = [self._own.name, *sorted(set(active) - {self._own.name})]
            positions = heads.positions(tx, names)
        return [
            each
            for name, position in positions.items()
            for each in (name, f"{name}@{position.published_step}")
        ]

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
