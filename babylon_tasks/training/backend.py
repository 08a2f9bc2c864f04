"""What differs between training on this machine and training on W&B; a file each."""

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
from babylon_tasks.training.samples import StepSamples
from babylon_tasks.work.leases import LeaseKeeper


class TrainingBackend(Protocol):
    """Is made for one claim of a lineage, and asked in this order at each attempt at a step."""

    def require_usable(self) -> None:
        """Refuse what could not be trained, before anything is claimed or sent.

        Raises:
            UserError: A person must change a setting; the message says which.
        """
        ...

    def next_windows(self, tx: Connection, but: Container[str]) -> list[Window] | None:
        """Return windows that must train now and together, or None where the choice is free.

        Windows in `but` are not to be tried again now.
        """
        ...

    def on_attempt(self, tx: Connection, token: int) -> None:
        """Note, in the attempt's first transaction, that it works under this token."""
        ...

    def prepare(self, keeper: LeaseKeeper, samples: StepSamples, path: Path) -> StepSamples:
        """Leave out of the samples in `path` what cannot be trained here.

        Raises:
            NotRecorded: No window is left.
        """
        ...

    def remote(self) -> Remote | None:
        """Return where the trainer process finds the other machine that trains, if there is one."""
        ...

    def note_job(self, keeper: LeaseKeeper, step: int, note: JobNote) -> None:
        """Make durable what the trainer says about a job on another machine.

        Raises:
            LeaseLost: Another worker has taken over; nothing was written.
        """
        ...

    def still_running(self, windows: Sequence[Window]) -> list[Window]:
        """Return those of a failed step's windows that a job elsewhere may still be training."""
        ...

    def cost_usd(self, result: StepResult) -> float | None:
        """Return what a step cost, or None where no price is known."""
        ...


def require_same_kind(lineage: Lineage, trainer: str, parent: Step | None) -> None:
    """Refuse to continue a lineage with the other kind of trainer.

    Raises:
        UserError: W&B holds the parent's weights and this machine trains, or the other way round.
    """
    if parent is None or (parent.trainer == "serverless") == (trainer == "serverless"):
        return
    raise UserError(
        f"step {parent.step} of {lineage.name} was trained by {parent.trainer}, which "
        f"{trainer} cannot go on from: set TRAINER={parent.trainer}, or MODEL_NAME to a new name"
    )
