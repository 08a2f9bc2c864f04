"""Finds the checkpoint that a model's name stands for, by the rows of the database."""

from __future__ import annotations

import re
import threading

from babylon_tasks.checkpoints import files as checkpoint_files
from babylon_tasks.errors import UserError
from babylon_tasks.settings import Settings
from babylon_tasks.store import heads, steps
from babylon_tasks.store.database import Database
from workers.serve.engine import ServedModel


class ServedModels:
    """Resolves `{MODEL_NAME}` to the published step and `{MODEL_NAME}@{step}` to that one."""

    def __init__(self, settings: Settings) -> None:
        self._name = settings.model_name
        self._base_model = settings.base_model
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
        with self._lock, self._database.transaction() as tx:
            head = heads.read(tx, self._name)
            published = head.published_step if head else 0
            number = self._step_of(name, published)
            step = steps.read(tx, self._name, number) if number else None
        if number is None or (number and step is None):
            return None
        if step and step.inference_name:
            raise UserError(
                f"{name} is served by W&B: ask {self._wandb_url}/chat/completions for "
                f"{step.inference_name}, with WANDB_API_KEY"
            )
        base_model = head.base_model if head else self._base_model
        folder = checkpoint_files.open_local(step.files()) if step else None
        return ServedModel(base_model, number, folder)

    def names(self) -> list[str]:
        """List the stable name, and the name of the published step.

        Raises:
            ServerUnavailable: Postgres does not answer.
        """
        with self._lock, self._database.transaction() as tx:
            head = heads.read(tx, self._name)
        return [self._name, f"{self._name}@{head.published_step if head else 0}"]

    def _step_of(self, name: str, published: int) -> int | None:
        if name == self._name:
            return published
        prefix, _, number = name.rpartition("@")
        # At most nine digits, which the column of steps can hold.
        is_step_name = prefix == self._name and re.fullmatch(r"[0-9]{1,9}", number)
        return int(number) if is_step_name else None
