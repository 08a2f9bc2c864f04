"""Ranking accuracy: is the better of two runs the likelier one, and did that change?"""

from __future__ import annotations

import numpy as np

from babylon_tasks.evaluation.intervals import Floats, with_interval
from babylon_tasks.evaluation.windows import Windows
from babylon_tasks.records.exams import Compared

LEAST_RUNS = 5
LEAST_PAIRS = 6


def ranking(rewards: Floats, windows: Windows, served: Floats, candidate: Floats) -> Compared:
    """Compare the shares of pairs in which a version finds the better run likelier.

    `served` and `candidate` are log-probabilities a token. Pairs are of one window and of unequal
    rewards; a pair that a version finds equally likely counts one half.
    """
    pairs = []
    for runs in windows.members():
        better = rewards[runs][:, None] > rewards[runs][None, :]
        right = [_likelier(each[runs]) * better for each in (served, candidate)]
        pairs.append((runs, better.astype(np.float64), right[0], right[1]))
    count = int(sum(better.sum() for _, better, _, _ in pairs))
    in_pairs = sum(int((better + better.T).any(axis=0).sum()) for _, better, _, _ in pairs)
    if in_pairs < LEAST_RUNS or count < LEAST_PAIRS:
        left_out = (
            f"{in_pairs} runs differ in reward from others of their window, in {count} pairs; "
            f"{LEAST_RUNS} and {LEAST_PAIRS} are needed"
        )
        return Compared(runs=in_pairs, left_out=left_out)

    def difference(draws: Floats) -> Floats:
        gained = sum(_drawn(draws[:, runs], c - s) for runs, _, s, c in pairs)
        return np.asarray(gained / sum(_drawn(draws[:, runs], b) for runs, b, _, _ in pairs))

    accuracy = [float(sum(p[n].sum() for p in pairs)) / count for n in (2, 3)]
    figure = Compared(
        served=accuracy[0],
        candidate=accuracy[1],
        difference=accuracy[1] - accuracy[0],
        runs=in_pairs,
    )
    return with_interval(figure, difference, len(rewards))


def _likelier(logprobs: Floats) -> Floats:
    """Return 1 where the row's run is likelier than the column's, one half for a tie: [n, n]."""
    return np.asarray((1 + np.sign(logprobs[:, None] - logprobs[None, :])) / 2)


def _drawn(draws: Floats, pairs: Floats) -> Floats:
    """Sum numbers of pairs [n, n] over the runs as often as they were drawn [draws, n]: [draws]."""
    return np.asarray(((draws @ pairs) * draws).sum(axis=1))
