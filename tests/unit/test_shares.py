"""Shares: which agents are in one, and which one is in force."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from babylon_tasks.records.shares import Share, share_at, takes_share

AGENTS = [f"agent-{n}" for n in range(10_000)]
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


@pytest.mark.parametrize("percent", [1, 10, 50, 99])
def test_a_share_has_as_many_agents_as_it_says(percent: float) -> None:
    taken = sum(takes_share("babylon-agent", agent, percent) for agent in AGENTS)
    assert abs(taken / len(AGENTS) - percent / 100) < 0.025  # five standard deviations


@given(st.text(), st.text(), st.floats(0, 100), st.floats(0, 100))
def test_who_is_in_a_share_is_in_every_larger_one(
    lineage: str, agent: str, one: float, other: float
) -> None:
    smaller, larger = sorted((one, other))
    assert takes_share(lineage, agent, larger) or not takes_share(lineage, agent, smaller)
    assert not takes_share(lineage, agent, 0)
    assert takes_share(lineage, agent, 100)


def test_lineages_choose_their_agents_independently() -> None:
    both = sum(takes_share("one", a, 20) and takes_share("two", a, 20) for a in AGENTS)
    assert abs(both / len(AGENTS) - 0.04) < 0.01


def test_an_agent_never_changes_sides() -> None:
    """Written down: another hash would move agents between versions in the middle of a window."""
    chosen = [n for n in range(20) if takes_share("babylon-agent", f"agent-{n}", 25)]
    assert chosen == [7, 12, 18]


def test_a_share_with_a_draw_has_other_agents_in_each_window() -> None:
    drawn = Share(NOON, 4, 20.0, "experiment-7")
    hour = timedelta(hours=1)

    def taken(share: Share, moment: datetime) -> set[str]:
        return {agent for agent in AGENTS if share.takes("babylon-agent", agent, moment)}

    first, second = taken(drawn, NOON), taken(drawn, NOON + hour)
    assert first == taken(drawn, NOON + hour - timedelta(seconds=1))  # for the whole window
    assert abs(len(first) / 10_000 - 0.2) < 0.02
    assert abs(len(first & second) / 10_000 - 0.04) < 0.01  # independently
    assert taken(Share(NOON, 4, 20.0, "experiment-8"), NOON) != first
    assert first < taken(Share(NOON, 4, 40.0, "experiment-7"), NOON)
    always = Share(NOON, 4, 20.0)
    assert taken(always, NOON) == taken(always, NOON + hour)
    assert taken(always, NOON) == {a for a in AGENTS if takes_share("babylon-agent", a, 20)}


def test_the_agents_that_are_drawn_are_written_down() -> None:
    """Another draw would move agents between versions within a window: all replicas draw alike."""
    drawn = Share(NOON, 4, 25.0, "experiment-7")
    chosen = [n for n in range(20) if drawn.takes("babylon-agent", f"agent-{n}", NOON)]
    assert chosen == [1, 3, 18]


def test_the_newest_share_that_has_started_is_in_force() -> None:
    first, second = Share(NOON, 3, 10.0), Share(NOON + timedelta(hours=1), 4, 20.0)
    ended = Share(NOON + timedelta(hours=2), 4, 0.0)
    shares = [second, ended, first]
    minute = timedelta(minutes=1)
    assert share_at(shares, NOON - minute) is None
    assert share_at(shares, NOON) == share_at(shares, NOON + 59 * minute) == first
    assert share_at(shares, NOON + 60 * minute) == second
    assert share_at(shares, NOON + 120 * minute) is None
