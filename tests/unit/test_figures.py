"""The figures of an exam, against numbers worked out by hand."""

from __future__ import annotations

from dataclasses import replace
from math import log, nan

import numpy as np
import pytest

from babylon_tasks.evaluation.figures import Answered, ExaminedRun, compare
from babylon_tasks.evaluation.intervals import Clusters, interval, tail_of
from babylon_tasks.records.exams import Compared

HOUR = "2025-01-15T10:00"
NEXT = "2025-01-15T11:00"


def run(
    number: int,
    reward: float,
    served: float = 0.0,
    candidate: float = 0.0,
    recorded: float | None = 0.0,
    window: str = HOUR,
    tokens: int = 10,
) -> ExaminedRun:
    return ExaminedRun(f"t{number}", window, reward, tokens, served, candidate, recorded)


def answers(well_formed: list[bool], tokens: int = 10, each: int = 1) -> list[Answered]:
    """Return answers to `each` prompts of every trajectory."""
    return [
        Answered(f"t{n // each}", well, False, tokens, True) for n, well in enumerate(well_formed)
    ]


def of_runs(name: str, runs: list[ExaminedRun]) -> Compared:
    return compare(runs, [], [])[name]


def of_answers(name: str, served: list[Answered], candidate: list[Answered]) -> Compared:
    return compare([], served, candidate)[name]


def test_value_by_hand() -> None:
    # The candidate says the four runs with reward 1 three times as often as who answered, and the
    # others as often: 4 · 3 · 1 / (4 · 3 + 4 · 1) = 0.75. Its weights' sum squared is 256, the sum
    # of their squares 4 · 9 + 4 · 1 = 40: 6.4 runs. The served version is who answered.
    runs = [run(n, n % 2, candidate=log(3) * (n % 2)) for n in range(8)]
    value = of_runs("value", runs)
    assert (value.served, value.candidate) == (0.5, pytest.approx(0.75))
    assert value.difference == pytest.approx(0.25)
    assert (value.runs, value.samples, value.left_out) == (8, pytest.approx(6.4), None)
    assert value.low is not None
    assert value.high is not None
    assert value.low < 0.25 < value.high
    # Only ratios of weights matter, so neither does a thousand nats more overflow.
    far = [replace(each, candidate_logprob=each.candidate_logprob + 1e4) for each in runs]
    assert of_runs("value", far).candidate == pytest.approx(0.75)


def test_value_compares_within_windows() -> None:
    # Four runs of an hour with rewards 0 0 1 1, four of one with 0.8 1 0.8 1. Centred: ±0.5 and
    # ±0.1; the mean of all is (0.5 + 0.9) / 2 = 0.7. The candidate weighs the second hour twice and
    # nothing else: Σ w (r - r̄) stays 0. Without the windows it would gain (0.5 + 2 · 0.9) / 3.
    runs = [run(n, float(n // 2)) for n in range(4)]
    runs += [run(n, 0.8 + 0.2 * (n % 2), candidate=log(2), window=NEXT) for n in range(4, 8)]
    value = of_runs("value", runs)
    assert (value.served, value.candidate) == (pytest.approx(0.7), pytest.approx(0.7))


def test_value_is_left_out_where_it_cannot_be_told() -> None:
    runs = [run(n, n % 2, recorded=0.0 if n < 7 else None) for n in range(20)]
    few = of_runs("value", runs)
    assert few.left_out == "7 runs have recorded log-probabilities, and 8 are needed"
    assert few.candidate is None
    # One run in 20 has nearly all of the weight.
    one = of_runs("value", [run(n, n % 2, candidate=100.0 * (n == 3)) for n in range(20)])
    assert one.left_out == (
        "the versions are too far from who answered: 20 runs count as 1.0, and 4.0 are needed"
    )
    # Weights 1 for 45 runs, and e^30 for 5 of 100: they count as 5, a tenth of them is 10.
    five = of_runs("value", [run(n, n % 2, served=30.0 * (n < 5)) for n in range(100)])
    assert five.samples == pytest.approx(5)
    assert five.left_out is not None


def test_ranking_by_hand() -> None:
    # Nats a token. Served: -1 -2 -3 for rewards 1 2 3: of three pairs none is right. Candidate:
    # -3 -2 -2: two are right, and the tie counts one half. In the other window all are right in
    # both. So (0 + 3) / 6 and (2.5 + 3) / 6. Across windows nothing is compared: -9 is not.
    served, candidate, tokens = [-1.0, -2.0, -3.0], [-3.0, -2.0, -2.0], [10, 20, 30]
    runs = [
        run(n, n + 1.0, s * t, c * t, tokens=t)
        for n, (s, c, t) in enumerate(zip(served, candidate, tokens, strict=True))
    ]
    runs += [run(3 + n, float(n), -9.0 + n, -9.0 + n, window=NEXT) for n in range(3)]
    ranking = of_runs("ranking", runs)
    assert ranking.served == pytest.approx(3 / 6)
    assert ranking.candidate == pytest.approx(5.5 / 6)
    assert (ranking.runs, ranking.difference) == (6, pytest.approx(2.5 / 6))


def test_ranking_needs_pairs() -> None:
    few = of_runs("ranking", [run(n, float(n == 0)) for n in range(5)])
    assert few.left_out == (
        "5 runs differ in reward from others of their window, in 4 pairs; 5 and 6 are needed"
    )
    assert of_runs("ranking", [run(n, 0.5) for n in range(9)]).runs == 0


def test_padding_by_hand() -> None:
    """Where the longer runs have the better rewards, and became likelier."""
    # Lengths of 10 and 20 tokens, centred ±5; the longer gained 0.4 nats, centred ±0.2: 5 · 0.2.
    runs = [run(n, n % 2, 0.0, 0.4 * (n % 2), tokens=10 + 10 * (n % 2)) for n in range(16)]
    padding = of_runs("padding", runs)
    assert padding.difference == pytest.approx(1.0)
    assert padding.low == pytest.approx(1.0)
    # Two calls of 10 tokens are no longer than one.
    two = [replace(each, calls=each.tokens // 10) for each in runs]
    assert of_runs("padding", two).low is None
    # What was done badly has the lowest reward, however long it is: no scorer said so.
    broken = [replace(runs[1], reward=0.0, tokens=90, badly=True)] * 6
    assert of_runs("padding", runs + broken) == padding
    # Where others are paid than the longer ones, a longer answer is nobody's fault.
    others = [replace(each, reward=float(n % 4 > 1)) for n, each in enumerate(runs)]
    assert of_runs("padding", others).difference == pytest.approx(1.0)
    assert of_runs("padding", others).low is None


def test_lift_by_hand() -> None:
    # Centred rewards ±0.5 and -+0.25; runs with the better reward gained 0.4 nats and 0 on the
    # others: centred ±0.2. Products 0.5 · 0.2 in the first window, 0.25 · -0.2 in the second, where
    # the worse gained. Mean of 4 · 0.1 and 4 · -0.05: 0.025. How likely a run is plays no part.
    runs = [run(n, n % 2, -5.0 * n, -5.0 * n + 0.4 * (n % 2)) for n in range(4)]
    runs += [
        run(n, 0.5 * (n % 2), -7.0 * n, -7.0 * n + 0.4 * (n % 2 == 0), window=NEXT)
        for n in range(4, 8)
    ]
    lift = of_runs("lift", runs)
    assert (lift.served, lift.candidate) == (None, pytest.approx(0.025))
    assert lift.runs == 8
    # A window in which all did alike tells nothing, whatever was gained there.
    alike = [run(8 + n, 0.1, 0.0, 5.0 * n, window="2025-01-15T12:00") for n in range(30)]
    assert of_runs("lift", runs + alike) == lift
    assert of_runs("lift", alike).left_out == (
        "0 runs are of windows with unequal rewards, and 6 are needed"
    )


def test_a_version_beside_itself_differs_in_nothing() -> None:
    rng = np.random.default_rng(1)
    runs = [run(n, rng.random(), p := -rng.random() * 50, p + 0.3, p - 1) for n in range(30)]
    figures = compare(runs, answers([True] * 20), answers([True] * 20))
    for name in ("value", "ranking", "lift", "form", "length"):
        figure = figures[name]
        assert (figure.low, figure.high) == (0, 0), name  # not a rounding error on one side


def test_shares_by_hand() -> None:
    # Five trajectories with two answers each. Served: all well-formed. Candidate: not the second
    # ones of four: 6 of 10.
    served = answers([True] * 10, each=2)
    candidate = answers([True, False] * 4 + [True, True], each=2)
    form = of_answers("form", served, candidate)
    assert (form.served, form.candidate) == (1, 0.6)
    assert form.difference == pytest.approx(-0.4)
    assert (form.runs, form.samples) == (5, 10)
    # No draw of five trajectories loses more than each second answer. The fifth alone is drawn once
    # in 5^5 = 3125 times, less than the 0.1 % that are left out; four times the fifth and another
    # come in 4 · 5 of 3125, which lose one answer of ten.
    assert (form.low, form.high) == (-0.5, -0.1)
    refusing = [replace(each, unusable=n < 3) for n, each in enumerate(served)]
    assert of_answers("unusable", served, refusing).difference == pytest.approx(0.3)
    endless = [replace(each, ended=False) for each in served]
    assert of_answers("ended", served, endless).candidate == 0


def test_few_trajectories_have_no_interval() -> None:
    form = of_answers("form", answers([True] * 8, each=2), answers([False] * 8, each=2))
    assert (form.served, form.candidate, form.low) == (1, 0, None)
    assert form.left_out == "4 trajectories are too few for an interval"


def test_kl_by_hand() -> None:
    # Of the candidate's own answers, ten tokens each: -5 against -8, and -5 against -7: (3 + 2) of
    # 20 tokens. One answer is not known to the served version.
    own = [
        Answered(f"t{n}", True, False, 10, True, -5.0, served)
        for n, served in enumerate([-8.0, -7.0, None])
    ]
    kl = of_answers("kl", answers([True] * 3), own)
    assert (kl.served, kl.candidate) == (None, 0.25)
    assert (kl.runs, kl.samples) == (2, 2)


def test_length_has_the_interval_of_the_ratio() -> None:
    # Answers of t0 are twice as long, in both versions; the candidate's are 1.5 times as long.
    # Whatever is drawn, the ratio is 1.5: half of the served version's mean, (20 + 9 · 10) / 10.
    def of(factor: float) -> list[Answered]:
        return [
            replace(each, tokens=round(factor * (20 if n == 0 else 10)))
            for n, each in enumerate(answers([True] * 10))
        ]

    length = of_answers("length", of(1), of(1.5))
    assert (length.served, length.candidate, length.difference) == (11, 16.5, 5.5)
    assert (length.low, length.high) == (5.5, 5.5)


def test_entropy_by_hand() -> None:
    # 3 + 5 nats of 10 + 30 tokens, and 5 + 7.
    runs = [
        replace(run(0, 0.0), served_entropy=3.0, candidate_entropy=5.0),
        replace(run(1, 1.0, tokens=30), served_entropy=5.0, candidate_entropy=7.0),
        run(2, 0.5),
    ]
    entropy = of_runs("entropy", runs)
    assert (entropy.served, entropy.candidate, entropy.runs) == (0.2, 0.3, 2)


def test_answers_of_unequal_prompts_are_refused() -> None:
    with pytest.raises(ValueError, match="unequal trajectories"):
        compare([], answers([True] * 4), answers([True] * 4, each=2))


def test_what_is_not_finite_is_left_out() -> None:
    runs = [run(n, n % 2, candidate=0.1 * n) for n in range(12)]
    bad = replace(runs[0], candidate_logprob=nan)
    assert compare([bad, *runs], [], []) == compare(runs, [], [])


def test_nothing_at_all_has_no_figure() -> None:
    figures = compare([], [], [])
    assert all(each.left_out and each.candidate is None for each in figures.values())


def test_an_interval_is_the_same_again_and_as_wide_as_theory_says() -> None:
    # Fifty times -1 and fifty times 1: the mean's standard error is 1 / √99, its 95 % interval
    # 0 ± 1.984 / √99 = 0 ± 0.199.
    numbers = np.array([-1.0, 1.0] * 50)
    first = interval(lambda draws: draws @ numbers / 100, 100)
    assert first == pytest.approx((-0.199, 0.199), abs=0.02)
    assert interval(lambda draws: draws @ numbers / 100, 100) == first


def test_few_clusters_widen_an_interval() -> None:
    # Student's t of 5 degrees is 2.571; 2.571 · √(6 / 5) = 2.816, beyond which 0.24 % lie.
    assert tail_of(6) == pytest.approx(0.0024, abs=1e-4)
    # Of many it is the normal distribution's 2.5 %.
    assert tail_of(100_000) == pytest.approx(0.025, abs=1e-4)
    assert interval(lambda draws: draws[:, 0], 4) is None


def test_draws_in_which_nothing_can_be_told_do_not_count() -> None:
    assert interval(lambda draws: draws[:, 0] / draws[:, 0], 5) == (1, 1)  # 67 % have the first
    assert interval(lambda draws: np.full(len(draws), nan), 5) is None


def test_clusters_sum_by_name() -> None:
    assert Clusters(["b", "a", "b"]).sums([1, 2, 3]).tolist() == [4, 2]
