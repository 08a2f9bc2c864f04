"""The off-policy value: the reward that a version would have had, by the runs of other policies."""

from __future__ import annotations

import numpy as np

from babylon_tasks.evaluation.intervals import Floats, with_interval
from babylon_tasks.evaluation.windows import Windows
from babylon_tasks.records.exams import Compared

LEAST_RUNS = 8
# Below these, a few runs decide, and the interval does not know it: it is made of the same few.
LEAST_SAMPLES = 4.0
LEAST_SHARE = 0.1  # of the runs


def value(rewards: Floats, windows: Windows, served: Floats, candidate: Floats) -> Compared:
    """Compare the versions' self-normalised weighted importance sampling of the reward.

    `served` and `candidate` are log weights, a run each: the version's log-probability of the run
    less that of the policy that answered. A version's value is Σ w r / Σ w (Precup, Sutton and
    Singh 2000), with the effective sample size (Σ w)² / Σ w² (Kish 1965). Rewards compare within a
    window only, so r is the reward less its window's mean, to which the mean of all is added.
    """
    runs = len(rewards)
    if runs < LEAST_RUNS:
        return Compared(
            runs=runs,
            left_out=f"{runs} runs have recorded log-probabilities, and {LEAST_RUNS} are needed",
        )
    weights = [np.exp(each - each.max()) for each in (served, candidate)]
    samples = min(float(w.sum() ** 2 / (w**2).sum()) for w in weights)
    needed = max(LEAST_SAMPLES, LEAST_SHARE * runs)
    if samples < needed:
        left_out = (
            f"the versions are too far from who answered: {runs} runs count as {samples:.1f}, and "
            f"{needed:.1f} are needed"
        )
        return Compared(runs=runs, samples=samples, left_out=left_out)
    centred, level = windows.centred(rewards), float(rewards.mean())

    def gain(draws: Floats, w: Floats) -> Floats:
        return np.asarray((draws @ (w * centred)) / (draws @ w))

    once = np.ones((1, runs))
    values = [level + float(gain(once, w)[0]) for w in weights]
    figure = Compared(
        served=values[0],
        candidate=values[1],
        difference=values[1] - values[0],
        runs=runs,
        samples=samples,
    )
    return with_interval(
        figure,
        lambda draws: gain(draws, weights[1]) - gain(draws, weights[0]),
        runs,
        fitted=windows.count,
    )
