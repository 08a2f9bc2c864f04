"""The backend that trains on this machine's GPU or CPU."""

from __future__ import annotations

from collections.abc import Container, Sequence
from pathlib import Path

from babylon_tasks.records.steps import JobNote, StepResult
from babylon_tasks.records.windows import Window
from babylon_tasks.store.database import Connection
from babylon_tasks.work.context import Context
from babylon_tasks.work.leases import LeaseKeeper
from babylon_tasks.work.samples import StepSamples


class LocalBackend:
    """A `TrainingBackend` whose trainer process does all the work itself."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def require_usable(self) -> None:
        """Do nothing: the trainer process reports what is missing."""

    def next_windows(self, tx: Connection, excluded: Container[str]) -> None:
        """Return None: the choice is free."""

    def on_attempt(self, tx: Connection, token: int) -> None:
        """Do nothing: a dead attempt leaves no job running."""

    def prepare(self, keeper: LeaseKeeper, samples: StepSamples, path: Path) -> StepSamples:
        """Return all samples: local training needs no log-probabilities."""
        return samples

    def remote(self) -> None:
        """Return None: the trainer process trains by itself."""

    def note_job(self, keeper: LeaseKeeper, step: int, note: JobNote) -> None:
        """Raise: a local trainer posts no jobs."""
        raise AssertionError(f"a local trainer reported a job: {note}")

    def still_running(self, windows: Sequence[Window]) -> list[Window]:
        """Return no windows: a failed step has ended."""
        return []

    def cost_usd(self, result: StepResult) -> float | None:
        """Return the cost that the trainer reports, else its GPU time at GPU_USD_PER_HOUR."""
        price = self._context.settings.gpu_usd_per_hour
        if result.cost_usd is not None or price is None:
            return result.cost_usd
        return result.gpu_seconds / 3600 * price
