"""Runs by their window, the group within which rewards can be compared."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from babylon_tasks.evaluation.intervals import Floats


class Windows:
    """Tells which runs are of one window; runs are numbered from 0."""

    def __init__(self, window_ids: Sequence[str]) -> None:
        numbers = {window_id: n for n, window_id in enumerate(dict.fromkeys(window_ids))}
        self._number = np.array([numbers[each] for each in window_ids], dtype=np.intp)
        self.count = len(numbers)

    def centred(self, numbers: Floats) -> Floats:
        """Return the runs' numbers, each less the mean of its window."""
        sums = np.bincount(self._number, weights=numbers)
        return np.asarray(numbers - (sums / np.bincount(self._number))[self._number])

    def members(self) -> list[NDArray[np.intp]]:
        """Return the runs of each window."""
        return [np.flatnonzero(self._number == n) for n in range(self.count)]
