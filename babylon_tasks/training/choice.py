"""Chooses the scored windows of the next step."""

from __future__ import annotations

from collections.abc import Container, Sequence

from babylon_tasks.records.windows import Window, share_a_step
from babylon_tasks.store import windows as window_rows
from babylon_tasks.store.database import Connection
from babylon_tasks.training.backend import TrainingBackend
from babylon_tasks.work.context import Context


class WindowChoice:
    """Chooses among a lineage's scored windows, or among those in `only`."""

    def __init__(
        self, context: Context, backend: TrainingBackend, only: Sequence[str] | None
    ) -> None:
        self._context, self._backend, self._only = context, backend, only

    def next(self, tx: Connection, excluded: Container[str] = ()) -> list[Window]:
        """Return the windows of the next step, none of them in `excluded`; empty if none is due."""
        windows_of_job = self._backend.next_windows(tx, excluded)
        if windows_of_job is not None:
            return windows_of_job
        due = window_rows.scored(tx, self._context.lineage.name, self._only)
        most_tokens = self._context.settings.max_step_tokens
        return share_a_step([w for w in due if w.window_id not in excluded], most_tokens)

    def asked_for(self, windows: Sequence[Window]) -> bool:
        """Tell whether all of these are in `only`; a job at W&B may be about others."""
        return self._only is None or {w.window_id for w in windows} <= set(self._only)
