"""The lift: does the candidate make better runs likelier, and worse ones less likely?"""

from __future__ import annotations

import numpy as np

from babylon_tasks.evaluation.intervals import Floats, with_interval
from babylon_tasks.evaluation.windows import Windows
from babylon_tasks.records.exams import Compared

LEAST_RUNS = 6


def lift(rewards: Floats, windows: Windows, served: Floats, candidate: Floats) -> Compared:
    """Return the covariance within windows of the reward and of what became likelier.

    Σ (r - r̄) (Δ - Δ̄) / n, where Δ is the candidate's log-probability of a run less the served
    version's, and the means are those of the run's window. For small changes this is what the
    reward of the policy that answered would gain by the same change (the policy gradient; Kakade
    and Langford 2002). It needs no recorded log-probabilities. How hard a run is to
    say cancels in Δ, which is why it sees in 16 runs what `ranking` sees in 64.
    """
    # A window in which all did alike tells nothing.
    telling = [each for each in windows.members() if np.ptp(rewards[each]) > 0]
    runs = sum(map(len, telling))
    if runs < LEAST_RUNS:
        left_out = f"{runs} runs are of windows with unequal rewards, and {LEAST_RUNS} are needed"
        return Compared(runs=runs, left_out=left_out)
    products = np.concatenate(
        [_centred(rewards[each]) * _centred(candidate[each] - served[each]) for each in telling]
    )
    mean = float(products.mean())
    return with_interval(
        Compared(candidate=mean, difference=mean, runs=runs),
        lambda draws: draws @ products / runs,
        runs,
        fitted=1 + len(telling),
    )


def _centred(numbers: Floats) -> Floats:
    return np.asarray(numbers - numbers.mean())
