"""What is written of judged windows, by each scorer, and by rubrics of one's own."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from babylon_tasks import pipeline
from babylon_tasks.settings import Settings
from babylon_tasks.work.context import Context
from tests import judge_server as judge
from tests.judge_server import JudgeServer
from tests.judged import (
    add_judged_window,
    add_outcome,
    assert_costs_add_up,
    play,
    prompt,
    stored,
    window_row,
)
from tests.rows import add_trajectory, hours_ago, one, query

MakeContext = Callable[..., Context]

# litellm's own; ruler_call silences it, pytest undoes that.
pytestmark = pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")

FOUR = [0.1, 0.9, 0.4, 0.6]


# --- what is written ---


def test_without_a_price_tokens_are_counted_and_dollars_unknown(
    make_judged: MakeContext, server: JudgeServer
) -> None:
    context = make_judged(judge_input_usd_per_million=None, judge_output_usd_per_million=None)
    window = hours_ago(2)
    add_judged_window(context, window, FOUR)
    pipeline.produce(context)
    server.then(judge.too_few)
    assert pipeline.score(context) == [window]
    assert_costs_add_up(context, window)
    rows = query(context, "SELECT judge_usd FROM rl.scores UNION ALL SELECT usd FROM rl.judgments")
    assert [row["judge_usd"] for row in rows] == [None] * 6


def in_tokyo(settings: Settings) -> str:
    """The database, with sessions whose clock shows another time than UTC."""
    return f"{settings.postgres()}&options=-c%20timezone%3DAsia%2FTokyo"


def test_the_app_is_told_as_its_own_judge_tells_it(
    make_judged: MakeContext, settings: Settings
) -> None:
    context = make_judged(database_url=in_tokyo(settings))
    window = hours_ago(2)
    ids = list(add_judged_window(context, window, [0.25, 0.75, 0.5, 0.5]))
    with context.database.transaction() as tx:
        tx.execute(
            """INSERT INTO reward_judgments (id, "trajectoryId", "judgeModel", "judgeVersion",
                   "overallScore", "normalizedScore", rank, reasoning, "strengthsJson",
                   "weaknessesJson", "criteriaJson", "judgedAt")
               VALUES ('of-the-app', %s, 'old', 'v0', 0.99, 1, 1, 'old', '[]', '[]', '[]',
                       '2020-01-01')""",
            [ids[0]],
        )
    pipeline.produce(context)
    assert pipeline.score(context) == [window]
    rows = query(context, 'SELECT * FROM reward_judgments ORDER BY "trajectoryId"')
    assert [row["trajectoryId"] for row in rows] == ids
    assert [row["overallScore"] for row in rows] == [0.25, 0.75, 0.5, 0.5]
    assert [row["normalizedScore"] for row in rows] == [0.0, 1.0, 0.5, 0.5]
    assert [row["rank"] for row in rows] == [4, 1, 2, 2]
    assert rows[0]["id"] == "of-the-app"
    assert (rows[0]["strengthsJson"], rows[0]["weaknessesJson"]) == (None, None)
    now = datetime.now(UTC).replace(tzinfo=None)
    rubric = one(context, "SELECT DISTINCT rubric_hash FROM rl.judgments")["rubric_hash"]
    for row in rows:
        assert (row["groupId"], row["judgeModel"]) == (window, "openai/judge")
        assert row["judgeVersion"] == f"ruler-{rubric}"
        assert row["reasoning"].startswith("ruler: The trajectory at position")
        assert json.loads(row["componentScoresJson"]) == {}
        criteria = json.loads(row["criteriaJson"])["criteria"]
        assert criteria == {"profit": 0.4, "timing": 0.3, "risk": 0.2, "opportunity": 0.1}
        assert abs(now - row["judgedAt"]) < timedelta(minutes=1)
    told = query(context, 'SELECT * FROM trajectories ORDER BY "trajectoryId"')
    assert [row["aiJudgeReward"] for row in told] == [0.25, 0.75, 0.5, 0.5]
    assert [row["aiJudgeReasoning"] for row in told] == [row["reasoning"] for row in rows]
    assert [row["judgedAt"] for row in told] == [row["judgedAt"] for row in rows]


def test_a_model_beside_the_apps_writes_nothing_of_the_apps(make_judged: MakeContext) -> None:
    context = make_judged(primary=False)
    window = hours_ago(2)
    wanted = add_judged_window(context, window, FOUR)
    before = query(context, "SELECT * FROM trajectories")
    pipeline.produce(context)
    assert pipeline.score(context) == [window]
    assert stored(context) == wanted
    assert query(context, "SELECT * FROM reward_judgments") == []
    assert query(context, "SELECT * FROM trajectories") == before


def test_a_trajectory_deleted_while_it_is_judged_is_no_matter(
    make_judged: MakeContext, server: JudgeServer, make_context: MakeContext
) -> None:
    context, app = make_judged(), make_context()
    window = hours_ago(2)
    gone, *rest = add_judged_window(context, window, FOUR)
    pipeline.produce(context)

    def deleting(text: str) -> float:
        query(app, 'DELETE FROM trajectories WHERE "trajectoryId" = %s RETURNING 1', gone)
        return judge.written_score(text)

    server.score_of = deleting
    assert pipeline.score(context) == [window]
    told = query(context, 'SELECT "trajectoryId" AS id FROM reward_judgments')
    assert sorted(row["id"] for row in told) == sorted(rest)


# --- other scorers, other rubrics ---


def test_blend_is_both(make_judged: MakeContext, server: JudgeServer) -> None:
    context = make_judged(scoring="blend", ruler_weight=0.7)
    window = hours_ago(2)
    wanted = add_judged_window(context, window, FOUR)
    pipeline.produce(context)
    assert pipeline.score(context) == [window]
    by_money = [0.43, 0.2675, 0.255, 0.2425]  # as above
    rows = query(context, "SELECT * FROM rl.scores ORDER BY trajectory_id")
    for row, judged, money in zip(rows, wanted.values(), by_money, strict=True):
        assert row["scorer"] == "blend"
        assert row["score"] == pytest.approx(0.7 * judged + 0.3 * money)
        assert row["raw_score"] == judged
        assert row["components"]["ruler"] == judged
        assert row["components"]["heuristic"] == pytest.approx(money)
        assert {"pnl", "win_rate", "activity"} <= row["components"].keys()
        assert row["reasoning"].startswith("ruler: ")
        assert "heuristic: " in row["reasoning"]
    assert_costs_add_up(context, window)
    told = query(context, 'SELECT "judgeVersion", rank FROM reward_judgments ORDER BY rank')
    assert [row["rank"] for row in told] == [1, 2, 3, 4]
    assert all(row["judgeVersion"].startswith("blend-") for row in told)


def bets(pnl: list[float], *made: tuple[str, str, bool]) -> str:
    """`stepsJson` of (market, side, success) bets, with the P&L before each."""
    steps = json.loads(play(0.0, steps=len(made)))
    for n, (step, (market, side, success)) in enumerate(zip(steps, made, strict=True)):
        key = "ticker" if side in ("long", "short") else "marketId"
        step["environmentState"]["agentPnL"] = pnl[n]
        step["action"] |= {"parameters": {key: market, "side": side}, "success": success}
    return json.dumps(steps)


def test_correctness_by_hand(make_judged: MakeContext, server: JudgeServer) -> None:
    context = make_judged(scoring="correctness")
    window = hours_ago(2)
    add_outcome(context, window, predictionMarketId="m1", question="Rain?", outcome="YES")
    add_outcome(context, window, stockTicker="ACME", changePercent=-3.5)
    runs = [
        # Both right; +10, +20 is a Sharpe ratio of 15 / 5.
        bets([0, 10, 30], ("m1", "YES", True), ("ACME", "short", True), ("m9", "NO", True)),
        # One of two right (the third failed); it never moved.
        bets([5, 5, 5], ("m1", "NO", True), ("ACME", "short", True), ("m1", "YES", False)),
        # Both wrong; -5, -10 is -7.5 / 2.5.
        bets([0, -5, -15], ("m1", "NO", True), ("ACME", "long", True), ("m9", "NO", True)),
    ]
    ids = [add_trajectory(context, window, f"a{n}", stepsJson=run) for n, run in enumerate(runs)]
    pipeline.produce(context)
    assert pipeline.score(context) == [window]
    assert server.requests == []
    found = stored(context, "correctness")
    tanh_3 = 0.9950547536867305
    assert [found[each] for each in ids] == pytest.approx(
        [
            0.5 + 0.3 * (1 + tanh_3) / 2 + 0.2,
            0.25 + 0.15 + 0.2 * 2 / 3,
            0.3 * (1 - tanh_3) / 2 + 0.2,
        ]
    )
    row = one(context, "SELECT * FROM rl.scores WHERE trajectory_id = %s", ids[1])
    assert row["components"] == pytest.approx(
        {"correctness": 0.5, "risk_adjusted": 0.5, "success": 2 / 3}
    )
    assert (row["judge_model"], row["judge_tokens"], row["judge_usd"]) == (None, None, None)
    assert query(context, "SELECT * FROM reward_judgments") == []


def test_a_window_is_scored_as_asked_by_hand(make_judged: MakeContext, server: JudgeServer) -> None:
    context = make_judged(scoring="heuristic")
    windows = {scoring: hours_ago(n) for n, scoring in enumerate(["ruler", "blend", None], 2)}
    for window in windows.values():
        add_judged_window(context, window, FOUR)
    pipeline.produce(context)
    for scoring, window in windows.items():
        query(
            context,
            "UPDATE rl.windows SET scoring = %s WHERE window_id = %s RETURNING 1",
            scoring,
            window,
        )
    assert pipeline.score(context) == [windows[None]]
    assert server.requests == []
    assert pipeline.score(context) == sorted([windows["ruler"], windows["blend"]])
    assert {w: window_row(context, w)["scorer"] for w in windows.values()} == {
        windows["ruler"]: "ruler",
        windows["blend"]: "blend",
        windows[None]: "heuristic",
    }


def test_a_judged_deployment_scores_a_window_by_heuristic_as_asked(
    make_judged: MakeContext, server: JudgeServer
) -> None:
    context = make_judged()
    window = hours_ago(2)
    add_judged_window(context, window, FOUR)
    pipeline.produce(context)
    query(context, "UPDATE rl.windows SET scoring = 'heuristic' RETURNING 1")
    assert pipeline.score(context) == [window]
    assert window_row(context, window)["scorer"] == "heuristic"
    assert server.requests == []


def test_a_rubric_of_ones_own_is_asked_by_and_kept(
    make_judged: MakeContext, server: JudgeServer, tmp_path: Path
) -> None:
    path = tmp_path / "rubric.md"
    path.write_text("Reward patience, and nothing else.\n")
    context = make_judged(judge_rubric=str(path))
    wanted = add_judged_window(context, hours_ago(2), FOUR)
    pipeline.produce(context)
    pipeline.score(context)
    assert stored(context) == wanted
    assert "Reward patience, and nothing else." in prompt(server.requests[0])
    assert "Profit, 40 %" not in prompt(server.requests[0])
    kept = one(context, "SELECT rubric_hash FROM rl.judgments")["rubric_hash"]
    row = query(context, "SELECT * FROM reward_judgments")[0]
    assert row["judgeVersion"] == f"ruler-{kept}"
    assert json.loads(row["criteriaJson"]) == {
        "rubric": kept,
        "criteria": None,
        "text": "Reward patience, and nothing else.",
    }
    # Another rubric is another question.
    path.write_text("Reward courage.")
    query(context, "UPDATE rl.windows SET state = 'due' RETURNING 1")
    pipeline.score(context)
    assert len(server.requests) == 2


def test_a_rubric_that_leaves_no_room_is_refused(
    make_judged: MakeContext, server: JudgeServer, tmp_path: Path
) -> None:
    """Rather than: nothing shown, so all alike, so skipped."""
    path = tmp_path / "rubric.md"
    path.write_text("Reward patience. " * 1000)
    context = make_judged(judge_rubric=str(path), judge_context_tokens=4_000)
    window = hours_ago(2)
    add_judged_window(context, window, FOUR)
    pipeline.produce(context)
    assert pipeline.score(context) == []
    row = window_row(context, window)
    assert (row["state"], row["attempts"]) == ("due", 0)
    assert "JUDGE_RUBRIC takes more than half of JUDGE_CONTEXT_TOKENS" in row["last_error"]
    assert server.requests == []


def test_what_the_app_was_told_goes_with_a_later_scoring_without_a_judge(
    make_judged: MakeContext,
) -> None:
    context = make_judged()
    window = hours_ago(2)
    add_judged_window(context, window, FOUR)
    pipeline.produce(context)
    assert pipeline.score(context) == [window]
    assert len(query(context, "SELECT * FROM reward_judgments")) == 4
    pipeline.enqueue(context, window, scoring="heuristic")
    assert pipeline.score(context) == [window]
    assert query(context, "SELECT * FROM reward_judgments") == []
