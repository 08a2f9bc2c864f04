"""The figures of an exam: what two versions make of the same recorded runs and the same prompts.

`compare` is pure. Each figure is a `Compared`; docs/gate.md says what each means to a person.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import isfinite

import numpy as np

from babylon_tasks.evaluation.intervals import (
    Clusters,
    Floats,
    with_interval,
)
from babylon_tasks.evaluation.lift import lift
from babylon_tasks.evaluation.padding import padding
from babylon_tasks.evaluation.ranking import ranking
from babylon_tasks.evaluation.value import value
from babylon_tasks.evaluation.windows import Windows
from babylon_tasks.records.exams import Compared, Figures

# Shares of the sampled answers, by figure: what is true of an answer.
_SHARES = {"form": "well_formed", "unusable": "unusable", "ended": "ended"}
_NO_ANSWERS = "no answers were sampled"


@dataclass(frozen=True, slots=True)
class ExaminedRun:
    """What both versions make of a recorded run: sums over its response tokens, in nats.

    `reward` is its score among the runs of its window. `recorded_logprob` is that of the policy
    that answered, None unless every call of the run has it. `served_entropy` and
    `candidate_entropy` sum the entropies of the versions' distributions at its tokens. What was
    done `badly` has the lowest reward by rule; no scorer was asked.
    """

    trajectory_id: str
    window_id: str
    reward: float
    tokens: int
    served_logprob: float
    candidate_logprob: float
    recorded_logprob: float | None = None
    served_entropy: float | None = None
    candidate_entropy: float | None = None
    calls: int = 1
    badly: bool = False


@dataclass(frozen=True, slots=True)
class Answered:
    """An answer that a version was sampled for, to a prompt of a recorded trajectory.

    `ended`: it ended by itself, within the tokens that it was allowed. The sums of its tokens'
    log-probabilities, in nats, are known for answers of the candidate, or not.
    """

    trajectory_id: str
    well_formed: bool
    unusable: bool
    tokens: int
    ended: bool
    candidate_logprob: float | None = None
    served_logprob: float | None = None


def compare(
    runs: Sequence[ExaminedRun],
    served_answers: Sequence[Answered],
    candidate_answers: Sequence[Answered],
) -> Figures:
    """Return all figures, by name; one that cannot be told says why in `left_out`.

    The answers of both versions are to the same prompts, in the same order. A run of which a number
    is not finite is left out: the trainer tells of those.

    Raises:
        ValueError: The answers are not to the same trajectories' prompts.
    """
    clusters = Clusters([each.trajectory_id for each in served_answers])
    if [each.trajectory_id for each in candidate_answers] != clusters.names:
        raise ValueError("the versions answered the prompts of unequal trajectories")
    runs = [run for run in runs if run.tokens > 0 and _are_finite(run)]
    return {
        **_of_rewards(runs),
        **{
            name: _share(
                clusters,
                [getattr(each, field) for each in served_answers],
                [getattr(each, field) for each in candidate_answers],
            )
            for name, field in _SHARES.items()
        },
        "kl": _kl(candidate_answers),
        "length": _length(
            clusters,
            [each.tokens for each in served_answers],
            [each.tokens for each in candidate_answers],
        ),
        "entropy": _entropy(runs),
    }


def _are_finite(run: ExaminedRun) -> bool:
    return all(map(isfinite, (run.reward, run.served_logprob, run.candidate_logprob)))


def _array(numbers: Iterable[float]) -> Floats:
    return np.array(list(numbers), dtype=np.float64)


def _of_rewards(runs: Sequence[ExaminedRun]) -> Figures:
    """Return the figures that compare with the runs' rewards."""
    recorded = [(run, p) for run in runs if (p := run.recorded_logprob) is not None and isfinite(p)]
    rewards, windows = _array(run.reward for run in runs), Windows([run.window_id for run in runs])
    served = _array(run.served_logprob for run in runs)
    candidate = _array(run.candidate_logprob for run in runs)
    tokens = _array(run.tokens for run in runs)
    scored = [run for run in runs if not run.badly]
    return {
        "value": value(
            _array(run.reward for run, _ in recorded),
            Windows([run.window_id for run, _ in recorded]),
            _array(run.served_logprob - logprob for run, logprob in recorded),
            _array(run.candidate_logprob - logprob for run, logprob in recorded),
        ),
        "lift": lift(rewards, windows, served, candidate),
        "padding": padding(
            _array(run.reward for run in scored),
            _array(run.tokens / run.calls for run in scored),
            Windows([run.window_id for run in scored]),
            _array(run.served_logprob for run in scored),
            _array(run.candidate_logprob for run in scored),
        ),
        "ranking": ranking(rewards, windows, served / tokens, candidate / tokens),
    }


def _share(clusters: Clusters, served: Sequence[bool], candidate: Sequence[bool]) -> Compared:
    """Compare the shares of the answers for which something is true."""
    if not served:
        return Compared(left_out=_NO_ANSWERS)
    before, after = clusters.sums(served), clusters.sums(candidate)
    each = clusters.sums([1] * len(served))
    return with_interval(
        Compared(
            served=float(before.sum()) / len(served),
            candidate=float(after.sum()) / len(served),
            difference=float(after.sum() - before.sum()) / len(served),
            runs=len(each),
            samples=len(served),
        ),
        lambda draws: draws @ (after - before) / (draws @ each),
        len(each),
    )


def _kl(answers: Sequence[Answered]) -> Compared:
    """Estimate the candidate's KL divergence from the served version, in nats a token.

    The mean over the candidate's own answers of the log-ratio (Schulman 2020, "Approximating KL
    divergence": k1, without bias).
    """
    known = [
        (each, own - other)
        for each in answers
        if (own := each.candidate_logprob) is not None
        and (other := each.served_logprob) is not None
        and isfinite(own - other)
    ]
    clusters = Clusters([each.trajectory_id for each, _ in known])
    ratios = clusters.sums([ratio for _, ratio in known])
    tokens = clusters.sums([each.tokens for each, _ in known])
    if not tokens.sum():
        return Compared(left_out="no sampled answer has log-probabilities of both versions")
    kl = float(ratios.sum() / tokens.sum())
    return with_interval(
        Compared(candidate=kl, difference=kl, runs=len(ratios), samples=len(known)),
        lambda draws: (draws @ ratios) / (draws @ tokens),
        len(ratios),
    )


def _length(clusters: Clusters, served: Sequence[int], candidate: Sequence[int]) -> Compared:
    """Compare the mean tokens of an answer.

    The interval is that of the ratio of the means, in tokens of the served version's mean: that
    of `high / served` is `high` of the ratio, less one.
    """
    before, after = clusters.sums(served), clusters.sums(candidate)
    if not before.sum():
        return Compared(
            left_out="the served version's answers have no tokens" if served else _NO_ANSWERS
        )
    mean = float(before.sum()) / len(served)
    return with_interval(
        Compared(
            served=mean,
            candidate=float(after.sum()) / len(served),
            difference=float(after.sum() - before.sum()) / len(served),
            runs=len(before),
            samples=len(served),
        ),
        lambda draws: mean * ((draws @ after) / (draws @ before) - 1),
        len(before),
    )


def _entropy(runs: Sequence[ExaminedRun]) -> Compared:
    """Compare the mean entropy at the tokens of recorded answers, in nats a token."""
    known = [
        (served, candidate, run.tokens)
        for run in runs
        if (served := run.served_entropy) is not None
        and (candidate := run.candidate_entropy) is not None
        and isfinite(served - candidate)
    ]
    if not known:
        return Compared(left_out="no run has entropies of both versions")
    before, after, tokens = (_array(numbers) for numbers in zip(*known, strict=True))
    total = float(tokens.sum())
    return with_interval(
        Compared(
            served=float(before.sum()) / total,
            candidate=float(after.sum()) / total,
            difference=float(after.sum() - before.sum()) / total,
            runs=len(known),
        ),
        lambda draws: draws @ (after - before) / (draws @ tokens),
        len(known),
    )
