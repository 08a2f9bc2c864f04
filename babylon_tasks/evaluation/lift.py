"""The lift: does the candidate make better runs likelier, and worse ones less likely?"""

from __future__ import annotations

import numpy as np

from babylon_tasks.evaluation.intervals import Floats, interval
from babylon_tasks.evaluation.windows import Windows
from babylon_tasks.records.exams import Compared

LEAST_RUNS = 5


def lift(rewards: Floats, windows: Windows, served: Floats, candidate: Floats) -> Compared:
    """Return the covariance within windows of the reward and of what became likelier.

    Σ (r - r̄) (Δ - Δ̄) / n, where Δ is the candidate's log-probability of a run less the served
    version's, and the means are those of the run's window. For small changes this is what the
    reward of the policy that answered would gain by the same change (the policy gradient; Kakade
    and Langford 2002). It needs no recorded log-probabilities. How hard a run is to
    say cancels in Δ, which is why it sees in 16 runs what `ranking` sees in 64.
    """
    centred = windows.centred(rewards)
    runs = int(np.count_nonzero(centred))
    if runs < LEAST_RUNS:
        left_out = (
            f"{runs} runs differ in reward from others of their window, and {LEAST_RUNS} are needed"
        )
        return Compared(runs=runs, left_out=left_out)
    products = centred * windows.centred(candidate - served)
    mean = float(products.mean())
    bounds = interval(lambda draws: draws @ products / draws.sum(axis=1), len(products))
    low, high = bounds or (None, None)
    return Compared(candidate=mean, difference=mean, low=low, high=high, runs=runs)
