"""Judged windows: the real litellm client and ART's real ruler() against a local HTTP judge.

What it answers, and what is made of that. How it is asked is in test_judge_traffic.py, what it is
shown in test_judge_sight.py, what is written in test_judge_scores.py.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from babylon_tasks import pipeline
from babylon_tasks.scoring.judge import prompt as judge_prompt
from babylon_tasks.work.context import Context
from tests import judge_server as judge
from tests.clock import let_waits_pass
from tests.judge_server import Behaviour, JudgeServer, Received
from tests.judged import (
    add_judged_window,
    assert_costs_add_up,
    marks,
    play,
    prompt,
    stored,
    window_row,
)
from tests.rows import add_request, add_trajectory, hours_ago, one, query, states

MakeContext = Callable[..., Context]

# litellm's own; ruler_call silences it, pytest undoes that.
pytestmark = pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")

FOUR = [0.1, 0.9, 0.4, 0.6]
EIGHT = [0.1, 0.8, 0.3, 0.6, 0.5, 0.2, 0.7, 0.4]
huge = Behaviour("huge", scores=(lambda scores: [s | {"score": 10**400} for s in scores],))


@pytest.mark.parametrize(
    "behaviour",
    [judge.good, judge.shuffled, judge.prose, judge.fenced, judge.shuffled + judge.prose],
    ids=lambda b: b.name,
)
def test_each_trajectory_gets_its_own_score(
    make_judged: MakeContext, server: JudgeServer, behaviour: Behaviour
) -> None:
    context = make_judged()
    window = hours_ago(2)
    wanted = add_judged_window(context, window, FOUR)
    pipeline.produce(context)
    server.default = behaviour
    assert pipeline.score(context) == [window]
    assert stored(context) == wanted
    assert len(server.requests) == 1
    for row in query(context, "SELECT * FROM rl.scores"):
        assert row["raw_score"] == row["score"]
        assert row["judge_model"] == "openai/judge"
        assert row["reasoning"].startswith("ruler: The trajectory at position")
    assert one(context, "SELECT state, scorer FROM rl.windows") == {
        "state": "scored",
        "scorer": "ruler",
    }
    assert query(context, "SELECT * FROM rl.leases") == []


def test_a_row_for_exams_is_compared_in_the_same_question(
    make_judged: MakeContext, server: JudgeServer
) -> None:
    context = make_judged()
    window = hours_ago(2)
    wanted = add_judged_window(context, window, FOUR)
    apart = add_trajectory(
        context, window, "agent-9", isEvaluation=True, stepsJson=play(400.0, 0.7)
    )
    pipeline.produce(context)
    assert pipeline.score(context) == [window]
    assert len(server.requests) == 1
    assert stored(context) == {**wanted, apart: 0.7}
    row = one(context, "SELECT agents, trajectories FROM rl.windows")
    assert row == {"agents": 4, "trajectories": 4}
    apart_alone = query(context, "SELECT trajectory_id AS id FROM rl.scores WHERE exam_only")
    assert [row["id"] for row in apart_alone] == [apart]


# --- bad answers ---


@pytest.mark.parametrize(
    ("behaviour", "fault"),
    [
        (judge.too_few, "scores are missing for ids 4"),
        (judge.too_many, "there are no ids 5"),
        (judge.duplicate_ids, "scores are missing for ids 4; more than one score for ids 1"),
        (judge.unknown_ids, "scores are missing for ids 1, 2, 3, 4; there are no ids 100,"),
        (judge.shuffled + judge.too_few, "scores are missing for ids 1"),
        (judge.out_of_range, "no number from 0 to 1 for ids 1, 2, 3, 4"),
        (judge.nan, "no number from 0 to 1 for ids 1, 2, 3, 4"),
        (judge.infinite, "no number from 0 to 1 for ids 1, 2, 3, 4"),
        (judge.not_numbers, "no number from 0 to 1 for ids 1, 2, 3, 4"),
        (huge + judge.prose, "no number from 0 to 1 for ids 1, 2, 3, 4"),
        (judge.empty, "it was not a JSON object"),
        (judge.refusal, "it was not a JSON object"),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_a_bad_answer_is_refused_and_asked_for_again(
    make_judged: MakeContext, server: JudgeServer, behaviour: Behaviour, fault: str
) -> None:
    context = make_judged()
    window = hours_ago(2)
    wanted = add_judged_window(context, window, FOUR)
    pipeline.produce(context)
    server.then(behaviour)
    assert pipeline.score(context) == [window]
    assert stored(context) == wanted
    first, again = server.requests
    assert "answer was refused" not in prompt(first)
    assert f"Your last answer was refused: {fault}" in prompt(again)
    assert again.trajectories == first.trajectories
    refused, kept = query(context, "SELECT * FROM rl.judgments ORDER BY asked_at")
    assert fault in refused["fault"]
    assert (refused["scores"], refused["explanations"]) == (None, None)
    assert refused["question"] == kept["question"]
    assert dict(zip(kept["trajectory_ids"], kept["scores"], strict=True)) == wanted
    for row in (refused, kept):
        paid = row["prompt_tokens"] * 1e-6 + row["completion_tokens"] * 1e-5
        assert float(row["usd"]) == pytest.approx(paid)
    assert_costs_add_up(context, window)


def test_each_retry_names_the_last_fault_only(
    make_judged: MakeContext, server: JudgeServer
) -> None:
    context = make_judged()
    wanted = add_judged_window(context, hours_ago(2), FOUR)
    pipeline.produce(context)
    server.then(judge.too_few, judge.refusal)
    pipeline.score(context)
    assert stored(context) == wanted
    told = [prompt(request).count("Your last answer was refused") for request in server.requests]
    assert told == [0, 1, 1]
    assert "missing" not in prompt(server.requests[2])


@pytest.mark.parametrize(
    ("behaviour", "times", "paid"),
    [(judge.too_few, 3, 3), (judge.length, 1, 1), (judge.context_too_long, 1, 0)],
    ids=["bad", "cut off", "too long"],
)
def test_an_answer_that_stays_bad_is_asked_for_in_smaller_groups(
    make_judged: MakeContext, server: JudgeServer, behaviour: Behaviour, times: int, paid: int
) -> None:
    """What was cut off, or too long, would be so again: it is not asked again as it was."""
    context = make_judged()
    window = hours_ago(2)
    wanted = add_judged_window(context, window, EIGHT)
    pipeline.produce(context)
    server.then(*[behaviour] * times)
    assert pipeline.score(context) == [window]
    whole, halves = server.requests[:times], server.requests[times:]
    assert [marks(request) for request in whole] == [set(EIGHT)] * times
    one_half, other = map(marks, halves)
    assert len(one_half) == len(other) == 5
    assert one_half | other == set(EIGHT)  # so two are in both
    judgments = query(context, "SELECT * FROM rl.judgments WHERE fault IS NOT NULL")
    assert len(judgments) == paid
    found = stored(context)
    for half in (one_half, other):  # two scales made one: the order within each stays
        members = sorted((each for each in wanted if wanted[each] in half), key=wanted.__getitem__)
        assert members == sorted(members, key=found.__getitem__)
    rows = query(context, "SELECT trajectory_id, raw_score, components FROM rl.scores")
    assert {row["trajectory_id"]: row["raw_score"] for row in rows} == pytest.approx(wanted)
    assert sorted(row["components"]["groups"] for row in rows) == [1] * 6 + [2] * 2
    assert_costs_add_up(context, window)


def test_no_good_answer_at_all_counts_attempts_until_the_window_fails(
    make_judged: MakeContext, server: JudgeServer
) -> None:
    context = make_judged(max_attempts=2, retry_seconds=30.0)
    window = hours_ago(2)
    add_judged_window(context, window, FOUR)
    add_request(context, "batch-1", window, "v1.0.0")
    pipeline.produce(context)
    server.default = judge.too_few
    assert pipeline.score(context) == []
    # Four together, then twice three of them; three cannot be halved.
    assert sorted(len(marks(request)) for request in server.requests) == [3] * 6 + [4] * 3
    row = window_row(context, window)
    assert (row["state"], row["attempts"]) == ("due", 1)
    assert row["last_error"].startswith("JudgeFault: no usable answer from openai/judge: ")
    assert "scores are missing for ids 3" in row["last_error"]
    assert 25 < row["waits"] <= 30
    assert pipeline.score(context) == []
    assert len(server.requests) == 9  # it waits
    let_waits_pass(context)
    assert pipeline.score(context) == []
    row = window_row(context, window)
    assert (row["state"], row["attempts"]) == ("failed", 2)
    assert "scores are missing for ids 3" in row["last_error"]
    ends = query(context, "SELECT outcome, error FROM rl.attempts")
    assert [end["outcome"] for end in ends] == ["error", "error"]
    request = one(context, "SELECT status, error FROM training_batches")
    assert request["status"] == "failed"
    assert "scores are missing" in request["error"]
    assert stored(context) == {}


def test_no_good_answer_at_all_falls_back_as_set(
    make_judged: MakeContext, server: JudgeServer
) -> None:
    context = make_judged(judge_fallback="heuristic")
    window = hours_ago(2)
    add_judged_window(context, window, FOUR)
    pipeline.produce(context)
    server.default = judge.refusal
    assert pipeline.score(context) == [window]
    assert window_row(context, window)["scorer"] == "heuristic"
    assert stored(context) == {}
    by_money = query(context, "SELECT * FROM rl.scores ORDER BY trajectory_id")
    # P&L 0, -50, -100, -150, 3 steps: 0.25 + 0.15 + 0.03, 0.2375 + 0 + 0.03, …
    assert [row["score"] for row in by_money] == pytest.approx([0.43, 0.2675, 0.255, 0.2425])
    assert [row["judge_model"] for row in by_money] == [None] * 4
    assert query(context, "SELECT * FROM reward_judgments") == []
    assert_costs_add_up(context, window)  # the refused answers were paid for all the same


class OneIsPoison(JudgeServer):
    """Never answers well where it is shown the worst of them; takes its time where it is not."""

    def answer_for(self, request: Received) -> Behaviour:
        return judge.too_few if 0.1 in marks(request) else judge.hang(0.3)


def test_answers_on_their_way_are_kept_when_another_group_fails(
    make_judged: MakeContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(judge_prompt, "MOST_TOGETHER", 4)
    with OneIsPoison() as server:
        context = make_judged(judge_base_url=server.url)
        add_judged_window(context, hours_ago(2), EIGHT)
        pipeline.produce(context)
        assert pipeline.score(context) == []
        good = [marks(r) for r in server.requests if 0.1 not in marks(r)]
        kept = query(context, "SELECT * FROM rl.judgments WHERE fault IS NULL")
        assert len(kept) == len(good) == 3  # two groups, and the half without the poison
        pipeline.score(context)
        assert [marks(r) for r in server.requests if 0.1 not in marks(r)] == good


# --- what is not worth a question ---


def test_too_few_agents_cost_nothing(make_judged: MakeContext, server: JudgeServer) -> None:
    context = make_judged(min_agents_per_window=3)
    window = hours_ago(2)
    add_judged_window(context, window, [0.1, 0.9])
    add_trajectory(context, window, "broken", stepsJson="[{")
    pipeline.produce(context)
    assert pipeline.score(context) == [window]
    row = window_row(context, window)
    assert (row["state"], row["reason"]) == ("skipped", "2 agents with usable traces, needs 3")
    assert server.requests == []


def test_all_alike_cost_nothing(make_judged: MakeContext, server: JudgeServer) -> None:
    context = make_judged()
    window = hours_ago(2)
    for n in range(3):
        add_trajectory(context, window, f"agent-{n}", stepsJson=play(5.0))
    pipeline.produce(context)
    assert pipeline.score(context) == [window]
    assert states(context) == {window: "skipped"}
    assert "no signal" in window_row(context, window)["reason"]
    assert server.requests == []
