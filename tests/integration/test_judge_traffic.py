"""How a judge is asked: not too fast, not too often, and for no more money than allowed."""

from __future__ import annotations

import logging
from base64 import b64encode
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from pydantic import SecretStr

from babylon_tasks import pipeline
from babylon_tasks.scoring.judge import client as asking
from babylon_tasks.work.context import Context
from tests import judge_server as judge
from tests.clock import let_waits_pass, move_clock
from tests.judge_server import Behaviour, JudgeServer, Received
from tests.judged import (
    THREE,
    add_judged_window,
    assert_costs_add_up,
    every_row,
    judged_windows,
    marks,
    stored,
    wait_for_requests,
    window_row,
)
from tests.rows import hours_ago, one, query, states

MakeContext = Callable[..., Context]

# litellm's own; ruler_call silences it, pytest undoes that.
pytestmark = pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")

KEY = "sk-judge-0123456789abcdef-very-secret"


# --- a judge that does not answer ---

BUSY = [
    (judge.rate_limited(None), "RateLimitError"),
    (judge.server_error, "InternalServerError"),
    (judge.overloaded, "ServiceUnavailableError"),
    (judge.reset, "InternalServerError"),
    (judge.cut_short, "InternalServerError"),
    (judge.not_json, "InternalServerError"),
]


def name(value: Any) -> str:
    return getattr(value, "name", "")


@pytest.mark.parametrize("behaviour", [each for each, _ in BUSY], ids=name)
def test_it_is_asked_again(
    make_judged: MakeContext, server: JudgeServer, behaviour: Behaviour
) -> None:
    context = make_judged()
    (window,) = judged_windows(context, 1)
    server.then(behaviour, behaviour)
    assert pipeline.score(context) == [window]
    assert sorted(stored(context).values()) == sorted(THREE)
    assert [request.behaviour for request in server.requests] == [behaviour.name] * 2 + ["good"]
    assert len(query(context, "SELECT * FROM rl.judgments")) == 1
    assert_costs_add_up(context, window)


@pytest.mark.parametrize("behaviour", [judge.hang(), judge.drip(60.0)], ids=name)
def test_a_judge_that_is_too_slow_is_asked_again(
    make_judged: MakeContext, server: JudgeServer, behaviour: Behaviour
) -> None:
    """A drip is never silent for long, and late all the same."""
    context = make_judged(judge_timeout_seconds=1.5)
    (window,) = judged_windows(context, 1)
    server.then(behaviour)
    assert pipeline.score(context) == [window]
    assert len(server.requests) == 2


@pytest.mark.parametrize(
    ("behaviour", "error"),
    [*BUSY, (judge.hang(), "JUDGE_TIMEOUT_SECONDS"), (judge.drip(60.0), "JUDGE_TIMEOUT_SECONDS")],
    ids=name,
)
def test_while_it_stays_away_windows_wait_and_no_attempt_counts(
    make_judged: MakeContext, server: JudgeServer, behaviour: Behaviour, error: str
) -> None:
    seconds = 0.5 if behaviour.fault in ("hang", "drip") else 20.0
    context = make_judged(judge_timeout_seconds=seconds, retry_seconds=30.0)
    (window,) = judged_windows(context, 1)
    server.default = behaviour
    assert pipeline.score(context) == []
    wait_for_requests(server, asking._TRIES)
    row = window_row(context, window)
    assert (row["state"], row["attempts"]) == ("due", 0)
    assert row["last_error"].startswith("JudgeUnavailable: the judge does not answer: openai/judge")
    assert error in row["last_error"]
    assert 25 < row["waits"] <= 30
    attempt = one(context, "SELECT outcome, error FROM rl.attempts")
    assert attempt == {"outcome": "given_back", "error": row["last_error"]}
    assert query(context, "SELECT * FROM rl.leases") == []
    server.default = judge.good
    assert pipeline.score(context) == []  # not before its time
    let_waits_pass(context)
    assert pipeline.score(context) == [window]
    assert window_row(context, window)["last_error"] is None


def test_while_it_stays_away_windows_fall_back_as_set(
    make_judged: MakeContext, server: JudgeServer
) -> None:
    context = make_judged(judge_fallback="heuristic")
    windows = judged_windows(context, 3)
    server.default = judge.overloaded
    assert sorted(pipeline.score(context)) == windows
    assert [window_row(context, w)["scorer"] for w in windows] == ["heuristic"] * 3
    # Three questions at once; the first that was asked four times gives up for all.
    assert asking._TRIES <= len(server.requests) <= 3 * asking._TRIES


def test_retry_after_holds_for_all_windows(make_judged: MakeContext, server: JudgeServer) -> None:
    context = make_judged(judge_concurrency=1)
    windows = judged_windows(context, 4)
    server.then(judge.rate_limited(1))
    assert sorted(pipeline.score(context)) == windows
    first, *later = sorted(request.at_seconds for request in server.requests)
    assert len(later) == 4
    assert min(later) - first >= 1.0


@pytest.mark.parametrize(("asked", "waits"), [(3600, 3600), (1e9, 86_400)])
def test_an_hour_is_not_slept_through(
    make_judged: MakeContext, server: JudgeServer, asked: float, waits: int
) -> None:
    context = make_judged(judge_concurrency=1)
    windows = judged_windows(context, 3)
    server.default = judge.rate_limited(asked)
    assert pipeline.score(context) == []
    assert len(server.requests) == 1
    for window in windows:
        row = window_row(context, window)
        assert (row["state"], row["attempts"]) == ("due", 0)
        assert waits - 100 < row["waits"] <= waits
        assert "RateLimitError" in row["last_error"]


@pytest.mark.parametrize(
    "behaviour", [judge.unauthorized, judge.no_such_model, judge.insufficient_quota], ids=name
)
def test_a_refusal_is_not_repeated_and_says_what_to_check(
    make_judged: MakeContext, server: JudgeServer, behaviour: Behaviour
) -> None:
    context = make_judged(retry_seconds=30.0, judge_concurrency=1)
    windows = judged_windows(context, 3)
    server.default = behaviour
    assert pipeline.score(context) == []
    assert len(server.requests) == 1
    for window in windows:
        row = window_row(context, window)
        assert (row["state"], row["attempts"]) == ("due", 0)
        assert (
            "check JUDGE_MODEL, JUDGE_BASE_URL, the judge's key and its account"
            in (row["last_error"])
        )
        assert 25 < row["waits"] <= 30


class OneIsFiltered(JudgeServer):
    """Refuses to read one window's trajectories, and answers for the others."""

    def answer_for(self, request: Received) -> Behaviour:
        return judge.content_filter if 0.01 in marks(request) else judge.good


def test_a_judge_that_will_not_read_one_window_is_asked_about_the_others(
    make_judged: MakeContext,
) -> None:
    with OneIsFiltered() as server:
        context = make_judged(judge_base_url=server.url, judge_concurrency=1, max_attempts=1)
        bad, *others = sorted(hours_ago(n) for n in range(2, 6))
        add_judged_window(context, bad, [0.01, 0.02, 0.03])
        for window in others:
            add_judged_window(context, window, THREE)
        pipeline.produce(context)
        assert sorted(pipeline.score(context)) == others
        row = window_row(context, bad)
        assert row["state"] == "failed"
        assert "content management policy" in row["last_error"]


# --- keys ---


class Echo(JudgeServer):
    """Repeats the key that it refuses, as some do."""

    def answer_for(self, request: Received) -> Behaviour:
        error = {**(judge.unauthorized.error or {})}
        error["message"] = f"Incorrect API key provided: {request.headers['authorization']}."
        return replace(judge.unauthorized, error=error)


@pytest.mark.parametrize("kind", [JudgeServer, Echo])
def test_the_key_is_nowhere_but_in_the_request(
    make_judged: MakeContext,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    kind: type[JudgeServer],
) -> None:
    caplog.set_level(logging.DEBUG)
    with kind() as server:
        context = make_judged(judge_base_url=server.url, judge_api_key=SecretStr(KEY))
        (window,) = judged_windows(context, 1)
        server.then(judge.server_error, judge.too_few, judge.hang(0.1))
        with caplog.at_level(logging.DEBUG, "babylon_tasks"):
            pipeline.score(context)
        assert server.requests[0].headers["authorization"] == f"Bearer {KEY}"
        scored = kind is JudgeServer
        assert states(context) == {window: "scored" if scored else "due"}
        if not scored:
            assert "Incorrect API key provided" in window_row(context, window)["last_error"]
    said = capfd.readouterr()
    for text in (every_row(context), caplog.text, said.out, said.err, repr(context)):
        assert KEY not in text
        assert "very-secret" not in text


@pytest.mark.parametrize(
    ("variable", "user", "query"),
    [
        ("HF_TOKEN", "", ""),
        ("AWS_SECRET_ACCESS_KEY", "", ""),
        ("WATSONX_APIKEY", "", ""),
        ("", f"me:{KEY}@", ""),
        ("", "", f"?key={KEY}&api-version=2024-10-21"),
    ],
    ids=["token", "secret", "apikey", "password", "query"],
)
def test_a_key_of_any_kind_that_is_repeated_is_told_nobody(
    make_judged: MakeContext, monkeypatch: pytest.MonkeyPatch, variable: str, user: str, query: str
) -> None:
    pair = b64encode(f"me:{KEY}".encode()).decode()
    if variable:
        monkeypatch.setenv(variable, KEY)

    class Repeats(JudgeServer):
        def answer_for(self, request: Received) -> Behaviour:
            error = {**(judge.unauthorized.error or {}), "message": f"not valid: {KEY} {pair}"}
            return replace(judge.unauthorized, error=error)

    with Repeats() as server:
        server.path += query
        address = server.url.replace("http://", f"http://{user}") + query
        context = make_judged(judge_base_url=address)
        (window,) = judged_windows(context, 1)
        assert pipeline.score(context) == []
    assert "not valid: …" in window_row(context, window)["last_error"]
    assert KEY not in every_row(context)
    assert not user or pair not in every_row(context)


def test_a_providers_key_does_not_go_to_another_address(
    make_judged: MakeContext, server: JudgeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    context = make_judged()
    judged_windows(context, 1)
    pipeline.score(context)
    (request,) = server.requests
    assert KEY not in str(request.headers)
    assert KEY not in str(request.body)


# --- money ---


def let_a_day_begin(context: Context) -> None:
    """Let time pass until the next midnight, UTC."""
    rest = """SELECT extract(epoch FROM date_trunc('day', t) + interval '1 day' - t)::float8 AS rest
                FROM (SELECT rl.now() AT TIME ZONE 'utc') AS now (t)"""
    move_clock(context, one(context, rest)["rest"])


def dear(make_judged: MakeContext, **changes: Any) -> Context:
    """A worker whose judge takes a dollar a token of its answer; a question may cost $560."""
    return make_judged(judge_input_usd_per_million=0.0, judge_output_usd_per_million=1e6, **changes)


def test_the_daily_limit_stops_judging_and_says_so(
    make_judged: MakeContext, server: JudgeServer
) -> None:
    context = dear(make_judged, judge_daily_usd=750.0, judge_concurrency=1, retry_seconds=30.0)
    windows = judged_windows(context, 5)
    let_a_day_begin(context)  # none ends while the windows wait
    done = pipeline.score(context)
    spent = one(context, "SELECT sum(usd) AS usd FROM rl.judgments")["usd"]
    assert 0 < len(done) < 5
    assert len(server.requests) == len(done)
    assert 190 < spent <= 750  # else another question was possible
    waiting = sorted(set(windows) - set(done))
    for window in waiting:
        row = window_row(context, window)
        assert (row["state"], row["attempts"]) == ("due", 0)
        assert "the judge's daily limit is reached" in row["last_error"]
        assert f"${spent:.4f} of JUDGE_DAILY_USD=750" in row["last_error"]
        assert row["waits"] > 500
    let_waits_pass(context)
    assert pipeline.score(context) == []
    assert len(server.requests) == len(done)
    let_a_day_begin(context)
    assert pipeline.score(context)
    # A higher limit.
    let_waits_pass(context)
    rich = dear(make_judged, judge_daily_usd=1e6)
    pipeline.score(rich)
    assert states(context) == dict.fromkeys(windows, "scored")


def test_questions_in_flight_count_towards_the_limit(
    make_judged: MakeContext, server: JudgeServer
) -> None:
    """Two may cost 1,120 together, so each waits for what the one before really cost: 67."""
    context = dear(make_judged, judge_daily_usd=750.0)
    windows = judged_windows(context, 5)
    server.delay_seconds = 0.5
    done = pipeline.score(context)
    assert server.most_at_once == 1
    assert len(done) == len(server.requests) == 3  # 3 · 67 + 560 > 750
    for window in set(windows) - set(done):
        row = window_row(context, window)
        assert (row["state"], row["attempts"]) == ("due", 0)
        assert "the judge's daily limit is reached: $201" in row["last_error"]


class NeverAnswersOne(JudgeServer):
    """Fails whenever it sees the trajectory that asks for 0.333."""

    def answer_for(self, request: Received) -> Behaviour:
        if 0.333 in marks(request):
            return judge.server_error
        return super().answer_for(request)


def test_a_question_that_alone_is_not_answered_counts_against_its_window(
    make_judged: MakeContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A judge that answers others meanwhile is not gone."""
    monkeypatch.setattr("babylon_tasks.scoring.judge.client._FIRST_WAIT_SECONDS", 0.1)
    with NeverAnswersOne(delay_seconds=0.1) as server:
        context = make_judged(judge_base_url=server.url, retry_seconds=30.0)
        windows = [hours_ago(hours) for hours in (4, 3, 2)]
        for window in windows:
            scores = [0.1, 0.333, 0.9] if window == windows[1] else [0.1, 0.5, 0.9]
            add_judged_window(context, window, scores)
        pipeline.produce(context)
        assert sorted(pipeline.score(context)) == [windows[0], windows[2]]
        row = window_row(context, windows[1])
        assert (row["state"], row["attempts"]) == ("due", 1)
        assert "no answer to this question" in row["last_error"]


def test_beyond_the_limit_windows_fall_back_as_set(
    make_judged: MakeContext, server: JudgeServer
) -> None:
    context = dear(make_judged, judge_daily_usd=299.0, judge_fallback="heuristic")
    windows = judged_windows(context, 2)
    assert sorted(pipeline.score(context)) == windows
    assert server.requests == []
    assert [window_row(context, w)["scorer"] for w in windows] == ["heuristic"] * 2


def test_a_limit_without_a_price_is_refused(make_judged: MakeContext, server: JudgeServer) -> None:
    context = make_judged(
        judge_daily_usd=1.0, judge_input_usd_per_million=None, judge_output_usd_per_million=None
    )
    (window,) = judged_windows(context, 1)
    assert pipeline.score(context) == []
    assert server.requests == []
    row = window_row(context, window)
    assert (row["state"], row["attempts"]) == ("due", 0)
    assert "set JUDGE_INPUT_USD_PER_MILLION" in row["last_error"]
    assert one(context, "SELECT outcome FROM rl.attempts")["outcome"] == "given_back"
    assert query(context, "SELECT * FROM rl.leases") == []


def test_a_judge_that_cannot_be_asked_as_it_is_set_falls_back_as_set(
    make_judged: MakeContext, server: JudgeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    context = make_judged(
        judge_base_url=None, judge_model="openai/gpt-4o-mini", judge_fallback="heuristic"
    )
    (window,) = judged_windows(context, 1)
    assert pipeline.score(context) == [window]
    assert one(context, "SELECT scorer FROM rl.windows")["scorer"] == "heuristic"
    assert server.requests == []


def test_one_question_that_is_refused_does_not_hold_up_the_others(
    make_judged: MakeContext,
) -> None:
    """A plain 400 is about the question, even where it is asked first and alone."""

    class Refuses(JudgeServer):
        def answer_for(self, request: Received) -> Behaviour:
            if 0.333 in marks(request):
                return replace(judge.content_filter, error={"message": "Invalid value"})
            return super().answer_for(request)

    with Refuses() as server:
        context = make_judged(
            judge_base_url=server.url, judge_concurrency=1, retry_seconds=30.0, max_attempts=2
        )
        windows = [hours_ago(hours) for hours in (4, 3)]
        add_judged_window(context, windows[0], [0.1, 0.333, 0.9])
        add_judged_window(context, windows[1], [0.1, 0.5, 0.9])
        pipeline.produce(context)
        assert pipeline.score(context) == [windows[1]]
        let_waits_pass(context)
        assert pipeline.score(context) == []
        row = window_row(context, windows[0])
        assert (row["state"], row["attempts"]) == ("failed", 2)
        assert "Invalid value" in row["last_error"]
