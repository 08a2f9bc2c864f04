"""The verdict of an exam: each guard at its limit, and the sentence for a person."""

from __future__ import annotations

import pytest

from babylon_tasks.evaluation.figures import Answered, compare
from babylon_tasks.evaluation.verdict import GUARDS, judge
from babylon_tasks.records.exams import Compared, ExamState


def figure(
    served: float | None,
    candidate: float,
    low: float | None,
    high: float | None,
    samples: float | None = None,
) -> Compared:
    return Compared(
        served=served,
        candidate=candidate,
        difference=candidate - (served or 0.0),
        low=low,
        high=high,
        runs=32,
        samples=samples,
    )


FAILED = {
    "value": [
        (figure(0.52, 0.41, -0.2, -0.02, 20.5), "value fell from 0.52 to 0.41 (32 runs, -0.20 to "
         "-0.02)"),
    ],
    "lift": [
        (figure(None, -0.04, -0.07, -0.012), "better runs became less likely than worse ones, lift "
         "-0.04 (32 runs, -0.07 to -0.012)"),
    ],
    "ranking": [
        (figure(0.6, 0.5, -0.15, -0.05), "ranking fell from 0.60 to 0.50 (32 runs, -0.15 to "
         "-0.05)"),
    ],
    "padding": [
        (figure(None, 0.8, 0.3, 1.2), "longer answers became likelier, and the scores follow the "
         "length: padding 0.80 (32 runs, 0.30 to 1.20)"),
        # Uncertain, where nothing can be believed.
        (figure(None, 0.2, -0.1, 0.5), "longer answers became likelier, and the scores follow the "
         "length: padding 0.20 (32 runs, -0.10 to 0.50)"),
    ],
    "form": [
        (figure(0.98, 0.61, -0.52, -0.22, 32), "form fell from 0.98 to 0.61 (32 answers, -0.52 to "
         "-0.22)"),
        # Small, and certain.
        (figure(0.99, 0.95, -0.06, -0.02, 640), "form fell from 0.99 to 0.95 (640 answers, -0.06 "
         "to -0.02)"),
        # Large, and in four of sixteen answers.
        (figure(1, 0.75, -0.5, 0, 16), "form fell from 1.00 to 0.75 (16 answers, -0.50 to 0)"),
        # Without an interval.
        (figure(1, 0, None, None, 8), "form fell from 1.00 to 0 (8 answers)"),
    ],
    "unusable": [
        (figure(0, 0.25, 0.1, 0.4, 32), "share of unusable answers rose from 0 to 0.25 (32 "
         "answers, 0.10 to 0.40)"),
    ],
    "kl": [
        (figure(None, 1.2, 0.9, 1.5, 32), "KL to the served version is 1.20 nats a token "
         "(32 answers, 0.90 to 1.50; 0.5 may be)"),
    ],
    "length": [
        (figure(20, 40, 15, 26, 32), "length rose from 20.0 to 40.0 tokens (32 answers, 15.0 to "
         "26.0)"),
        (figure(200, 50, -170, -120, 32), "length fell from 200 to 50.0 tokens (32 answers, -170 "
         "to -120)"),
    ],
}  # fmt: skip


PASSED = {
    "value": [
        figure(0.5, 0.4, -0.3, 0.0),
        figure(0.4, 0.5, 0.02, 0.2),
        figure(0.5, 0.4995, -0.0008, -0.0002),  # certain, and nothing
    ],
    "lift": [
        figure(None, -0.04, -0.1, 0.01),
        figure(None, 0.04, 0.01, 0.1),
        figure(None, -0.0004, -0.0006, -0.0002),
    ],
    "ranking": [figure(0.6, 0.5, -0.2, 0.0)],
    "padding": [figure(None, 0.8, None, None), figure(None, -0.8, -1.2, -0.3)],
    "form": [
        figure(0.5, 1, 0.3, 0.7, 32),
        figure(0.99, 0.97, -0.03, -0.01, 10_000),  # certain, and what an honest step may lose
        figure(1, 0.8125, -0.4, 0, 16),  # three of sixteen
        figure(0.98, 0.89, -0.2, 0.01, 64),  # six of 64, and uncertain
    ],
    "unusable": [figure(0.3, 0, -0.4, -0.2, 32), figure(0, 0.09, 0, 0.2, 32)],
    "kl": [figure(None, 0.9, 0.4, 1.4, 32), figure(None, 0.02, 0.01, 0.03, 32)],
    "length": [
        figure(20, 24, 3, 5, 32),  # certain, and not a quarter
        figure(20, 40, 4, 36, 32),  # twice, and uncertain
        figure(200, 110, -100, -80, 32),
    ],
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "worse", "reason"), [(name, *each) for name, all_ in FAILED.items() for each in all_]
)
def test_a_worse_figure_fails(name: str, worse: Compared, reason: str) -> None:
    state, said, figures = judge({name: worse})
    assert (state, said) == (ExamState.FAILED, reason)
    assert figures[name].worse


@pytest.mark.parametrize(
    ("name", "other"), [(name, each) for name, all_ in PASSED.items() for each in all_]
)
def test_another_figure_passes(name: str, other: Compared) -> None:
    state, _, figures = judge({name: other})
    assert state is ExamState.PASSED
    assert not figures[name].worse


def test_every_guard_is_tried() -> None:
    assert set(FAILED) == set(PASSED) == set(GUARDS)


def test_all_that_failed_is_said() -> None:
    figures = {name: each[0][0] for name, each in FAILED.items()}
    state, reason, marked = judge(figures)
    assert state is ExamState.FAILED
    assert reason == "; ".join(each[0][1] for each in FAILED.values())
    assert all(each.worse for each in marked.values())


def test_a_pass_says_what_was_left_out() -> None:
    figures = {name: each[0] for name, each in PASSED.items()}
    assert judge(figures)[1] == "no figure is worse"
    figures["value"] = Compared(runs=3, left_out="3 runs have recorded log-probabilities")
    del figures["ranking"]
    state, reason, marked = judge(figures)
    assert (state, reason) == (ExamState.PASSED, "no figure is worse; left out: value, ranking")
    assert marked == figures


def test_entropy_and_endings_never_fail() -> None:
    collapsed = {"entropy": figure(2.0, 0.0, -2.1, -1.9), "ended": figure(1, 0, -1, -1, 32)}
    assert judge(collapsed)[0] is ExamState.PASSED


def test_a_version_that_lost_the_form_fails_from_its_answers_alone() -> None:
    def sampled(well_formed: bool) -> list[Answered]:
        return [Answered(f"t{n // 2}", well_formed, False, 9, True) for n in range(16)]

    state, reason, _ = judge(compare([], sampled(True), sampled(False)))
    assert state is ExamState.FAILED
    assert reason == "form fell from 1.00 to 0 (16 answers, -1.00 to -1.00)"
