"""The protocol of training backends: this machine (`local`) or W&B (`wandb_jobs`)."""

from __future__ import annotations

from collections.abc import Container, Sequence
from pathlib import Path
from typing import Protocol

from babylon_tasks.errors import UserError
from babylon_tasks.records.lineages import Lineage
from babylon_tasks.records.steps import JobNote, Remote, StepResult
from babylon_tasks.records.windows import Window
from babylon_tasks.store.database import Connection
from babylon_tasks.store.steps import Step
from babylon_tasks.work.leases import LeaseKeeper
from babylon_tasks.work.samples import StepSamples


class TrainingBackend(Protocol):
    """One backend serves one claim; each attempt at a step calls its methods in this order."""

    def require_usable(self) -> None:
        """Refuse settings with which training cannot work, before anything is sent.

        Raises:
            UserError: A person must change a setting; the message says which.
        """
        ...

    def next_windows(self, tx: Connection, excluded: Container[str]) -> list[Window] | None:
        """Return windows that must train now and together, or None if the choice is free.

        Windows whose ids are in `excluded` must not be tried again now.
        """
        ...

    def on_attempt(self, tx: Connection, token: int) -> None:
        """Note the attempt's token, in its first transaction."""
        ...

    def prepare(self, keeper: LeaseKeeper, samples: StepSamples, path: Path) -> StepSamples:
        """Leave out what this backend cannot train: return the rest, also written to `path`.

        Raises:
            NotRecorded: No window remains.
            LeaseLost: Another worker has taken over.
            ServerUnavailable: Postgres does not answer.
        """
        ...

    def remote(self) -> Remote | None:
        """Return where the trainer process reaches W&B, or None if it trains by itself."""
        ...

    def note_job(self, keeper: LeaseKeeper, step: int, note: JobNote) -> None:
        """Store the trainer's note about its job at W&B.

        Raises:
            LeaseLost: Another worker has taken over; nothing was written.
        """
        ...

    def still_running(self, windows: Sequence[Window]) -> list[Window]:
        """Return the windows of a failed step that a job at W&B may still train.

        Raises:
            ServerUnavailable: Postgres does not answer.
        """
        ...

    def cost_usd(self, result: StepResult) -> float | None:
        """Return the cost of a step in dollars, or None if its price is unknown."""
        ...


def require_same_kind(lineage: Lineage, trainer: str, parent: Step | None) -> None:
    """Refuse to continue a lineage with the other kind of trainer.

    Raises:
        UserError: The parent's weights are at W&B and this machine trains, or the reverse.
    """
    if parent is None or (parent.trainer == "serverless") == (trainer == "serverless"):
        return
    raise UserError(
        f"step {parent.step} of {lineage.name} was trained by {parent.trainer}, which "
        f"{trainer} cannot go on from: set TRAINER={parent.trainer}, or MODEL_NAME to a new name"
    )
