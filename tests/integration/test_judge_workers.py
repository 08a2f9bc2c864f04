"""Judging by several workers, some of which die: nothing is bought twice, and limits hold."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest

from babylon_tasks import pipeline
from babylon_tasks.errors import LeaseLost
from babylon_tasks.scoring.judge import prompt, ruler_call
from babylon_tasks.store import judgments
from babylon_tasks.store import scores as score_rows
from babylon_tasks.work.context import Context
from tests.clock import let_leases_run_out
from tests.judge_server import Behaviour, JudgeServer, Received, Together
from tests.judged import (
    THREE,
    add_judged_window,
    assert_costs_add_up,
    judged_windows,
    marks,
    play,
    stored,
    wait_for_requests,
)
from tests.rows import hours_ago, query, states

MakeContext = Callable[..., Context]

# litellm's own; ruler_call silences it, pytest undoes that.
pytestmark = pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")

EIGHT = [0.1, 0.8, 0.3, 0.6, 0.5, 0.2, 0.7, 0.4]


# --- nothing twice ---


@pytest.fixture
def two_together() -> Iterator[Together]:
    with Together(2) as server:
        yield server


@pytest.mark.parametrize("death", [SystemExit, KeyboardInterrupt, LeaseLost])
def test_an_answer_is_not_bought_again_after_a_death_before_the_commit(
    make_judged: MakeContext,
    two_together: Together,
    monkeypatch: pytest.MonkeyPatch,
    death: type[BaseException],
) -> None:
    """LeaseLost gives nothing back, as kill -9 does not."""
    server = two_together
    context, other = make_judged(judge_base_url=server.url), make_judged(judge_base_url=server.url)
    windows = judged_windows(context, 2)

    died = []
    write = score_rows.write

    def dies(*args: Any, **details: Any) -> None:
        if died:  # the others may still be at it
            write(*args, **details)
        died.append(1)
        raise death("before the commit")

    with monkeypatch.context() as patch:
        patch.setattr(score_rows, "write", dies)
        with pytest.raises(death):
            pipeline.score(context)
    if death is LeaseLost:
        assert len(query(context, "SELECT * FROM rl.leases")) == 3
        let_leases_run_out(context)
    assert len(server.requests) == 2
    server.meeting.abort()
    kept = query(context, "SELECT * FROM rl.judgments")
    assert kept
    assert states(other) == dict.fromkeys(windows, "due")
    done: list[str] = []
    for _ in windows:  # windows of a worker that died are claimed one at a time
        done += pipeline.score(other)
    assert sorted(done) == windows
    # What was on its way when the worker died had no answer yet.
    assert len(server.requests) == 2 + 2 - len(kept)
    for window in windows:
        assert_costs_add_up(other, window)


def test_the_questions_of_a_window_that_were_answered_before_a_death_are_not_asked_again(
    make_judged: MakeContext, server: JudgeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prompt, "MOST_TOGETHER", 4)
    context = make_judged(judge_concurrency=1)
    wanted = add_judged_window(context, window := hours_ago(2), EIGHT)
    pipeline.produce(context)
    ask = ruler_call.ask_ruler

    async def dies(*args: Any) -> Any:
        if len(server.requests) == 2:
            raise SystemExit
        return await ask(*args)

    with monkeypatch.context() as patch:
        patch.setattr(ruler_call, "ask_ruler", dies)
        with pytest.raises(SystemExit):
            pipeline.score(context)
    before = [marks(request) for request in server.requests]
    assert len(before) == 2
    assert stored(context) == {}
    assert pipeline.score(context) == [window]
    (last,) = [marks(request) for request in server.requests[2:]]
    assert last not in before
    assert set.union(last, *before) == set(EIGHT)
    assert stored(context).keys() == wanted.keys()
    assert_costs_add_up(context, window)


def test_a_rewritten_trace_is_another_question(
    make_judged: MakeContext, server: JudgeServer
) -> None:
    context = make_judged()
    window = hours_ago(2)
    (first, *_) = add_judged_window(context, window, THREE)
    pipeline.produce(context)
    pipeline.score(context)
    again = "UPDATE rl.windows SET state = 'due' RETURNING 1"
    query(context, again)
    assert pipeline.score(context) == [window]
    assert len(server.requests) == 1
    query(
        context,
        'UPDATE trajectories SET "stepsJson" = %s WHERE "trajectoryId" = %s RETURNING 1',
        play(0.0, 0.7),
        first,
    )
    query(context, again)
    assert pipeline.score(context) == [window]
    assert len(server.requests) == 2
    assert stored(context)[first] == 0.7
    assert_costs_add_up(context, window)


# --- many at once ---


@pytest.mark.parametrize(("concurrency", "windows"), [(16, 16), (3, 9), (1, 2)])
def test_questions_of_several_windows_are_asked_at_once_within_the_limit(
    make_judged: MakeContext, concurrency: int, windows: int
) -> None:
    with Together(concurrency) as server:
        server.delay_seconds = 0.3  # time enough for one too many
        context = make_judged(judge_base_url=server.url, judge_concurrency=concurrency)
        due = judged_windows(context, windows)
        assert sorted(pipeline.score(context)) == due
        assert len(server.requests) == windows
        assert server.most_at_once == concurrency
        assert not server.meeting.broken


class Gate(JudgeServer):
    """Answers when it is let."""

    def __enter__(self) -> Gate:
        self.opened = threading.Event()
        return super().__enter__()

    def __exit__(self, *details: object) -> None:
        self.opened.set()
        super().__exit__(*details)

    def answer_for(self, request: Received) -> Behaviour:
        self.opened.wait(30)
        return super().answer_for(request)


@pytest.fixture
def elsewhere() -> Iterator[ThreadPoolExecutor]:
    """Another worker's thread, with an event loop of its own."""
    ruler_call.load()  # not in two threads at once
    with ThreadPoolExecutor(1) as pool:
        yield pool


def test_one_worker_judges_and_the_others_do_what_needs_no_judge(
    make_judged: MakeContext, elsewhere: ThreadPoolExecutor
) -> None:
    with Gate() as server:
        context, other = make_judged(judge_base_url=server.url), make_judged()
        windows = judged_windows(context, 2)
        judging = elsewhere.submit(pipeline.score, context)
        wait_for_requests(server, 2)
        add_judged_window(other, cheap := hours_ago(5), THREE)
        add_judged_window(other, dear := hours_ago(6), THREE)
        pipeline.produce(other)
        query(
            other,
            "UPDATE rl.windows SET scoring = 'heuristic' WHERE window_id = %s RETURNING 1",
            cheap,
        )
        assert pipeline.score(other) == [cheap]
        assert pipeline.score(other) == []  # not that which is due for a judge either
        assert len(server.requests) == 2
        server.opened.set()
        assert sorted(judging.result()) == windows
        assert pipeline.score(replace(other, settings=context.settings)) == [dear]
        assert server.most_at_once == 2
        assert query(other, "SELECT * FROM rl.leases") == []


def test_a_lost_lease_ends_the_judging_and_another_worker_buys_nothing_twice(
    make_judged: MakeContext, elsewhere: ThreadPoolExecutor
) -> None:
    """Both windows' leases live; that of the judge itself went."""
    with Gate() as server:
        here = {"judge_base_url": server.url, "judge_concurrency": 1}
        slow = make_judged(heartbeat_seconds=0.05, **here)
        other = make_judged(**here)
        first, second = judged_windows(slow, 2)
        judging = elsewhere.submit(pipeline.score, slow)
        wait_for_requests(server, 1)
        with other.database.transaction() as tx:
            # As if nobody had renewed it, and somebody else had it at once.
            tx.execute(
                """UPDATE rl.leases SET token = nextval('rl.lease_tokens'), holder = 'other'
                    WHERE resource = 'judge/babylon-agent'"""
            )
        with pytest.raises(LeaseLost):
            judging.result()
        assert states(other) == {first: "due", second: "due"}
        assert stored(other) == {}
        assert query(other, "SELECT * FROM rl.judgments") == []
        # Held by "other", so nobody judges.
        assert pipeline.score(other) == []
        assert len(server.requests) == 1
        let_leases_run_out(other)
        server.opened.set()
        done = pipeline.score(other) + pipeline.score(other)
        assert sorted(done) == [first, second]
        assert len(server.requests) == 3


def test_answers_before_the_lease_was_lost_are_not_bought_again(
    make_judged: MakeContext, elsewhere: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prompt, "MOST_TOGETHER", 4)
    with Gate() as server:
        here = {"judge_base_url": server.url, "judge_concurrency": 1}
        slow = make_judged(heartbeat_seconds=0.05, **here)
        other = make_judged(**here)
        add_judged_window(slow, window := hours_ago(2), EIGHT)  # three questions
        pipeline.produce(slow)
        server.opened.set()
        add = judgments.add

        def added(*args: Any) -> None:
            """The first answer is kept; then the gate closes."""
            server.opened.clear()
            add(*args)

        with monkeypatch.context() as patch:
            patch.setattr(judgments, "add", added)
            judging = elsewhere.submit(pipeline.score, slow)
            wait_for_requests(server, 2)
            let_leases_run_out(other)
            with pytest.raises(LeaseLost):
                judging.result()
        assert len(query(other, "SELECT * FROM rl.judgments")) == 1
        server.opened.set()
        assert pipeline.score(other) == [window]
        asked = [marks(request) for request in server.requests]
        assert len(asked) == 4
        assert asked.count(asked[0]) == 1
        assert_costs_add_up(other, window)
