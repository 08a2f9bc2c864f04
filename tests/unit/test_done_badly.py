"""What a version of the lineage did badly: what of it is read, and what score it gets."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from babylon_tasks.records.recorded_steps import RawTrace
from babylon_tasks.records.scores import Score
from babylon_tasks.records.steps import Call, Logprobs
from babylon_tasks.records.traces import BadCall, Outcome, Trace, decode
from babylon_tasks.records.versions import Versions
from babylon_tasks.scoring.filters import apply
from babylon_tasks.scoring.heuristic import heuristic
from babylon_tasks.scoring.own import OwnVersions
from babylon_tasks.scoring.registry import WITHOUT_JUDGE
from babylon_tasks.scoring.rubric import Rubric
from babylon_tasks.scoring.scorer import Group
from babylon_tasks.scoring.verdict import Verdict, verdict_on
from babylon_tasks.settings import Settings

VERSIONS = Versions("agent", {("agent", "v1.0.0"): 1, ("agent", "v1.0.1"): 2})
OWN = OwnVersions(VERSIONS)


# --- what is read of a call that was done badly ---


def call(response: Any, version: str | None = "v1.0.0", **more: Any) -> dict[str, Any]:
    told = {} if version is None else {"modelVersion": version}
    return {
        "systemPrompt": "You trade.",
        "userPrompt": "Now?",
        "response": response,
        **told,
        **more,
    }


def trace_of(*calls: dict[str, Any]) -> Trace:
    text = json.dumps([{"environmentState": {"agentPnL": 1}, "llmCalls": calls}])
    return decode(RawTrace("t1", "agent-1", len(text), text))


def test_an_answer_that_is_long_and_whole_is_not_done_badly() -> None:
    """Its length in characters only guesses at one in tokens; that it ended is recorded."""
    long = trace_of(call("and so on " * 80, maxTokens=200, finish_reason="stop"))
    assert (long.badly, long.outcome.left_out) == ([], {"truncated": 1})


def whole_reply(text: str, reason: str) -> dict[str, Any]:
    message = {"role": "assistant", "content": text}
    return {"choices": [{"finish_reason": reason, "message": message}]}


@pytest.mark.parametrize(
    ("recorded", "reason", "response", "ended"),
    [
        (call(""), "empty", "", True),
        (call(" \n"), "empty", " \n", True),
        (call("", finish_reason="stop"), "empty", "", True),
        # It looks unfinished, and nothing says that the model ended it.
        (call('{"action": "BU'), "truncated", '{"action": "BU', False),
        (call('{"action": "BU', finish_reason="stop"), "truncated", '{"action": "BU', True),
        (call("and so on " * 80, maxTokens=200), "truncated", "and so on " * 80, False),
        (call("BUY, for", finish_reason="length"), "truncated", "BUY, for", False),
        (call("I will", stopReason="content-filter"), "truncated", "I will", False),
        (call("BUY, fo", stop_reason="error"), "truncated", "BUY, fo", False),
        (call(whole_reply("BUY, for", "length")), "truncated", "BUY, for", False),
        (
            {
                "messages": [
                    {"role": "user", "content": "Now?"},
                    {"role": "assistant", "content": "BUY, for", "finish_reason": "length"},
                ],
                "modelVersion": "v1.0.0",
            },
            "truncated",
            "BUY, for",
            False,
        ),
    ],
)
def test_a_bad_call_of_a_known_version_is_kept_apart(
    recorded: dict[str, Any], reason: str, response: str, ended: bool
) -> None:
    trace = trace_of(recorded, call("BUY"))
    assert [each.response for each in trace.calls] == ["BUY"]
    assert trace.outcome.left_out == {reason: 1}
    assert trace.outcome.answered == {"v1.0.0": 2}
    (bad,) = trace.badly
    assert (bad.response, bad.ended) == (response, ended)
    assert bad.prompt()[-1] == {"role": "user", "content": "Now?"}
    size = bad.prompt_bytes() + len(response)
    assert trace.outcome.badly == [BadCall("v1.0.0", reason, size)]
    assert trace.outcome.text_bytes == len("You trade.Now?BUY")
    assert trace.outcome.bytes_to_train == trace.outcome.text_bytes + size


@pytest.mark.parametrize(
    "recorded",
    [
        call("", None),  # nobody knows whose it is
        call('{"action": "BU', None),
        call("", userPrompt=" ", systemPrompt=""),  # and to what it is an answer
        call("", finish_reason="length"),  # it neither said anything nor ended
        call("", finish_reason="content_filter"),
        call("", tool_calls=[{"function": {"name": "buy", "arguments": "{}"}}]),
        call("BUY", finish_reason="tool_calls"),
        call([{"type": "image_url", "image_url": {"url": "x"}}]),
        call(7),
    ],
)
def test_a_bad_call_with_nothing_to_train_on_stays_left_out(recorded: dict[str, Any]) -> None:
    trace = trace_of(recorded)
    assert (trace.calls, trace.badly, trace.outcome.badly) == ([], [], [])
    assert sum(trace.outcome.left_out.values()) == 1
    assert not trace.outcome.trainable


def test_a_bad_call_that_was_recorded_twice_is_one() -> None:
    trace = trace_of(call(""), call(""), call("BU", finish_reason="length"), call(""))
    assert [each.response for each in trace.badly] == ["", "BU"]
    assert trace.outcome.left_out == {"empty": 3, "truncated": 1}


def test_what_the_agent_saw_is_not_taken_for_its_answers_end() -> None:
    seen = [
        {"role": "user", "content": "Buy."},
        {"role": "tool", "content": "no", "status": "failed", "tool_call_id": "1"},
    ]
    whole = trace_of({"messages": seen, "response": "So I", "modelVersion": "v1.0.0"})
    cut = trace_of(
        {"messages": seen, "response": "So I", "modelVersion": "v1.0.0", "finish_reason": "length"}
    )
    assert [each.prompt() for each in cut.badly] == [each.prompt() for each in whole.calls]


def test_recorded_log_probabilities_stay_with_a_bad_call() -> None:
    content = {"content": [{"token": "token_id:7", "logprob": -0.5}]}
    (bad,) = trace_of(call("", logprobs=content)).badly
    assert bad.logprobs == Logprobs((7,), (-0.5,))


def test_other_calls_are_written_as_they_always_were() -> None:
    """The digest of a step's samples is in its recipe."""
    written = msgspec.json.encode(Call("s", "u", "r"))
    assert written == b'{"system":"s","user":"u","response":"r","logprobs":null}'
    bad = Call("s", "u", "", ended=True)
    assert msgspec.json.decode(msgspec.json.encode(bad), type=Call) == bad


# --- whose it is ---


def run(name: str, pnl: float = 0.0, **changes: Any) -> Outcome:
    """A run of ten actions and calls, all by version v1.0.1, that no filter leaves out."""
    plain = Outcome(
        name, f"agent-{name}", pnl, 10, 0, 10, {}, 100, f"content-{name}", {"v1.0.1": 10}
    )
    return replace(plain, **changes)


@pytest.mark.parametrize(
    ("answered", "own"),
    [
        ({"v1.0.1": 6}, True),  # of ten calls
        ({"agent-v1.0.0": 3, "v1.0.1": 3, "gpt-4o": 4}, True),
        ({"agent@2": 5, "agent@0": 1, "gpt-4o": 2}, True),  # 0: the base model, under our name
        ({"v1.0.1": 1}, False),  # nine name no version: they are another model's
        ({"v1.0.1": 5, "gpt-4o": 5}, False),  # half is not most
        ({"v9.9.9": 10}, False),
        ({"agent@3": 10}, False),  # no such step
        ({"other@1": 10}, False),
        ({}, False),
    ],
)
def test_a_run_is_the_lineages_own_where_its_versions_answered_most(
    answered: dict[str, int], own: bool
) -> None:
    assert OWN.did(run("a", answered=answered)) == own


def test_only_bad_calls_of_the_lineages_own_versions_train() -> None:
    bad = [BadCall(v, "empty", 9) for v in ("v1.0.0", "gpt-4o", "agent@2")]
    left_out = {"empty": 4, "no_prompt": 1}
    claimed = OWN.claim(run("a", badly=bad, left_out=left_out))
    assert claimed.badly == [bad[0], bad[2]]
    assert claimed.left_out == {"empty": 2, "no_prompt": 1}  # one repeated, one another model's


def test_counts_by_version_by_hand() -> None:
    outcomes = [
        run("a", answered={"v1.0.0": 2, "agent-v1.0.1": 6, "agent@2": 1, "gpt-4o": 1}),
        run("b", badly=[BadCall("v1.0.1", "empty", 9)] * 3),
        run("c", answered={"v1.0.0": 4, "agent@0": 1}, floored="it failed"),
        run("d", answered={"gpt-4o": 5}),
    ]
    assert OWN.count(outcomes) == {
        "agent@0": {"runs": 1, "calls": 1, "badly": 1},
        "v1.0.0": {"runs": 2, "calls": 2 + 4, "badly": 4},
        "v1.0.1": {"runs": 2, "calls": 6 + 1 + 10, "badly": 3},
    }


# --- which runs are kept, and what they get ---


def test_a_bad_run_is_left_out_only_if_another_model_did_it() -> None:
    failed, short = run("failed", failed=6), run("short", steps=2)
    others = [
        replace(each, trajectory_id=f"{each.trajectory_id}-x", answered={"gpt-4o": 10})
        for each in (failed, short)
    ]
    copy = replace(failed, trajectory_id="copy")
    kept, left_out = apply(
        [run("a"), failed, short, copy, *others], Settings(min_actions=3), "w", OWN.did
    )
    assert {each.trajectory_id: each.floored for each in kept} == {
        "a": None,
        "failed": "6 of 10 actions failed",
        "short": "2 actions, MIN_ACTIONS is 3",
    }
    assert left_out == {"failed_actions": 1, "few_actions": 1, "duplicate": 1}


class Told:
    """A scorer that gives the scores it is told, and notes whom it was shown."""

    name = "told"
    sees_runs = False
    rubric: Rubric | None = None

    def __init__(self, **scores: float) -> None:
        self.scores, self.shown = scores, list[str]()

    async def score(self, group: Group) -> list[Score]:
        self.shown = [each.trajectory_id for each in group.outcomes]
        return [
            Score(name, name, self.scores[name], self.scores[name], {}, "told", "hash", "judge")
            for name in self.shown
        ]


def judge(
    scorer: Any, outcomes: Sequence[Outcome], floored: Sequence[Outcome], **changes: Any
) -> Verdict:
    group = Group(
        "w", outcomes, {}, [], [replace(o, floored="3 of 4 actions failed") for o in floored]
    )
    return asyncio.run(verdict_on(group, scorer, Settings(**changes)))


def test_a_bad_run_gets_the_lowest_score_and_no_scorer_sees_it() -> None:
    scorer = Told(a=0.9, b=0.25)
    verdict = judge(scorer, [run("a"), run("b")], [run("c", pnl=9000.0)])
    assert scorer.shown == ["a", "b"]
    assert [(s.trajectory_id, s.score) for s in verdict.scores] == [
        ("a", 0.9),
        ("b", 0.25),
        ("c", 0.25),
    ]
    bad = verdict.scores[-1]
    assert bad.reasoning == (
        "3 of 4 actions failed: a version of this lineage did this, so it gets the group's lowest "
        "score"
    )
    assert (bad.components, bad.judge_model, bad.raw_score) == ({"floored": 1.0}, None, 0.25)
    assert (bad.agent_id, bad.content_hash) == ("agent-c", "content-c")
    assert verdict.why_skip is None


def test_the_heuristic_counts_no_bad_run_for_its_agent() -> None:
    """It scores an agent over all its runs: a bad one must neither pull it up nor hide there."""
    good, other = run("a", pnl=100.0), run("b", pnl=-300.0)
    verdict = judge(
        WITHOUT_JUDGE["heuristic"], [good, other], [run("c", pnl=5000.0, agent_id="agent-a")]
    )
    by_id = {score.trajectory_id: score.score for score in verdict.scores}
    alone = {score.trajectory_id: score.score for score in heuristic([good, other])}
    assert by_id == {**alone, "c": min(alone.values())}


@pytest.mark.parametrize(
    ("outcomes", "floored", "why"),
    [
        (
            [],
            ["c", "d"],
            "0 trajectories to score, a comparison needs 2 (of this lineage's own, 2 were",
        ),
        (["a"], ["c", "d"], "1 trajectories to score, a comparison needs 2 (of"),
        (["a", "same"], ["c"], "no signal"),  # both get 0.9
        ([], ["c"], "1 agents with usable traces, needs 2"),
    ],
)
def test_bad_runs_alone_teach_nothing(outcomes: list[str], floored: list[str], why: str) -> None:
    scorer = Told(a=0.9, same=0.9)
    verdict = judge(scorer, [run(each) for each in outcomes], [run(each) for each in floored])
    assert (verdict.why_skip or "").startswith(why)
    assert bool(scorer.shown) == (len(outcomes) == 2)


def test_an_agent_of_a_bad_run_counts_as_any_other() -> None:
    scorer = Told(a=0.9, b=0.25)
    ours = [run("a"), run("b", agent_id="agent-a")]
    assert judge(scorer, ours, [run("c")]).why_skip is None
    assert "1 agents" in (judge(scorer, ours, [run("c", agent_id="agent-a")]).why_skip or "")


def test_a_run_trains_by_its_bad_calls_alone() -> None:
    bad = [BadCall("v1.0.1", "empty", 9)]
    silent = {"text_bytes": 0, "badly": bad}
    # b has nothing but bad calls, and its own 0.5 is not what these get: the lowest is 0.1.
    scorer = Told(a=0.9, b=0.5, c=0.1)
    mute = run("c", text_bytes=0)
    assert judge(scorer, [run("a"), run("b", **silent), mute], []).why_skip is None
    assert "1 trainable" in (
        judge(scorer, [run("a"), run("b", text_bytes=0), mute], []).why_skip or ""
    )
    # All that trains gets 0.1 then.
    why = judge(scorer, [run("a", **silent), run("b", **silent), mute], []).why_skip
    assert (why or "").startswith("no signal")


OUTCOMES = st.lists(
    st.builds(
        run,
        st.integers(0, 10**6).map(lambda n: f"t{n}"),
        st.floats(-2000, 2000),
        agent_id=st.sampled_from("abc"),
        steps=st.integers(1, 12),
        failed=st.integers(0, 12),
        answered=st.sampled_from([{"v1.0.1": 3}, {"agent@0": 1}, {"gpt-4o": 3}, {}]),
    ),
    unique_by=lambda outcome: outcome.trajectory_id,
    max_size=8,
)


@settings(max_examples=50)
@given(OUTCOMES)
def test_nothing_own_is_left_out_and_nothing_bad_is_above_another(outcomes: list[Outcome]) -> None:
    chosen = Settings(min_actions=3)
    kept, left_out = apply(outcomes, chosen, "w", OWN.did)
    assert len(kept) + left_out.total() == len(outcomes)
    names = {each.trajectory_id for each in kept}
    assert {each.trajectory_id for each in outcomes if OWN.did(each)} <= names
    floored = [each for each in kept if each.floored]
    assert all(OWN.did(each) for each in floored)
    group = Group("w", [each for each in kept if not each.floored], {}, [], floored)
    verdict = asyncio.run(verdict_on(group, WITHOUT_JUDGE["heuristic"], chosen))
    scores = {score.trajectory_id: score.score for score in verdict.scores}
    if scores:
        assert scores.keys() == names
        assert {scores[each.trajectory_id] for each in floored} <= {min(scores.values())}
