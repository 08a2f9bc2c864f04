"""What the endpoint remembers: rows, counters and bounds; and that it is never in the way."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from babylon_tasks import pipeline
from babylon_tasks.records.captured import FailedCall
from babylon_tasks.records.windows import window_id_at
from babylon_tasks.serving import remembered
from babylon_tasks.serving.remembered import forget_old_calls
from babylon_tasks.store import calls as call_rows
from babylon_tasks.work.context import Context
from tests.captured import answer, remember, wait_until
from tests.clock import move_clock
from tests.outage import Outage
from tests.rows import commit_steps, one, query
from workers.gpu.client import TrainerProcess
from workers.serve import capture as capturing
from workers.serve.capture import Capture

MakeContext = Callable[..., Context]

HOUR = datetime(2026, 3, 1, 13, 59, 59, tzinfo=UTC)


@pytest.fixture(autouse=True)
def in_a_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short waits between writes, and a short patience with Postgres."""
    monkeypatch.setattr(capturing, "_FLUSH_SECONDS", 0.01)
    monkeypatch.setattr(capturing, "_TELL_SECONDS", 0.05)
    monkeypatch.setattr(capturing, "_COUNT_SECONDS", 0.05)
    monkeypatch.setattr(capturing, "_WAIT_SECONDS", (0.05, 0.1))
    monkeypatch.setattr(capturing, "_ANSWER_SECONDS", 1.0)


@pytest.fixture
def capture(context: Context) -> Iterator[Capture]:
    """The memory of a running endpoint."""
    capture = Capture(context.settings)
    yield capture
    capture.close()


@contextmanager
def locked(context: Context, statement: str) -> Iterator[psycopg.Connection]:
    """Hold the locks that a statement takes."""
    with psycopg.connect(context.settings.postgres()) as other:
        other.execute(statement)  # type: ignore[arg-type]
        yield other
        other.rollback()


def kept(context: Context) -> list[dict[str, Any]]:
    return query(context, "SELECT * FROM rl.calls ORDER BY id")


def assigned(context: Context) -> dict[tuple[str, str, str, int], int]:
    rows = query(context, "SELECT * FROM rl.assignments")
    return {(r["model_name"], r["window_id"], r["agent"], r["step"]): r["answers"] for r in rows}


# --- what is written ---


def test_an_answer_is_a_row_without_its_texts(context: Context) -> None:
    given = answer(at=HOUR, logprobs=(-0.1, 0.0, -9999.0), first_token_ms=40)
    remember(context, [given])
    (row,) = kept(context)
    assert (row["at"], row["model_name"], row["step"]) == (HOUR, "babylon-agent", 1)
    assert (row["prompt_hash"], row["response_hash"]) == (given.prompt_hash, given.response_hash)
    assert (row["agent"], row["backend"], row["finish_reason"]) == ("agent-0", "embedded", "stop")
    assert row["token_ids"] == [11, 12, 13]
    assert row["logprobs"] == pytest.approx([-0.1, 0.0, -9999.0])
    assert (row["prompt_tokens"], row["latency_ms"], row["first_token_ms"]) == (9, 120, 40)


def test_which_agent_had_which_version_in_which_window(context: Context) -> None:
    later = HOUR + timedelta(seconds=1)
    answers = [
        *[answer(agent="a", at=HOUR)] * 3, answer(agent="a", at=later),
        answer(agent="a", at=HOUR, step=2), answer(agent="b", at=HOUR, lineage="other"),
        answer(agent=None, at=HOUR),
        answer(agent="a", at=HOUR.astimezone(None) - timedelta(minutes=5)),
    ]  # fmt: skip
    for each in answers:  # as one endpoint, then again as several
        remember(context, [each])
    remember(context, answers)
    assert assigned(context) == {
        ("babylon-agent", "2026-03-01T13:00", "a", 1): 8,
        ("babylon-agent", "2026-03-01T14:00", "a", 1): 2,
        ("babylon-agent", "2026-03-01T13:00", "a", 2): 2,
        ("other", "2026-03-01T13:00", "b", 1): 2,
    }
    row = one(
        context,
        "SELECT * FROM rl.assignments WHERE window_id = '2026-03-01T13:00' AND agent = 'a' "
        "AND step = 1",
    )
    assert (row["first_at"], row["last_at"]) == (HOUR - timedelta(minutes=5), HOUR)


def test_what_a_version_did_badly_is_counted_for_its_agent(context: Context) -> None:
    for _ in range(2):  # two endpoints
        capture = Capture(context.settings)
        for each in (
            answer(agent="a", at=HOUR, malformed=True), answer(agent="a", at=HOUR),
            answer(agent="b", at=HOUR, pinned=True),
        ):  # fmt: skip
            capture.add(each)
        for _ in range(3):
            capture.add_failed(FailedCall(HOUR, "babylon-agent", 1, "a"))
        capture.add_failed(FailedCall(HOUR, "babylon-agent", 1, "failed only"))
        capture.add_failed(None)  # type: ignore[arg-type]
        capture.close()
        assert capture.counts.dropped == {"fault": 1}
    rows = query(context, "SELECT * FROM rl.assignments ORDER BY agent")
    counts = ("agent", "answers", "failed", "malformed", "pinned")
    assert [tuple(row[name] for name in counts) for row in rows] == [
        ("a", 4, 6, 2, 0), ("b", 2, 0, 0, 2), ("failed only", 0, 2, 0, 0),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"token_ids": (), "logprobs": ()}, "no_tokens"),
        ({"prompt_hash": None}, "unreadable_prompt"),
        ({"logprobs": (-0.5,)}, "odd_logprobs"),
        ({"logprobs": (-0.5, math.nan)}, "odd_logprobs"),
        ({"logprobs": (-math.inf, -0.5)}, "odd_logprobs"),
        ({"logprobs": (0.25, -0.5)}, "odd_logprobs"),
        ({"token_ids": (5, 2**31)}, "odd_logprobs"),
    ],
)
def test_what_cannot_train_is_not_kept_but_counts_for_its_agent(
    context: Context, capture: Capture, changes: dict[str, Any], reason: str
) -> None:
    given = answer(at=HOUR)
    for name, value in changes.items():
        object.__setattr__(given, name, value)
    capture.add(given)
    capture.close()
    assert kept(context) == []
    assert capture.counts.dropped == {reason: 1}
    assert list(assigned(context).values()) == [1]


def test_without_the_setting_no_answer_is_kept_and_all_are_counted(
    make_context: MakeContext,
) -> None:
    context = make_context(capture_calls=False)
    remember(context, [answer(), answer(token_ids=(), logprobs=())])
    assert kept(context) == []
    assert sum(assigned(context).values()) == 2


@pytest.mark.parametrize("agent", ["a\0b", "\ud800", "x" * 5000, "\U0001f600" * 5000, "é'\"\\{}"])
def test_any_agents_name_is_taken(context: Context, agent: str) -> None:
    remember(context, [answer(agent=agent), answer()])
    assert len(kept(context)) == len(assigned(context)) == 2


def test_a_row_that_postgres_refuses_costs_no_later_one(context: Context, capture: Capture) -> None:
    capture.add(answer(finish_reason="a\0b"))
    wait_until(lambda: capture.counts.dropped["refused"])
    capture.add(answer())
    wait_until(lambda: capture.counts.captured)
    capture.close()
    assert len(kept(context)) == 1
    assert sum(assigned(context).values()) == 2


def test_a_row_that_postgres_refuses_costs_none_of_its_batch(
    context: Context, capture: Capture
) -> None:
    with locked(context, "LOCK TABLE rl.calls, rl.assignments IN ACCESS EXCLUSIVE MODE"):
        for number in range(40):
            lineage, reason = "a\0" if number == 5 else "l", "a\0b" if number == 13 else "stop"
            capture.add(answer(agent=f"a{number}", lineage=lineage, finish_reason=reason))
    wait_until(lambda: capture.counts.captured == 38)
    capture.close()
    assert capture.counts.dropped == {"refused": 2, "agent_refused": 1}
    assert len(kept(context)) == 38
    assert len(assigned(context)) == 39


def test_whatever_it_is_given_it_does_not_raise(context: Context, capture: Capture) -> None:
    capture.add(None)  # type: ignore[arg-type]
    odd = answer()
    object.__setattr__(odd, "at", "yesterday")
    capture.add(odd)
    capture.add(answer())
    wait_until(lambda: capture.counts.captured)
    assert capture.counts.dropped == {"fault": 2}


# --- the app's counters ---


def test_the_app_sees_how_much_each_version_is_used(
    context: Context, trainer: TrainerProcess
) -> None:
    commit_steps(context, trainer, 2)
    now = datetime.now(UTC)
    long_ago = now - timedelta(hours=5)
    remember(
        context,
        [
            answer(agent="a", at=now), answer(agent="a", at=now), answer(agent="b", at=now),
            answer(agent="c", at=long_ago), answer(agent=None, at=now),
            answer(agent="b", step=2, at=now), answer(step=0), answer(step=99),
            answer(lineage="other"),
        ],
    )  # fmt: skip
    rows = query(context, 'SELECT * FROM trained_models ORDER BY "modelId"')
    used = [(row["modelId"], row["totalInferences"], row["agentsUsing"]) for row in rows]
    assert used == [("babylon-agent-v1.0.0", 5, 2), ("babylon-agent-v1.0.1", 1, 1)]
    with context.database.transaction() as tx:
        tx.execute("UPDATE rl.assignments SET window_id = '2026-01-01T00:00' WHERE step = 1")
    remember(context, [answer(agent="b", step=2, at=now)])
    rows = query(context, 'SELECT * FROM trained_models ORDER BY "modelId"')
    assert [row["agentsUsing"] for row in rows] == [0, 1]


def test_another_lineages_versions_are_not_in_the_apps_table(
    make_context: MakeContext, trainer: TrainerProcess
) -> None:
    context = make_context()
    commit_steps(context, trainer, 1)
    with context.database.transaction() as tx:
        tx.execute("UPDATE rl.lineages SET is_primary = false")
    remember(context, [answer()])
    assert one(context, "SELECT * FROM trained_models")["totalInferences"] == 0


def test_it_waits_for_no_lock_of_the_app(
    context: Context, trainer: TrainerProcess, capture: Capture
) -> None:
    commit_steps(context, trainer, 1)
    for statement in (
        "SELECT * FROM trained_models FOR UPDATE",
        "LOCK TABLE trained_models IN ACCESS EXCLUSIVE MODE",
    ):
        before = len(kept(context))
        with locked(context, statement):
            for _ in range(5):
                capture.add(answer())
                captured = capture.counts.captured
                wait_until(lambda n=captured: capture.counts.captured > n)  # type: ignore[misc]
        assert len(kept(context)) == before + 5

    def counted() -> bool:
        row = one(context, "SELECT * FROM trained_models")
        return bool(row["totalInferences"] == 10 and row["agentsUsing"] == 1)

    wait_until(counted)


def test_a_table_of_the_app_without_the_counters_costs_no_answer(
    context: Context, trainer: TrainerProcess, capture: Capture
) -> None:
    commit_steps(context, trainer, 1)
    with context.database.transaction() as tx:
        tx.execute('ALTER TABLE trained_models DROP COLUMN "totalInferences"')
    for number in range(3):
        capture.add(answer())
        wait_until(lambda n=number: capture.counts.captured > n)  # type: ignore[misc]
    assert len(kept(context)) == 3


# --- never in the way ---


def longest_add(capture: Capture, count: int) -> float:
    """The most seconds that giving an answer took."""
    longest = 0.0
    for _ in range(count):
        began = time.monotonic()
        capture.add(answer())
        longest = max(longest, time.monotonic() - began)
    return longest


def test_a_slow_postgres_makes_nobody_wait(
    context: Context, capture: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its table is locked for longer than the thread's patience."""
    monkeypatch.setattr(capturing, "_MOST_ROWS", 100)
    with locked(context, "LOCK TABLE rl.calls IN ACCESS EXCLUSIVE MODE"):
        assert longest_add(capture, 150) < 0.5  # the thread waits for a second and longer
        assert capture.counts.dropped == {"queue_full": 50}
        wait_until(lambda: capture._say_at)  # it has given up once
        capture.add(answer())
        assert capture.queued == 100
    wait_until(lambda: capture.counts.captured == 100)
    capture.close()
    assert len(kept(context)) == 100
    assert sum(assigned(context).values()) == 151


def test_postgres_away_loses_what_does_not_fit_and_no_count(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capturing, "_MOST_BYTES", 20_000)
    outage = Outage(context, seconds=None)
    outage.begin()
    capture = Capture(context.settings)
    assert longest_add(capture, 40) < 0.5
    wait_until(lambda: capture._say_at)
    fit = capture.queued
    assert 10 < fit < 40
    assert capture.counts.dropped == {"queue_full": 40 - fit}
    outage.end()
    wait_until(lambda: capture.counts.captured == fit)
    capture.close()
    assert len(kept(context)) == fit
    assert sum(assigned(context).values()) == 40


def test_agents_that_are_too_many_to_add_up_are_counted(
    context: Context, capture: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capturing, "_MOST_AGENTS", 3)
    with locked(context, "LOCK TABLE rl.assignments, rl.calls IN ACCESS EXCLUSIVE MODE"):
        for number in range(5):
            capture.add(answer(agent=f"agent-{number}"))
        assert capture.counts.dropped["too_many_agents"] == 2


def test_it_ends_though_postgres_hangs(
    context: Context, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(capturing, "_CLOSE_SECONDS", 0.2)
    capture = Capture(context.settings)
    with locked(context, "LOCK TABLE rl.calls IN ACCESS EXCLUSIVE MODE"):
        for _ in range(7):
            capture.add(answer())
        capture.close()
        assert capture.counts.dropped == {"closed": 7}
    assert "7 answers are not remembered" in caplog.text
    capture._thread.join()


def test_before_the_migration_the_endpoint_runs(
    context: Context, capture: Capture, caplog: pytest.LogCaptureFixture
) -> None:
    with context.database.transaction() as tx:
        tx.execute("ALTER TABLE rl.calls RENAME TO later")
    capture.add(answer())
    wait_until(lambda: "run `babylon migrate`" in caplog.text)
    with context.database.transaction() as tx:
        tx.execute("ALTER TABLE rl.later RENAME TO calls")
    wait_until(lambda: capture.counts.captured)


# --- its bounds ---


def test_what_is_too_old_is_forgotten(
    make_context: MakeContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remembered, "_AT_ONCE", 3)
    context = make_context(capture_days=2)
    now = datetime.now(UTC)
    for days in (3, 2.1, 1.9, 0):
        remember(context, [answer(at=now - timedelta(days=days))] * 4)
    forget_old_calls(context.database, context.settings)
    assert len(kept(context)) == 8
    move_clock(context, 86400)
    forget_old_calls(context.database, context.settings)
    assert len(kept(context)) == 4
    assert len(assigned(context)) == 4  # which are kept for longer
    move_clock(context, (call_rows.ASSIGNMENT_DAYS - 2) * 86400)
    forget_old_calls(context.database, context.settings)
    assert (len(kept(context)), len(assigned(context))) == (0, 1)


def test_the_oldest_of_too_many_are_forgotten(
    make_context: MakeContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remembered, "_AT_ONCE", 7)
    context = make_context(capture_rows=20)
    remember(context, [answer(step=number) for number in range(50)])
    forget_old_calls(context.database, context.settings)
    assert [row["step"] for row in kept(context)] == list(range(30, 50))


def test_the_oldest_of_too_many_agents_are_forgotten(
    make_context: MakeContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An agent without a name of its own is a row for each of its prompts."""
    monkeypatch.setattr(remembered, "_AT_ONCE", 70)
    context = make_context(capture_rows=200)
    now = datetime.now(UTC)
    hours = [now - timedelta(hours=4 - n // 100) for n in range(500)]
    remember(
        context,
        [answer(agent=f"a{n}", at=at, lineage=f"l{n % 3}") for n, at in enumerate(hours)],
    )
    forget_old_calls(context.database, context.settings)
    left = assigned(context)
    assert 190 <= len(left) <= 200
    assert {window for _, window, _, _ in left} == {
        window_id_at(hours[-1]),
        window_id_at(hours[-101]),
    }


def test_ids_that_no_row_has_do_not_count(make_context: MakeContext) -> None:
    """A batch that failed has taken some."""
    context = make_context(capture_rows=20)
    remember(context, [answer(step=number) for number in range(10)])
    with context.database.transaction() as tx:
        tx.execute("SELECT setval(pg_get_serial_sequence('rl.calls', 'id'), 1000)")
    remember(context, [answer(step=number) for number in range(10, 20)])
    forget_old_calls(context.database, context.settings)
    assert len(kept(context)) == 20


def test_one_process_forgets_at_a_time(make_context: MakeContext) -> None:
    context = make_context(capture_rows=1)
    remember(context, [answer()] * 3)
    with context.database.transaction() as tx:
        call_rows.forget_some(tx, 1, 2, 10)
        other = make_context(capture_rows=1)
        forget_old_calls(other.database, other.settings)  # returns at once
    assert len(kept(context)) == 2


def test_the_sweep_forgets(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    from workers import process as module
    from workers.process import PoolProcess

    changed = context.settings.model_copy(update={"capture_rows": 2})
    monkeypatch.setattr(module, "load_settings", lambda: changed)
    remember(context, [answer()] * 5)
    PoolProcess().forget_old_calls()
    assert len(kept(context)) == 2
    assert pipeline.sweep(context, 1).due == []
