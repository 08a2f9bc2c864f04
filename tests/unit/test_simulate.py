"""The made-up rows: repeatable, scored as promised, strange exactly where they say so."""

import itertools
import json
import re
from collections import defaultdict
from datetime import UTC, datetime, timedelta, timezone

import pytest

from babylon_tasks.simulation import simulate
from babylon_tasks.simulation.simulate import (
    MALFORMED,
    NEVER_COUNTS,
    ODD,
    TrajectoryRow,
    WindowRows,
)

NOW = datetime(2026, 3, 1, 15, 20, 7)


def rows(windows: int = 4, agents: int = 3, seed: int = 1, **more: object) -> list[WindowRows]:
    return list(simulate.simulate(windows, agents, seed, NOW, **more))  # type: ignore[arg-type]


def counted(window: WindowRows) -> list[TrajectoryRow]:
    bad = {*window.malformed, *window.never_counts}
    return [row for row in window.trajectories if row.trajectory_id not in bad]


def heuristic(window: WindowRows) -> dict[str, float]:
    """Upstream's formula by hand, from the rows that count; by agent."""
    runs: dict[str, list[list[dict]]] = defaultdict(list)
    for row in counted(window):
        runs[row.agent_id].append(json.loads(row.steps_json))
    scores = {}
    for agent_id, trajectories in runs.items():
        pnls = [float(steps[-1]["environmentState"]["agentPnL"]) for steps in trajectories]
        wins, losses = sum(p > 0 for p in pnls), sum(p < 0 for p in pnls)
        rate = wins / (wins + losses) if wins + losses else 0.5
        money = min(1.0, max(0.0, (sum(pnls) + 1000) / 2000))
        actions = sum(len(steps) for steps in trajectories)
        scores[agent_id] = 0.5 * money + 0.3 * rate + 0.2 * min(1.0, actions / 20)
    return scores


def test_same_arguments_make_the_same_rows() -> None:
    assert rows(seed=3) == rows(seed=3)
    assert rows(seed=3) != rows(seed=4)


def test_now_with_a_time_zone_means_the_same_moment() -> None:
    east = NOW.replace(tzinfo=UTC).astimezone(timezone(timedelta(hours=5)))
    assert list(simulate.simulate(1, 2, 1, east)) == list(simulate.simulate(1, 2, 1, NOW))


def test_windows_are_the_past_hours() -> None:
    made = [(w.window_id, w.kind) for w in rows(windows=2)]
    assert made == [
        ("2026-03-01T10:00", "too_few"),
        ("2026-03-01T11:00", "no_signal"),
        ("2026-03-01T12:00", "good"),
        ("2026-03-01T13:00", "good"),
        ("2026-03-01T15:00", "unfinished"),
    ]
    assert [w.kind for w in rows(windows=2, odd=False)] == ["good", "good"]


def test_rows_lie_inside_their_window() -> None:
    for window in rows():
        start = datetime.fromisoformat(window.window_id)
        for row in window.trajectories:
            assert start <= row.start_time < row.end_time <= start + timedelta(hours=1)
            assert row.end_time <= NOW
            assert row.duration_ms == (row.end_time - row.start_time) // timedelta(milliseconds=1)
        for outcome in window.outcomes:
            late = outcome.created_at - start - timedelta(hours=1)
            assert timedelta(0) < late < timedelta(minutes=5)


@pytest.mark.parametrize("seed", range(20))
def test_scores_differ_where_they_should(seed: int) -> None:
    for window in rows(agents=2 + seed % 4, seed=seed):
        scores = list(heuristic(window).values())
        if window.kind == "good":
            assert max(scores) - min(scores) > 0.05
        if window.kind == "no_signal":
            assert len(scores) >= 2
            assert len(set(scores)) == 1
        if window.kind == "too_few":
            assert len(scores) == 1


def test_skilled_agents_earn_more() -> None:
    pnl: dict[bool, list[float]] = {True: [], False: []}
    for window in rows(windows=40, agents=8, odd=False):
        skill = {a.id: a.skill for a in window.agents}
        for row in window.trajectories:
            pnl[skill[row.agent_id] > 0.55].append(row.final_pnl)
    able, poor = (sum(pnl[k]) / len(pnl[k]) for k in (True, False))
    assert able > 50 > -50 > poor
    assert all(0.2 <= simulate.agent(i, 1).skill <= 0.9 for i in range(200))


def test_good_rows_are_as_the_app_writes_them() -> None:
    lengths = set()
    for window in rows(windows=6, agents=4, odd=False):
        for row in counted(window):
            steps = json.loads(row.steps_json)
            lengths.add(len(steps))
            assert [s["stepNumber"] for s in steps] == list(range(row.episode_length))
            assert steps[-1]["environmentState"]["agentPnL"] == row.final_pnl
            assert row.total_reward == pytest.approx(sum(s["reward"] for s in steps))
            assert row.window_id == row.scenario_id == window.window_id
            assert re.fullmatch(re.escape(window.window_id) + r"-\d{13}", row.episode_id)
            assert set(steps[0]) == {
                "stepNumber", "timestamp", "environmentState", "providerAccesses", "llmCalls",
                "action", "reward",
            }  # fmt: skip
            for step in steps:
                assert 1 <= len(step["llmCalls"]) <= 2
                assert step["action"]["success"] == ("error" not in step["action"])
                for call in step["llmCalls"]:
                    assert 50 <= len(call["systemPrompt"]) <= 300
                    assert 100 <= len(call["userPrompt"]) <= 800
                    if call["purpose"] == "action":
                        assert json.loads(call["response"])["action"] == call["actionType"]
            assert json.loads(row.metadata_json)["gameKnowledge"]["actualOutcomes"]
            assert json.loads(row.metrics_json)["finalPnL"] == row.final_pnl
    assert lengths <= set(range(3, 13))
    assert len(lengths) > 5


def test_ids_are_unique_and_look_like_snowflakes() -> None:
    ids = [
        an_id
        for seed in (1, 2)
        for w in rows(seed=seed)
        for an_id in (
            *(r.id for r in w.trajectories),
            *(r.trajectory_id for r in w.trajectories),
            *(o.id for o in w.outcomes),
        )
    ]
    assert len(ids) == len(set(ids))
    assert all(re.fullmatch(r"\d{17,19}", an_id) for an_id in ids)


@pytest.mark.parametrize("windows", [1, 2, 3, 7])
def test_every_fault_and_oddity_occurs_and_leaves_good_agents(windows: int) -> None:
    good = [w for w in rows(windows=windows, agents=2) if w.kind == "good"]
    assert sorted(v for w in good for v in w.malformed.values()) == sorted(MALFORMED)
    assert sorted(o for w in good for v in w.odd.values() for o in v) == sorted(ODD)
    for window in good:
        assert sorted(window.never_counts.values()) == sorted(NEVER_COUNTS)
        assert len({row.agent_id for row in counted(window)}) >= 2


def test_malformed_rows_are_malformed() -> None:
    found = {}
    for window in rows():
        for row in window.trajectories:
            if row.trajectory_id in window.malformed:
                found[window.malformed[row.trajectory_id]] = row.steps_json
    assert found["null"] == "null"
    assert found["empty"] == "[]"
    assert json.loads(found["not_a_list"])["steps"]
    assert json.loads(found["pnl_is_text"])[-1]["environmentState"]["agentPnL"] == "abc"
    with pytest.raises(json.JSONDecodeError):
        json.loads(found["truncated"])


def test_odd_rows_are_valid_and_odd() -> None:
    found: dict[str, TrajectoryRow] = {}
    for window in rows(windows=10, agents=3):
        for row in window.trajectories:
            row.steps_json.encode()  # no raw surrogate
            found |= dict.fromkeys(window.odd.get(row.trajectory_id, ()), row)
    steps = {what: json.loads(row.steps_json) for what, row in found.items()}
    assert set(found) == set(ODD)
    assert isinstance(steps["string_numbers"][-1]["environmentState"]["agentPnL"], str)
    assert steps["missing_state"][0]["environmentState"] == {}
    assert len(steps["many_calls"][0]["llmCalls"]) >= 3
    assert steps["no_calls"][1]["llmCalls"] == []
    assert "東京" in found["unicode"].steps_json
    assert "\\ud83d" in found["lone_surrogate"].steps_json
    assert "\\u0000" in found["nul_escape"].steps_json
    assert all("messages" in call for step in steps["messages"] for call in step["llmCalls"])
    assert all("prompt" in call for step in steps["prompt"] for call in step["llmCalls"])
    assert "image_url" in found["image"].steps_json
    assert steps["odd_step"][1]["action"] == "HOLD"
    assert found["scenario_only"].window_id is None
    assert found["scenario_only"].scenario_id.endswith(":00")
    assert found["scenario_prefix"].window_id is None
    assert found["scenario_prefix"].scenario_id.endswith(":00-btc")


def test_rows_that_never_count_say_so() -> None:
    for window in rows():
        for row in window.trajectories:
            kind = window.never_counts.get(row.trajectory_id)
            assert row.is_training_data == (kind != "not_training_data")
            assert row.is_evaluation == (kind == "evaluation")
            assert row.scenario_id.startswith("benchmark-") == (kind == "benchmark")


@pytest.mark.parametrize("target", [60_000, 300_000])
def test_steps_can_be_grown(target: int) -> None:
    for window in rows(windows=1, odd=False, steps_bytes=target):
        for row in window.trajectories:
            assert len(row.steps_json.encode()) == pytest.approx(target, rel=0.05)


def test_a_question_names_the_side_of_its_momentum() -> None:
    for seed in range(20):
        asked = simulate.question(seed)
        assert (asked.right_side == "YES") == ("momentum +" in asked.user_prompt)
    assert simulate.question(1) == simulate.question(1)


def test_calls_never_show_the_outcome() -> None:
    text = " ".join(
        c.user_prompt + c.response for c in itertools.islice(simulate.calls(1, 0.5), 500)
    )
    assert "outcome" not in text.lower()


@pytest.mark.parametrize(("windows", "agents"), [(0, 2), (1, 1)])
def test_too_little_is_refused(windows: int, agents: int) -> None:
    with pytest.raises(ValueError, match="at least"):
        rows(windows=windows, agents=agents)
