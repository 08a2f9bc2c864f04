"""Past windows by another recipe: what is compared, what it costs, what stays as it was."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from babylon_tasks import pipeline
from babylon_tasks.cockpit.story import read_story
from babylon_tasks.errors import LeaseLost, UserError
from babylon_tasks.records.windows import State
from babylon_tasks.scoring import compare as comparing
from babylon_tasks.scoring.compare import Comparison, choose_windows, compare
from babylon_tasks.scoring.judge import client as asking
from babylon_tasks.scoring.judge.bill import Bill
from babylon_tasks.scoring.window_comparison import Differences, Mean
from babylon_tasks.settings.overrides import with_overrides
from babylon_tasks.store import judgments, leases
from babylon_tasks.work.context import Context
from tests import judge_server as judge
from tests.clock import let_leases_run_out
from tests.judge_server import Behaviour, JudgeServer, Received
from tests.judged import (
    THREE,
    add_judged_window,
    assert_costs_add_up,
    marks,
    play,
    prompt,
    stored,
)
from tests.rows import add_trajectory, add_window, hours_ago, one, query, scored_windows, states
from workers.gpu.client import TrainerProcess

MakeContext = Callable[..., Context]

# litellm's own; ruler_call silences it, pytest undoes that.
pytestmark = pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")

FOUR = [0.1, 0.9, 0.4, 0.6]
ALL_COMPARED = Differences(0, 0, 0, 0, 0, 0)


def by(context: Context, scoring: str) -> Context:
    """The context with another scorer."""
    return replace(context, settings=with_overrides(context.settings, {"SCORING": scoring}))


def compared(context: Context, scoring: str, *window_ids: str, last: int = 24) -> Comparison:
    """What the command does where no worker judges."""
    told: list[str] = []
    chosen = choose_windows(context, window_ids, last)
    result = compare(by(context, scoring), chosen, told.append)
    assert not [line for line in told if "now; waiting" in line]
    assert query(context, "SELECT * FROM rl.leases") == []
    return result


def scored_by_heuristic(context: Context, window: str, scores: list[float] = FOUR) -> list[str]:
    """A window that the local judge would score so; its P&L is 0, -50, -100, … dollars."""
    ids = list(add_judged_window(context, window, scores))
    pipeline.produce(context)
    assert pipeline.score(context) == [window]
    return ids


def tables(context: Context) -> dict[str, bytes]:
    """Every table as it is on its pages, with the transaction that wrote each row."""
    names = query(
        context,
        """SELECT format('%%I.%%I', table_schema, table_name) AS name
             FROM information_schema.tables
            WHERE table_schema IN ('rl', 'public') AND table_type = 'BASE TABLE'""",
    )
    written = {}
    with context.database.transaction() as tx:
        for name in (row["name"] for row in names):
            text: Any = f"COPY (SELECT t.ctid, t.xmin, t.* FROM {name} t ORDER BY 1) TO STDOUT"
            with tx.cursor().copy(text) as rows:
                written[name] = b"".join(map(bytes, rows))
    return written


def purposes(context: Context) -> list[str]:
    return [row["purpose"] for row in query(context, "SELECT purpose FROM rl.judgments")]


# --- what is compared ---


def test_a_judge_beside_the_heuristic(make_judged: MakeContext, server: JudgeServer) -> None:
    context = make_judged(scoring="heuristic")
    window = hours_ago(2)
    ids = scored_by_heuristic(context, window)
    result = compared(context, "ruler")
    (one_window,) = result.windows
    assert (result.scorer, one_window.scorer, one_window.window_id) == (
        "ruler",
        "heuristic",
        window,
    )
    # The heuristic's ranks are 1 2 3 4, the judge's 4 1 3 2: 1 - 6 · (9 + 1 + 0 + 4) / (4 · 15);
    # of 6 pairs all three of the first turn, and the last.
    assert one_window.compared == 4
    assert one_window.spearman == pytest.approx(-0.4)
    assert one_window.kendall == pytest.approx(-1 / 3)
    assert one_window.pairs_changed == pytest.approx(4 / 6)
    assert [(m.trajectory_id, m.rank_before, m.rank_after) for m in one_window.moves] == [
        (ids[0], 1, 4),
        (ids[3], 4, 2),
        (ids[1], 2, 1),
    ]
    first = one_window.moves[0]
    assert (first.agent_id, first.score_before, first.score_after) == (
        "agent-0",
        pytest.approx(0.43),
        0.1,
    )
    assert one_window.differences == ALL_COMPARED
    assert (one_window.before, one_window.after) == (State.SCORED, State.SCORED)
    assert result.spearman == Mean(pytest.approx(-0.4), 1)
    assert (result.newly_skipped, result.newly_scored, result.not_compared) == (0, 0, {})
    assert len(server.requests) == 1


def test_blend_and_ruler_of_one_window_are_one_question(
    make_judged: MakeContext, server: JudgeServer
) -> None:
    context = make_judged(scoring="heuristic", ruler_weight=0.0)
    scored_by_heuristic(context, hours_ago(2))
    compared(context, "ruler")
    assert compared(context, "blend").spearman == Mean(pytest.approx(1), 1)  # weight 0
    assert len(server.requests) == 1


def test_trained_and_scored_windows_are_taken_the_newest_first(
    make_context: MakeContext, trainer: TrainerProcess
) -> None:
    context = make_context()
    windows = scored_windows(context, 5, 4, 3)
    assert pipeline.train(context, trainer)
    windows += scored_windows(context, 2)
    assert set(states(context).values()) == {"trained", "scored"}
    add_window(context, hours_ago(6))
    pipeline.produce(context)  # due
    other = make_context(model_name="other", primary=False)
    result = compared(context, "correctness")
    assert [each.window_id for each in result.windows] == windows
    assert result.judge is None
    assert [each.window_id for each in compared(context, "heuristic", last=2).windows] == (
        windows[-2:]
    )
    assert [each.window_id for each in compared(context, "heuristic", windows[1]).windows] == (
        windows[1:2]
    )
    same = compared(context, "heuristic")
    assert same.spearman == same.kendall == Mean(pytest.approx(1), 4)
    assert same.pairs_changed == Mean(0, 4)
    with pytest.raises(UserError, match="no window of other is scored or trained yet"):
        choose_windows(other, [], 24)


def test_traces_that_changed_since_are_counted_and_not_compared(make_context: MakeContext) -> None:
    context, window = make_context(min_actions=3), hours_ago(2)
    names = ("kept", "also", "gone", "rewritten", "broken", "short")
    ids = {
        name: add_trajectory(
            context, window, name, stepsJson=play(10.0 * n, steps=3 if name == "short" else 4)
        )
        for n, name in enumerate(names)
    }
    add_trajectory(context, window, "too short then", stepsJson=play(5.0, steps=2))
    pipeline.produce(context)
    assert pipeline.score(context) == [window]
    add_trajectory(context, window, "late", stepsJson=play(7.0, steps=4))
    for name, change in (("rewritten", play(-999.0, steps=5)), ("broken", "[{")):
        query(
            context,
            """UPDATE trajectories SET "stepsJson" = %s WHERE "trajectoryId" = %s RETURNING 1""",
            change,
            ids[name],
        )
    query(context, 'DELETE FROM trajectories WHERE "trajectoryId" = %s RETURNING 1', ids["gone"])
    (result,) = compared(make_context(min_actions=4), "heuristic").windows
    assert result.compared == 2
    assert result.differences == Differences(
        deleted=1, unreadable=1, left_out_now=1, rewritten=1, left_out_before=0, written_since=1
    )
    (result,) = compared(make_context(min_actions=1), "heuristic").windows
    assert result.compared == 3
    assert result.differences == Differences(
        deleted=1, unreadable=1, left_out_now=0, rewritten=1, left_out_before=1, written_since=1
    )
    (result,) = compared(
        make_context(min_actions=1, excluded_scenarios=f"{window}%"), "heuristic"
    ).windows
    assert (result.compared, result.differences.left_out_now) == (0, 5)
    assert result.differences.deleted == 1
    query(context, "DELETE FROM trajectories RETURNING 1")
    (result,) = compared(context, "heuristic").windows
    assert (result.compared, result.spearman, result.differences.deleted) == (0, None, 6)
    assert (result.before, result.after) == (State.SCORED, State.SKIPPED)
    assert result.why_skip == "0 agents with usable traces, needs 2"


def test_windows_that_would_change_between_scored_and_skipped(make_context: MakeContext) -> None:
    strict = make_context(min_reward_spread=0.9)
    doubtful, steep, small = hours_ago(4), hours_ago(3), hours_ago(2)
    add_window(strict, doubtful)
    add_window(strict, small, agents=2)
    pipeline.produce(strict)
    query(
        strict,
        """DELETE FROM trajectories WHERE "agentId" = 'agent-1' AND "windowId" = %s RETURNING 1""",
        small,
    )
    pipeline.score(strict)
    context = make_context()
    add_window(context, steep)
    pipeline.produce(context)
    pipeline.score(context)
    assert states(context) == {doubtful: "skipped", steep: "scored", small: "skipped"}
    result = compared(strict, "correctness", doubtful, steep, small)
    assert (result.newly_skipped, result.newly_scored) == (1, 0)
    (skipped,) = [each for each in result.windows if each.window_id == steep]
    assert skipped.why_skip is not None
    assert skipped.why_skip.startswith("no signal: rewards spread")
    result = compared(context, "heuristic", doubtful, steep, small)
    assert (result.newly_skipped, result.newly_scored) == (0, 1)
    (still,) = [each for each in result.windows if each.window_id == small]
    assert (still.before, still.after, still.compared) == (State.SKIPPED, State.SKIPPED, 0)
    assert still.why_skip == "1 agents with usable traces, needs 2"


# --- what it costs, and what it leaves ---


def test_only_what_the_judge_answered_is_written(
    make_judged: MakeContext, server: JudgeServer
) -> None:
    """Neither rows nor pages of any other table change: no row was even written as it was."""
    context = make_judged(scoring="heuristic")
    for hours in (2, 3):
        scored_by_heuristic(context, hours_ago(hours))
    query(
        context,
        """UPDATE trajectories SET "stepsJson" = '[{' WHERE "windowId" = %s
              AND "agentId" = 'agent-3' RETURNING 1""",
        hours_ago(3),
    )
    before = tables(context)
    server.then(judge.too_few)
    for scoring in ("heuristic", "correctness", "ruler", "blend"):
        compared(context, scoring)
    after = tables(context)
    assert after.pop("rl.judgments") != before.pop("rl.judgments")
    assert after == before
    assert set(purposes(context)) == {"comparison"}


def test_a_second_run_costs_nothing_and_says_what_a_day_would(
    make_judged: MakeContext, server: JudgeServer
) -> None:
    context = make_judged(scoring="heuristic")
    for hours in (2, 3):
        scored_by_heuristic(context, hours_ago(hours))
    first = compared(context, "ruler").judge
    assert first is not None
    assert first.model == "openai/judge"
    paid = one(
        context,
        """SELECT sum(prompt_tokens + completion_tokens)::int AS tokens, sum(usd)::float8 AS usd
             FROM rl.judgments""",
    )
    assert first.bought == Bill(2, paid["tokens"], pytest.approx(paid["usd"]))
    assert first.found == Bill(0, 0, 0.0)
    assert first.day == Bill(24, 12 * paid["tokens"], pytest.approx(12 * paid["usd"]))
    with context.database.transaction() as tx:
        assert judgments.spent_today(tx).usd == pytest.approx(paid["usd"])
    again = compared(context, "ruler").judge
    assert again is not None
    assert (again.bought, again.found, again.day) == (Bill(), first.bought, first.day)
    assert len(server.requests) == 2


def test_the_daily_limit_counts_it(make_judged: MakeContext, server: JudgeServer) -> None:
    context = make_judged(scoring="heuristic")
    for hours in (2, 3):
        scored_by_heuristic(context, hours_ago(hours))
    spent = compared(context, "ruler", hours_ago(2)).judge
    assert spent is not None
    assert spent.bought.usd
    poor = make_judged(scoring="heuristic", judge_daily_usd=spent.bought.usd)
    result = compared(poor, "ruler")  # the answers that are there cost nothing
    assert [each.window_id for each in result.windows] == [hours_ago(2)]
    assert list(result.not_compared) == [hours_ago(3)]
    assert "the judge's daily limit is reached" in result.not_compared[hours_ago(3)]
    assert result.judge
    assert result.judge.day.tokens == spent.day.tokens  # of those that were compared
    with pytest.raises(UserError, match=r"no window could be compared: .* daily limit is reached"):
        compared(poor, "ruler", hours_ago(3))
    assert len(server.requests) == 1


def test_a_later_scoring_has_the_answers_for_nothing_and_is_not_charged(
    make_judged: MakeContext, server: JudgeServer
) -> None:
    context = make_judged(scoring="heuristic")
    window = hours_ago(2)
    ids = scored_by_heuristic(context, window)
    compared(context, "ruler")
    assert read_story(context, window, with_scores=False).row["judge"] is None
    pipeline.enqueue(context, window, scoring="ruler")
    assert pipeline.score(context) == [window]
    assert len(server.requests) == 1
    assert stored(context) == dict(zip(ids, FOUR, strict=True))
    costs = query(context, "SELECT judge_tokens FROM rl.scores WHERE scorer = 'ruler'")
    assert [row["judge_tokens"] for row in costs] == [0] * 4
    assert read_story(context, window, with_scores=False).row["judge"] is None


def test_a_window_is_charged_for_its_scoring_and_not_for_a_comparison(
    make_judged: MakeContext, server: JudgeServer, tmp_path: Path
) -> None:
    context, window = make_judged(), hours_ago(2)
    add_judged_window(context, window, FOUR)
    pipeline.produce(context)
    assert pipeline.score(context) == [window]
    assert_costs_add_up(context, window)
    costs = "SELECT trajectory_id, judge_tokens, judge_usd FROM rl.scores ORDER BY 1"
    charged = query(context, costs)
    story = read_story(context, window, with_scores=False).row
    (tmp_path / "rubric.md").write_text("Reward patience, and nothing else.")
    other = make_judged(judge_rubric=str(tmp_path / "rubric.md"))
    result = compared(other, "ruler")
    assert result.spearman == Mean(pytest.approx(1), 1)
    assert result.judge
    assert result.judge.bought.answers == 1  # another rubric is another question
    assert "Reward patience" in prompt(server.requests[1])
    assert read_story(context, window, with_scores=False).row == story
    pipeline.enqueue(context, window, scoring="ruler")
    assert pipeline.score(context) == [window]
    assert query(context, costs) == charged
    assert len(server.requests) == 2
    assert sorted(purposes(context)) == ["comparison", "scoring"]


def test_a_judge_of_unknown_price(make_judged: MakeContext) -> None:
    context = make_judged(
        scoring="heuristic", judge_input_usd_per_million=None, judge_output_usd_per_million=None
    )
    scored_by_heuristic(context, hours_ago(2))
    for cost in (compared(context, "ruler").judge, compared(context, "ruler").judge):
        assert cost is not None
        assert cost.day.usd is None
        assert cost.day.tokens > 0


# --- what cannot be compared ---


def test_windows_that_nobody_knows(context: Context) -> None:
    add_window(context, hours_ago(2))
    pipeline.produce(context)
    with pytest.raises(UserError, match="'yesterday' is not a window id"):
        choose_windows(context, [hours_ago(2), "yesterday"], 24)
    with pytest.raises(UserError, match=r"no row for babylon-agent: \S+; `babylon windows list`"):
        choose_windows(context, [hours_ago(2), hours_ago(3)], 24)
    with pytest.raises(UserError, match="no window of babylon-agent is scored or trained yet"):
        choose_windows(context, [], 24)


def test_windows_without_scores(context: Context) -> None:
    scored, due = hours_ago(3), hours_ago(2)
    add_window(context, scored)
    pipeline.produce(context)
    pipeline.score(context)
    add_window(context, due)
    pipeline.produce(context)
    why = "it has no scores to compare with: it is due"
    result = compared(context, "correctness", scored, due)
    assert [each.window_id for each in result.windows] == [scored]
    assert result.not_compared == {due: why}
    with pytest.raises(UserError) as caught:
        compared(context, "correctness", due)
    assert str(caught.value) == f"no window could be compared: {due}: {why}"


@pytest.mark.parametrize("fallback", ["wait", "heuristic"])
def test_a_judge_that_is_away(make_judged: MakeContext, server: JudgeServer, fallback: str) -> None:
    """The heuristic is not compared with itself."""
    context = make_judged(scoring="heuristic", judge_fallback=fallback)
    for hours in (2, 3):
        scored_by_heuristic(context, hours_ago(hours))
    server.default = judge.unauthorized
    before = tables(context)
    with pytest.raises(UserError) as caught:
        compared(context, "ruler")
    why = str(caught.value)
    assert why.startswith(f"no window could be compared: {hours_ago(3)}: openai/judge at ")
    assert why.endswith("check JUDGE_MODEL, JUDGE_BASE_URL, the judge's key and its account")
    assert tables(context) == before
    with pytest.raises(UserError, match=r"JUDGE_RUBRIC=nowhere\.md cannot be read"):
        compared(make_judged(judge_rubric="nowhere.md"), "blend")


class OneIsPoison(JudgeServer):
    """Never answers well where it is shown the best of the window."""

    def answer_for(self, request: Received) -> Behaviour:
        return judge.too_few if 0.95 in marks(request) else judge.good


def test_a_window_without_a_usable_answer_harms_no_other(make_judged: MakeContext) -> None:
    with OneIsPoison() as server:
        context = make_judged(
            scoring="heuristic", judge_base_url=server.url, judge_fallback="heuristic"
        )
        scored_by_heuristic(context, hours_ago(3))
        scored_by_heuristic(context, hours_ago(2), [0.2, 0.95, 0.5])
        result = compared(context, "ruler")
    assert [each.window_id for each in result.windows] == [hours_ago(3)]
    assert list(result.not_compared) == [hours_ago(2)]
    assert "no usable answer from openai/judge" in result.not_compared[hours_ago(2)]
    good = one(
        context,
        """SELECT prompt_tokens + completion_tokens AS tokens FROM rl.judgments
            WHERE fault IS NULL""",
    )
    assert result.judge
    assert result.judge.bought.answers == 4  # refused ones are paid for too
    assert result.judge.day.tokens == 24 * good["tokens"]  # of windows that are compared


def test_a_comparison_that_takes_too_long_goes_on_another_time(
    make_judged: MakeContext, server: JudgeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = make_judged(scoring="heuristic")
    for hours in (2, 3):
        scored_by_heuristic(context, hours_ago(hours))
    compared(context, "ruler", hours_ago(2))
    monkeypatch.setattr(asking, "_TASK_SECONDS", -1.0)
    result = compared(context, "ruler")
    assert [each.window_id for each in result.windows] == [hours_ago(2)]
    assert "the same command goes on from here" in result.not_compared[hours_ago(3)]
    assert len(server.requests) == 1


# --- beside workers ---


def hold_judge(context: Context) -> leases.Lease:
    with context.database.transaction() as tx:
        lease = leases.acquire(tx, "judge/babylon-agent", "host:7", 600)
    assert lease
    return lease


def test_it_does_not_judge_beside_a_worker(
    make_judged: MakeContext, server: JudgeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparing, "_JUDGE_WAIT_SECONDS", 0.05)
    monkeypatch.setattr(comparing, "_LOOK_SECONDS", 0.01)
    context = make_judged(scoring="heuristic")
    scored_by_heuristic(context, hours_ago(2))
    held = hold_judge(context)
    told: list[str] = []
    with pytest.raises(UserError, match="host:7 asks the judge of babylon-agent now, and only one"):
        compare(by(context, "ruler"), choose_windows(context, [], 24), told.append)
    assert told == ["host:7 asks the judge of babylon-agent now; waiting for it"]
    assert server.requests == []
    # Whoever asks no judge need not wait, and a worker that ends within the wait is waited for.
    compare(by(context, "correctness"), choose_windows(context, [], 24), told.append)
    assert len(told) == 1

    def release(line: str) -> None:
        with context.database.transaction() as tx:
            leases.release(tx, [held])

    monkeypatch.setattr(comparing, "_JUDGE_WAIT_SECONDS", 20.0)
    assert compare(by(context, "ruler"), choose_windows(context, [], 24), release).windows


def test_no_worker_judges_beside_it(make_judged: MakeContext, server: JudgeServer) -> None:
    context, worker = make_judged(scoring="heuristic"), make_judged()
    scored_by_heuristic(context, hours_ago(2))
    add_judged_window(context, hours_ago(3), THREE)
    pipeline.produce(context)
    scored: list[list[str]] = []

    def meanwhile(text: str) -> float:
        if not scored:
            scored.append(pipeline.score(worker))
        return judge.written_score(text)

    server.score_of = meanwhile
    compared(context, "ruler")
    assert scored == [[]]
    assert len(server.requests) == 1
    assert pipeline.score(worker) == [hours_ago(3)]


def test_it_ends_when_it_loses_the_judge(make_judged: MakeContext, server: JudgeServer) -> None:
    context, other = make_judged(scoring="heuristic", heartbeat_seconds=0.1), make_judged()
    scored_by_heuristic(context, hours_ago(2))
    server.default = judge.hang(20)

    def taken(line: str) -> None:
        let_leases_run_out(other)
        hold_judge(other)

    windows = choose_windows(context, [], 24)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(comparing, "_TELL_SECONDS", 0.2)
        with pytest.raises(LeaseLost):
            compare(by(context, "ruler"), windows, taken)
    assert [row["holder"] for row in query(other, "SELECT holder FROM rl.leases")] == ["host:7"]


def test_progress_is_told_when_it_takes_long(
    make_judged: MakeContext, server: JudgeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparing, "_TELL_SECONDS", 0.05)
    context = make_judged(scoring="heuristic", judge_concurrency=1)
    for hours in (2, 3):
        scored_by_heuristic(context, hours_ago(hours))
    server.default = judge.hang(0.5)
    told: list[str] = []
    compare(by(context, "ruler"), choose_windows(context, [], 24), told.append)
    assert told[:2] == [f"{done} of 2 windows are scored by ruler" for done in (0, 1)]
    assert len(told) <= 3
