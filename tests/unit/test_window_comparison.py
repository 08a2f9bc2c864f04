"""What differs between two scorings of one window, worked out by hand."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from babylon_tasks.records.recorded_steps import Unusable
from babylon_tasks.records.scores import Score
from babylon_tasks.records.traces import Outcome
from babylon_tasks.records.windows import State, Window
from babylon_tasks.scoring.reading import ReadWindow
from babylon_tasks.scoring.scorer import Group
from babylon_tasks.scoring.verdict import Verdict
from babylon_tasks.scoring.window_comparison import (
    Differences,
    Mean,
    Move,
    compare_scores,
    largest,
    mean,
    unmatched,
)
from babylon_tasks.store.scores import StoredScore
from babylon_tasks.store.windows import Counts

HOUR = "2025-01-15T10:00"


def window(state: str = "scored") -> Window:
    return Window(
        window_id=HOUR,
        state=State(state),
        scoring=None,
        scorer="heuristic",
        score_rev=1,
        attempts=0,
        batch_id=None,
        trained_step=None,
        agents=4,
        trajectories=4,
        late=0,
        text_bytes=100,
        may_share=None,
        reason=None,
        last_error=None,
    )


def read(names: str, unusable: str = "", filtered: str = "") -> ReadWindow:
    outcomes = [Outcome(name, f"agent {name}", 0.0, 1, 0, 1, {}, 1, "text") for name in names]
    return ReadWindow(
        Group(HOUR, outcomes, {}, []),
        Counts(len(names), len(names)),
        {name: Unusable("broken", "") for name in unusable},
        set(filtered),
        Counter(),
        {},
    )


def verdict(why_skip: str | None = None, **scores: float) -> Verdict:
    made = [
        Score(name, f"agent {name}", score, score, {}, "", "text") for name, score in scores.items()
    ]
    return Verdict("correctness", made, why_skip)


def stored(**scores: float) -> dict[str, StoredScore]:
    return {name: StoredScore(score, "text", None, None) for name, score in scores.items()}


def test_ranks_that_move() -> None:
    compared = compare_scores(
        window(),
        stored(a=0.9, b=0.7, c=0.5, d=0.1),
        read("abcd"),
        verdict(a=0.2, b=0.8, c=0.6, d=0.6),
        {},
    )
    assert (compared.window_id, compared.scorer, compared.compared) == (HOUR, "heuristic", 4)
    # Ranks 1 2 3 4, then 4 1 2.5 2.5. Deviations from 2.5: -1.5 -0.5 0.5 1.5 and 1.5 -1.5 0 0, so
    # (-2.25 + 0.75) / sqrt(5 · 4.5).
    assert compared.spearman == pytest.approx(-0.3162, abs=1e-4)
    # bc and bd keep their order; ab, ac and ad turn; cd is tied: (2 - 3) / sqrt(6 · 5).
    assert compared.kendall == pytest.approx(-0.1826, abs=1e-4)
    assert compared.pairs_changed == pytest.approx(3 / 6)
    assert compared.moves == [
        Move(HOUR, "a", "agent a", 1, 4, 0.9, 0.2),
        Move(HOUR, "d", "agent d", 4, 2.5, 0.1, 0.6),
        Move(HOUR, "b", "agent b", 2, 1, 0.7, 0.8),
        Move(HOUR, "c", "agent c", 3, 2.5, 0.5, 0.6),
    ]
    assert compared.differences == Differences(0, 0, 0, 0, 0, 0)


def test_what_only_one_scoring_has_is_counted_and_not_compared() -> None:
    before = stored(a=0.1, b=0.2, c=0.3, gone=0.4, hidden=0.5, u=0.6, f=0.7)
    before["c"] = replace(before["c"], content_hash="another text")
    traces = read("abcno", unusable="uv", filtered="fg")
    assert unmatched(before, traces) == {"gone", "hidden", "n", "o"}
    compared = compare_scores(
        window(),
        before,
        traces,
        verdict(a=1, b=2, c=3, n=4, o=5),
        {"hidden": False, "n": False, "o": True},
    )
    assert compared.compared == 2
    assert compared.spearman == pytest.approx(1)
    assert compared.differences == Differences(
        deleted=1, unreadable=1, left_out_now=2, rewritten=1, left_out_before=1, written_since=1
    )


@pytest.mark.parametrize(
    ("state", "before"),
    [
        ("scored", State.SCORED),
        ("trained", State.SCORED),
        ("skipped", State.SKIPPED),
        ("due", None),
        ("failed", None),
    ],
)
def test_whether_it_would_train(state: str, before: State | None) -> None:
    kept = compare_scores(window(state), stored(a=0, b=1), read("ab"), verdict(a=0, b=1), {})
    assert (kept.before, kept.after, kept.why_skip) == (before, State.SCORED, None)
    flat = compare_scores(
        window(state), stored(a=0, b=1), read("ab"), verdict("no signal", a=0.5, b=0.5), {}
    )
    assert (flat.before, flat.after, flat.why_skip) == (before, State.SKIPPED, "no signal")
    assert (flat.spearman, flat.kendall, flat.pairs_changed) == (None, None, 0)


def test_a_window_that_was_too_small_has_nothing_to_compare() -> None:
    compared = compare_scores(window("skipped"), {}, read("ab"), verdict(a=0, b=1), {})
    assert (compared.compared, compared.pairs_changed, compared.moves) == (0, None, [])
    assert compared.differences == Differences(0, 0, 0, 0, 0, 0)


def test_a_mean_is_over_those_that_have_the_figure() -> None:
    assert mean([0.5, None, 1.0]) == Mean(0.75, 2)
    assert mean([None]) == Mean(None, 0)


def test_the_largest_moves_come_first_and_equal_ones_by_name() -> None:
    moves = [Move(HOUR, name, "", 3, rank, 0, 0) for name, rank in [("b", 1), ("c", 7), ("a", 5)]]
    assert [each.trajectory_id for each in largest(moves, 2)] == ["c", "a"]
