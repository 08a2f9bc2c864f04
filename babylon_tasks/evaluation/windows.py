"""Runs by their window, the group within which rewards can be compared."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from babylon_tasks.evaluation.intervals import Floats


class Windows:
    """Tells which runs are of one window; runs are numbered from 0."""

    def __init__(self, window_ids: Sequence[str]) -> None:
        _, self._number = np.unique(np.array(window_ids, dtype=np.str_), return_inverse=True)

    def centred(self, numbers: Floats) -> Floats:
        """Return the runs' numbers, each less the mean of its window."""
        if not len(numbers):
            return numbers
        sums = np.bincount(self._number, weights=numbers)
        return numbers - (sums / np.bincount(self._number))[self._number]

    def members(self) -> list[NDArray[np.intp]]:
        """Return the runs of each window."""
        return [np.flatnonzero(self._number == n) for n in np.unique(self._number)]
