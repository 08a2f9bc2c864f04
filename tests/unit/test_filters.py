"""Which trajectories deserve a score: each reason, their order, and what is drawn."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from babylon_tasks.records.recorded_steps import RawTrace
from babylon_tasks.records.scores import no_signal
from babylon_tasks.records.traces import Outcome, decode
from babylon_tasks.scoring.filters import STAGES, apply
from babylon_tasks.settings import Settings
from babylon_tasks.simulation.simulate import simulate

WINDOW = "2026-03-01T10:00"


def run(name: str = "t1", **changes: Any) -> Outcome:
    """A run that the defaults keep; its content is its own."""
    plain = Outcome(name, f"agent-{name}", 0.0, 10, 0, 10, {}, 100, f"content-{name}")
    return replace(plain, **changes)


def many(count: int, prefix: str = "t") -> list[Outcome]:
    return [run(f"{prefix}-{n}") for n in range(count)]


def kept(outcomes: list[Outcome], window_id: str = WINDOW, **changes: Any) -> list[str]:
    """Ids of those kept, having checked that the counts add up."""
    found, left_out = apply(outcomes, Settings(**changes), window_id)
    assert len(found) + left_out.total() == len(outcomes)
    assert set(left_out) <= set(STAGES["trajectories"])
    return [outcome.trajectory_id for outcome in found]


def reasons(outcomes: list[Outcome], **changes: Any) -> Counter[str]:
    return +apply(outcomes, Settings(**changes), WINDOW)[1]


def test_the_defaults_keep_a_normal_window_in_its_order() -> None:
    rows = simulate(1, 20, 7, datetime(2026, 3, 1, tzinfo=UTC), odd=False)
    outcomes = [
        decode(RawTrace(row.trajectory_id, row.agent_id, 0, row.steps_json)).outcome
        for window in rows
        for row in window.trajectories
    ]
    assert len(outcomes) >= 20
    assert kept(outcomes) == [outcome.trajectory_id for outcome in outcomes]


@pytest.mark.parametrize(
    ("changes", "settings", "reason"),
    [
        ({"steps": 4}, {"min_actions": 5}, "few_actions"),
        ({"steps": 5}, {"min_actions": 5}, None),
        ({"failed": 5}, {}, None),  # half of ten, and MAX_FAILED_SHARE is half
        ({"failed": 6}, {}, "failed_actions"),
        ({"failed": 1}, {"max_failed_share": 0.0}, "failed_actions"),
        ({"failed": 0}, {"max_failed_share": 0.0}, None),
        ({"failed": 10}, {"max_failed_share": 1.0}, None),
        # 0.57 · 100 is 56.99999999999999 as floats go, and 57 of 100 are not more than 0.57.
        ({"steps": 100, "failed": 57}, {"max_failed_share": 0.57}, None),
        ({"steps": 100, "failed": 58}, {"max_failed_share": 0.57}, "failed_actions"),
    ],
)
def test_actions(changes: dict[str, Any], settings: dict[str, Any], reason: str | None) -> None:
    expected = {} if reason is None else {reason: 1}
    assert reasons([run(**changes)], **settings) == expected


def test_a_duplicate_is_the_same_agents_same_calls() -> None:
    first = run("t1", agent_id="a", content_hash="same")
    again = replace(first, trajectory_id="t2")
    other_agent = replace(first, trajectory_id="t3", agent_id="b")
    other_calls = replace(first, trajectory_id="t4", content_hash="other")
    assert kept([first, again, other_agent, other_calls]) == ["t1", "t3", "t4"]
    assert reasons([first, again, replace(again, trajectory_id="t5")]) == {"duplicate": 2}


def test_runs_without_calls_are_alike_and_no_duplicates() -> None:
    silent = run("t1", agent_id="a", content_hash="nothing", calls=0)
    assert kept([silent, replace(silent, trajectory_id="t2")]) == ["t1", "t2"]


def test_the_first_reason_counts() -> None:
    """In the order of STAGES, whatever else is wrong."""
    first = run("t1", agent_id="a", content_hash="same")
    worst = replace(first, trajectory_id="t2", steps=2, failed=2)
    assert reasons([first, worst], min_actions=5) == {"few_actions": 1}
    assert reasons([first, worst]) == {"failed_actions": 1}
    # t-0, t-1, …: half of them are drawn, and a copy has no second chance.
    runs = many(50)
    copies = [replace(each, trajectory_id=f"copy-{n}") for n, each in enumerate(runs)]
    names = kept(runs, dropout=0.5)
    assert 0 < len(names) < 50
    left = reasons([*runs, *copies], dropout=0.5)
    assert left["duplicate"] == 50
    assert left["dropout"] == 50 - len(names)


def test_what_is_left_out_makes_no_later_one_a_duplicate() -> None:
    failed = run("t1", agent_id="a", content_hash="same", failed=9)
    assert kept([failed, replace(failed, trajectory_id="t2", failed=0)]) == ["t2"]


def test_dropout_leaves_out_its_share_and_always_the_same_ones() -> None:
    runs = many(2000)
    for share in (0.1, 0.3, 0.5):
        names = kept(runs, dropout=share)
        # The share's standard deviation is at most √(0.25 / 2000) = 0.011.
        assert 1 - len(names) / 2000 == pytest.approx(share, abs=0.03)
        assert kept(runs, dropout=share) == names
        assert sorted(kept(runs[::-1], dropout=share)) == sorted(names)
    # More dropout leaves out more, and none that less had left out comes back.
    assert set(kept(runs, dropout=0.5)) < set(kept(runs, dropout=0.1))
    assert kept(runs) == [each.trajectory_id for each in runs]


@pytest.mark.parametrize("settings", [{"dropout": 0.5}, {"max_per_window": 6}])
def test_no_agent_is_left_out_of_every_window(settings: dict[str, Any]) -> None:
    """Nor is any always kept; not even were its trajectory ids the same."""
    counts: Counter[str] = Counter()
    for hour in range(40):
        counts.update(kept(many(12), f"2026-03-01T{hour:02}:00", **settings))
    # Half of 12 in each of 40 windows: 20 an agent, with a standard deviation of √10 = 3.2.
    assert len(counts) == 12
    assert all(5 < count < 35 for count in counts.values())


def test_the_maximum_is_exact_and_drawn() -> None:
    runs = many(100)
    names = kept(runs, max_per_window=8)
    assert len(names) == 8
    assert names != [each.trajectory_id for each in runs[:8]]
    assert names == sorted(names, key=[each.trajectory_id for each in runs].index)
    assert reasons(runs, max_per_window=8) == {"over_maximum": 92}
    assert kept(runs[:8], max_per_window=8) == [each.trajectory_id for each in runs[:8]]
    assert sorted(kept(runs[::-1], max_per_window=8)) == sorted(names)


def test_the_maximum_stays_with_those_it_drew() -> None:
    """A late trajectory takes at most one place; nobody else's changes."""
    runs = many(60)
    before = set(kept(runs, max_per_window=20))
    for late in many(30, "late"):
        after = set(kept([*runs, late], max_per_window=20))
        assert after <= before | {late.trajectory_id}
    bad = [run(f"bad-{n}", failed=10) for n in range(30)]
    assert set(kept([*bad, *runs], max_per_window=20)) == before


def test_the_maximum_counts_what_dropout_left() -> None:
    left = reasons(many(100), dropout=0.5, max_per_window=10)
    assert left.total() == 90
    assert left["dropout"] == 100 - len(kept(many(100), dropout=0.5))


def test_two_draws_are_not_one() -> None:
    """Those that dropout kept by a hair would always be those over the maximum."""
    runs = many(400)
    low = kept(runs, max_per_window=200)
    dropped = set(kept(runs, dropout=0.5))
    # Independent halves share a quarter of 400, with a standard deviation of √75 = 8.7.
    assert 60 < len(dropped & set(low)) < 140


def test_nothing_comes_of_nothing() -> None:
    assert apply([], Settings(), WINDOW) == ([], Counter())


@given(
    st.lists(
        st.builds(
            run,
            st.integers(0, 10**6).map(lambda n: f"t{n}"),
            agent_id=st.sampled_from("ab"),
            steps=st.integers(1, 12),
            failed=st.integers(0, 12),
            calls=st.integers(0, 2),
            content_hash=st.sampled_from("xyz"),
        ),
        unique_by=lambda outcome: outcome.trajectory_id,
    ),
    st.sampled_from([None, 2, 5]),
    st.sampled_from([0.0, 0.5]),
)
def test_every_run_is_kept_or_counted_once(
    outcomes: list[Outcome], most: int | None, dropout: float
) -> None:
    names = kept(outcomes, max_per_window=most, dropout=dropout, min_actions=3)
    assert len(names) <= (most or len(outcomes))
    places = [outcome.trajectory_id for outcome in outcomes]
    assert names == sorted(names, key=places.index)


@pytest.mark.parametrize(
    ("rewards", "tolerance", "teaches"),
    [
        ([], 0.0, False),
        ([0.2, 0.2, 0.2], 0.0, False),
        ([0.25, 0.5], 0.25, True),  # reaches it exactly
        ([0.25, 0.5], 0.26, False),
        ([0.1, 0.9, 0.5], 0.8, True),
    ],
)
def test_the_spread_that_teaches(rewards: list[float], tolerance: float, teaches: bool) -> None:
    assert (no_signal(rewards, tolerance) is None) == teaches


def test_agents_take_turns_under_the_maximum() -> None:
    busy = [run(f"b{n}", agent_id="busy") for n in range(58)]
    others = [run("x", agent_id="x"), run("y", agent_id="y")]
    for hour in range(24):
        names = kept([*busy, *others], f"2026-03-01T{hour:02}:00", max_per_window=8)
        assert len(names) == 8
        assert {"x", "y"} < set(names)
