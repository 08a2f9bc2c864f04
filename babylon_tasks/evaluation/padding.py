"""The padding: does the candidate answer longer, where the scores are paid by length?"""

from __future__ import annotations

import numpy as np
from msgspec.structs import replace

from babylon_tasks.evaluation.intervals import Floats, interval
from babylon_tasks.evaluation.lift import lift
from babylon_tasks.evaluation.windows import Windows
from babylon_tasks.records.exams import Compared

# A correlation that leaves less than three quarters of the scores' variance to anything else. Long
# answers may be better ones; a judge of content is not known to follow length so closely.
FOLLOWS = 0.5


def padding(
    rewards: Floats, lengths: Floats, windows: Windows, served: Floats, candidate: Floats
) -> Compared:
    """Return the covariance within windows of an answer's length and of what became likelier.

    It is `lift` with lengths, in tokens a call, in place of the rewards. It has an interval only
    where the rewards follow the length: then a step that answers longer was taught by that alone,
    and neither `lift` nor an experiment would tell, since they ask the same scores.
    """
    figure = lift(lengths, windows, served, candidate)
    if not len(rewards):
        return figure
    if figure.left_out or not _follow(rewards, lengths, windows):
        return replace(figure, low=None, high=None, left_out=None)
    return figure


def _follow(rewards: Floats, lengths: Floats, windows: Windows) -> bool:
    """Tell whether rewards and lengths are correlated within windows by `FOLLOWS`, for certain."""
    x, y = windows.centred(rewards), windows.centred(lengths)
    products = np.stack([x * y, x * x, y * y], axis=1)

    def correlation(draws: Floats) -> Floats:
        both, of_rewards, of_lengths = (draws @ products).T
        return np.asarray(both / np.sqrt(of_rewards * of_lengths))

    bounds = interval(correlation, len(rewards), fitted=1 + windows.count)
    return bounds is not None and bounds[0] > FOLLOWS
