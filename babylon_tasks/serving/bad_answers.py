"""Whether a version fails more agents than the one that serves: errors and malformed answers.

Nobody waits for scores for that, and it is looked at every few seconds, so the test may be looked
at at any time: a product of likelihood ratios, which under equal risks exceeds 1/alpha at any look
with a probability of at most alpha (Ville 1939; Turner, Ly and Grünwald, "Generic E-variables for
exact sequential k-sample tests that allow for optional stopping", 2022).

The unit is an agent in a window, failed if FAILED_PART of its requests went badly. Answers to one
agent are much alike: one agent whose prompt no version can answer would otherwise look like
hundreds of failures of the version that it was drawn for.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from babylon_tasks.records.experiments import FailedAgents

# A version that is no worse is ended by this in at most one experiment of a hundred; that costs a
# version, not the agents.
ALPHA = 0.01

# A version that fails so much more of its agents is no longer asked what it earns. A smaller loss
# of form is in what it earns as well, and an honest step may have it.
FAR = 0.1

# By how much a version's risk to fail an agent may be larger: each counts as much as another. With
# 20 % of the agents, four that are failed and none of the served version are enough.
_RATIOS = (2.0, 4.0, 8.0, 16.0)


def evidence(windows: Iterable[FailedAgents]) -> float:
    """Return how many times better a larger risk of the candidate explains who was failed.

    With equal risks, a failed agent is one of the candidate's with probability q, their part of the
    window's agents; with a risk R times as large, with probability R q / (1 + q (R - 1)). The
    likelihood ratio of c failed agents of the candidate and s of the served version is
    R^c / (1 + q (R - 1))^(c + s); windows multiply, and the ratios R have equal weights.
    """
    logs = [0.0 for _ in _RATIOS]
    for window in windows:
        agents = window.served + window.candidate
        if not window.served or not window.candidate:
            continue  # nothing to compare with
        part = window.candidate / agents
        failed = window.candidate_failed + window.served_failed
        for place, ratio in enumerate(_RATIOS):
            logs[place] += window.candidate_failed * math.log(ratio)
            logs[place] -= failed * math.log1p(part * (ratio - 1))
    most = max(logs)
    return (
        math.exp(min(most, 700.0)) * math.fsum(math.exp(each - most) for each in logs) / len(logs)
    )


def is_worse(windows: Iterable[FailedAgents]) -> bool:
    """Tell whether the candidate fails more agents than the version that serves, by far."""
    windows = [each for each in windows if each.served and each.candidate]
    served = sum(w.served_failed for w in windows) / max(1, sum(w.served for w in windows))
    candidate = sum(w.candidate_failed for w in windows) / max(1, sum(w.candidate for w in windows))
    return candidate - served > FAR and evidence(windows) >= 1 / ALPHA
