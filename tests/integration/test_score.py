"""Scoring: from due to scored or skipped, with bad traces set aside."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from babylon_tasks import pipeline
from babylon_tasks.errors import LeaseLost, StaleClaim
from babylon_tasks.scoring.heuristic import heuristic
from babylon_tasks.settings import Settings
from babylon_tasks.work.context import Context
from tests.clock import let_leases_run_out
from tests.rows import add_request, add_trajectory, add_window, hours_ago, one, query, states, steps


def test_scores_are_stored_and_the_window_moves_on(context: Context) -> None:
    window = hours_ago(2)
    ids = add_window(context, window)
    pipeline.produce(context)
    assert pipeline.score(context) == [window]
    assert pipeline.score(context) == []
    row = one(context, "SELECT * FROM rl.windows")
    assert (row["state"], row["scorer"], row["score_rev"]) == ("scored", "heuristic", 1)
    assert (row["agents"], row["trajectories"]) == (3, 3)
    assert row["claimed_by"] == "test:1"
    assert row["text_bytes"] > 0
    scores = query(context, "SELECT * FROM rl.scores ORDER BY trajectory_id")
    assert [s["trajectory_id"] for s in scores] == sorted(ids)
    # P&L -200, 100, 400, 3 steps: 0.2+0+0.03, 0.275+0.3+0.03, 0.35+0.3+0.03
    assert [s["score"] for s in scores] == pytest.approx([0.23, 0.605, 0.68], abs=1e-9)
    assert all(s["raw_score"] == s["score"] and "P&L" in s["reasoning"] for s in scores)
    assert query(context, "SELECT * FROM rl.leases") == []


def test_bad_traces_are_quarantined_and_the_rest_goes_on(context: Context) -> None:
    window = hours_ago(2)
    add_window(context, window)
    bad = {
        add_trajectory(context, window, "x", stepsJson=text): reason
        for text, reason in [
            ("[{", "bad_json"),
            ("null", "no_steps"),
            ("[]", "no_steps"),
            ("[3]", "wrong_shape"),
            (steps("abc"), "bad_pnl"),
            (json.dumps([{"pad": "x" * 40_000_000}]), "too_large"),
        ]
    }
    pipeline.produce(context)
    pipeline.score(context)
    assert states(context) == {window: "scored"}
    found = query(context, "SELECT trajectory_id, reason, detail FROM rl.quarantine")
    assert {q["trajectory_id"]: q["reason"] for q in found} == bad
    assert all(q["detail"] for q in found)
    assert len(query(context, "SELECT * FROM rl.scores")) == 3


@pytest.mark.parametrize(
    ("agents", "columns", "reason"),
    [
        (3, {"spread": 0.0}, "no signal"),
        (3, {"stepsJson": "[{"}, "0 agents with usable traces"),
        (3, {"stepsJson": steps(5, response="")}, "0 trainable trajectories"),
    ],
)
def test_a_window_without_signal_is_skipped_with_the_reason(
    context: Context, agents: int, columns: dict[str, object], reason: str
) -> None:
    window = hours_ago(2)
    add_window(context, window, agents, **columns)  # type: ignore[arg-type]
    add_request(context, "batch-1", window, "v1.0.0")
    pipeline.produce(context)
    pipeline.score(context)
    row = one(context, "SELECT state, reason, skipped_at FROM rl.windows")
    assert row["state"] == "skipped"
    assert reason in row["reason"]
    assert row["skipped_at"] is not None
    request = one(context, "SELECT status, error FROM training_batches")
    assert request["status"] == "failed"
    assert reason in request["error"]


def test_the_same_doorbell_ten_times_scores_once(make_context: Callable[..., Context]) -> None:
    workers = [make_context() for _ in range(10)]
    for hours in range(2, 8):
        add_window(workers[0], hours_ago(hours))
    pipeline.produce(workers[0])
    with ThreadPoolExecutor(10) as pool:
        moved = [w for each in pool.map(pipeline.score, workers) for w in each]
    assert sorted(moved) == sorted(hours_ago(h) for h in range(2, 8))
    revisions = query(context := workers[0], "SELECT score_rev FROM rl.windows")
    assert {r["score_rev"] for r in revisions} == {1}
    assert query(context, "SELECT * FROM rl.leases") == []


def test_a_lease_that_ran_out_cannot_write(
    make_context: Callable[..., Context], monkeypatch: pytest.MonkeyPatch
) -> None:
    slow, other = make_context(), make_context()
    window = hours_ago(2)
    add_window(slow, window)
    pipeline.produce(slow)

    def overtaken(outcomes):  # type: ignore[no-untyped-def]
        monkeypatch.undo()
        let_leases_run_out(slow)
        with ThreadPoolExecutor(1) as elsewhere:  # an event loop of its own
            assert elsewhere.submit(pipeline.score, other).result() == [window]
        return heuristic(outcomes)

    monkeypatch.setattr("babylon_tasks.scoring.heuristic.heuristic", overtaken)
    with pytest.raises(StaleClaim):
        pipeline.score(slow)
    row = one(other, "SELECT score_rev, claimed_by FROM rl.windows")
    assert row == {"score_rev": 1, "claimed_by": other.holder}


def test_a_lost_lease_ends_the_reading(make_context: Callable[..., Context]) -> None:
    slow = make_context(lease_seconds=0.001, heartbeat_seconds=0.001)
    add_window(slow, hours_ago(2), agents=40)
    pipeline.produce(slow)
    with pytest.raises((LeaseLost, StaleClaim)):
        pipeline.score(slow)
    assert states(slow) == {hours_ago(2): "due"}


def test_a_window_that_keeps_failing_ends_failed(
    make_context: Callable[..., Context], monkeypatch: pytest.MonkeyPatch
) -> None:
    context = make_context(max_attempts=2)
    poison, good = hours_ago(3), hours_ago(2)
    add_window(context, poison)
    add_window(context, good)
    pipeline.produce(context)

    def broken(outcomes):  # type: ignore[no-untyped-def]
        if len(outcomes) == 3 and states(context)[poison] != "failed":
            monkeypatch.setattr("babylon_tasks.scoring.heuristic.heuristic", heuristic)
            raise ZeroDivisionError("odd data")
        return heuristic(outcomes)

    for _ in range(2):
        monkeypatch.setattr("babylon_tasks.scoring.heuristic.heuristic", broken)
        pipeline.score(context)
    row = one(context, "SELECT * FROM rl.windows WHERE window_id = %s", poison)
    assert (row["state"], row["attempts"]) == ("failed", 2)
    assert row["last_error"] == "ZeroDivisionError: odd data"
    assert states(context)[good] == "scored"


def test_memory_of_a_mended_trace(context: Context) -> None:
    """A trace that the app mended leaves quarantine when its window is scored again."""
    window = hours_ago(2)
    (first, *_) = add_window(context, window, spread=0.0)
    query(
        context,
        'UPDATE trajectories SET "stepsJson" = \'[{\' WHERE "trajectoryId" = %s RETURNING 1',
        first,
    )
    pipeline.produce(context)
    pipeline.score(context)
    assert len(query(context, "SELECT * FROM rl.quarantine")) == 1
    query(
        context,
        'UPDATE trajectories SET "stepsJson" = %s WHERE "trajectoryId" = %s RETURNING 1',
        steps(900),
        first,
    )
    add_trajectory(context, window, "new-agent")
    pipeline.produce(context)
    pipeline.score(context)
    assert query(context, "SELECT * FROM rl.quarantine") == []
    assert states(context) == {window: "scored"}


def test_parameters_that_only_libpq_knows_reach_neither_driver_in_vain(
    make_context: Callable[..., Context], settings: Settings
) -> None:
    """Neon's default URL, with Prisma's parameters and an option with a space."""
    url = settings.postgres() + (
        "&channel_binding=prefer&connect_timeout=10&schema=public&pgbouncer=true"
        "&options=-c%20work_mem%3D8MB"
    )
    context = make_context(database_url=url)
    add_window(context, hours_ago(2))
    pipeline.produce(context)
    assert pipeline.score(context) == [hours_ago(2)]
    assert one(context, "SHOW work_mem") == {"work_mem": "8MB"}
