"""How far the passes of a training step are: its signs of life."""

from __future__ import annotations

from collections.abc import Callable

from babylon_tasks.records.steps import Progress


class Meter:
    """Counts the sequences that went through the model, in all passes of a step.

    Args:
        total: Sequences in all passes together.
        on_progress: Gets a sign of life in the phase `train` at each micro-batch.
    """

    def __init__(self, total: int, on_progress: Callable[[Progress], None]) -> None:
        self._total, self._on_progress = total, on_progress
        self._done = self._mark = 0

    def begin(self) -> None:
        """Remember where a pass begins."""
        self._mark = self._done

    def again(self) -> None:
        """Go back to where the pass began: in less memory, it runs again."""
        self._done = self._mark

    def add(self, sequences: int, loss: float | None = None, speed: float | None = None) -> None:
        """Count these; `speed` is in tokens a second."""
        self._done += sequences
        self._on_progress(Progress("train", self._done, self._total, loss, speed))
