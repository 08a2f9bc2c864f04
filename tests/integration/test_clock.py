"""The one clock: all SQL asks it, and tests move it."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

import babylon_tasks.store
from babylon_tasks import pipeline
from babylon_tasks.errors import UserError
from babylon_tasks.records.steps import Trainer
from babylon_tasks.store import canaries, leases, transitions
from babylon_tasks.store.database import now
from babylon_tasks.store.queries import load
from babylon_tasks.store.windows import DueQuery
from babylon_tasks.work.context import Context
from babylon_tasks.work.fleet import Fleet
from tests.clock import let_leases_run_out, move_clock
from tests.rows import add_window, hours_ago, one, query, scored_windows

SQL_FILES = sorted((Path(babylon_tasks.store.__file__).parent / "sql").glob("*.sql"))
BOTH = "SELECT rl.now() - now() AS now, rl.clock_timestamp() - clock_timestamp() AS clock"


def seconds_ahead(context: Context, offset: str | None = None) -> dict[str, float]:
    """How far both functions are ahead of Postgres' own, to the second."""
    with context.database.transaction() as tx:
        if offset is not None:
            tx.execute("SELECT set_config('rl.clock_offset', %s, true)", [offset])
        row: Any = tx.execute(BOTH).fetchone()
    return {name: round(value.total_seconds()) for name, value in row.items()}


def test_a_transaction_moves_its_own_clock_and_no_other(context: Context) -> None:
    """As behind a pooler, where the next transaction on the connection is somebody else's."""
    nowhere = {"now": 0, "clock": 0}
    assert seconds_ahead(context) == nowhere
    assert seconds_ahead(context, "1 hour") == {"now": 3600, "clock": 3600}
    assert seconds_ahead(context) == nowhere
    assert seconds_ahead(context, "-90") == {"now": -90, "clock": -90}
    assert seconds_ahead(context, "") == nowhere


def test_a_moved_clock_holds_for_every_connection(context: Context) -> None:
    before = seconds_ahead(context)
    move_clock(context, 100)
    move_clock(context, 20)
    assert before == {"now": 0, "clock": 0}
    assert seconds_ahead(context) == {"now": 120, "clock": 120}
    code = (
        "import sys, psycopg; "
        "print(psycopg.connect(sys.argv[1]).execute('SELECT rl.now() - now()').fetchone()[0])"
    )
    url = context.settings.postgres()
    other = subprocess.run([sys.executable, "-c", code, url], capture_output=True, text=True)
    assert other.stdout.strip() == "0:02:00", other.stderr


def test_one_goes_on_within_a_transaction_and_one_does_not(context: Context) -> None:
    with context.database.transaction() as tx:
        first, started = now(tx), tx.execute("SELECT rl.clock_timestamp() AS t").fetchone()
        tx.execute("SELECT pg_sleep(0.002)")
        second, later = now(tx), tx.execute("SELECT rl.clock_timestamp() AS t").fetchone()
    assert first == second
    assert started
    assert later
    assert later["t"] - started["t"] >= timedelta(milliseconds=2)
    assert isinstance(first, datetime)


def test_a_lease_runs_out_by_it(make_context: Callable[..., Context]) -> None:
    context, other = make_context(), make_context()

    def acquire(who: Context) -> leases.Lease | None:
        with who.database.transaction() as tx:
            return leases.acquire(tx, "model/m", who.holder, context.settings.lease_seconds)

    first = acquire(context)
    assert first
    assert acquire(other) is None
    move_clock(context, context.settings.lease_seconds - 2)
    assert acquire(other) is None
    let_leases_run_out(context)
    second = acquire(other)
    assert second
    assert second.token > first.token


def test_the_planner_sees_through_both(context: Context) -> None:
    """A call a row would cost more than the row; and a STABLE moment can be looked up by index."""
    text = "EXPLAIN (VERBOSE, COSTS OFF) SELECT FROM rl.judgments WHERE asked_at >= "
    functions = {"rl.now()": "(now() +", "rl.clock_timestamp()": "clock_timestamp() +"}
    for function, inlined in functions.items():
        plan = "\n".join(row["QUERY PLAN"] for row in query(context, text + function))
        assert inlined in plan
        assert function not in plan
    with context.database.transaction() as tx:
        tx.execute("SELECT set_config('enable_seqscan', 'off', true)")
        spent = load("judgments")["spent_today"]
        plan = "\n".join(row["QUERY PLAN"] for row in tx.execute("EXPLAIN " + spent))
    assert "judgments_asked_at_idx" in plan


@pytest.mark.parametrize("file", SQL_FILES, ids=lambda file: file.stem)
def test_no_query_asks_another_clock(file: Path) -> None:
    others = re.compile(
        r"(?<!rl\.)\b(now|(clock|statement|transaction)_timestamp)\s*\(|\b(current|local)_?time",
        re.IGNORECASE,
    )
    found = [line for line in file.read_text().splitlines() if others.search(line)]
    assert found == []


def test_every_insert_gives_its_time(context: Context) -> None:
    """A column's default is the server's own clock."""
    columns = query(
        context,
        """SELECT table_name, column_name FROM information_schema.columns
            WHERE table_schema = 'rl' AND table_name <> 'migrations'
              AND column_default ~ '(now|timestamp)\\('""",
    )
    times: dict[str, set[str]] = {}
    for row in columns:
        times.setdefault(row["table_name"], set()).add(row["column_name"])
    inserts = re.compile(r"INSERT INTO rl\.(\w+)(?: AS \w+)? \(([^)]*)\)")
    seen = set()
    for file in SQL_FILES:
        for table, names in inserts.findall(file.read_text()):
            seen.add(table)
            assert times.get(table, set()) <= {name.strip() for name in names.split(",")}, table
    assert seen >= set(times) - {"quarantine"}  # only release 0.1.0 writes into it


def test_a_database_without_it_is_to_be_migrated(context: Context) -> None:
    with context.database.transaction() as tx:
        tx.execute("DROP FUNCTION rl.now()")
    with pytest.raises(
        UserError, match=r"function rl.now\(\) does not exist: run `babylon migrate`"
    ):
        pipeline.produce(context)
    with context.database.transaction() as tx:
        tx.execute("DROP SCHEMA rl CASCADE")
    with (
        pytest.raises(UserError, match='schema "rl" does not exist: run `babylon migrate`'),
        context.database.transaction() as tx,
    ):
        now(tx)
    assert one(context, "SELECT 1 AS n") == {"n": 1}


HOUR = 3600.0


def test_nothing_waits_for_an_hour_that_the_clock_went_back(
    context: Context, trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A window that waits for another try, one that a dead worker holds, and one just made due."""
    failed, dead, new = hours_ago(4), hours_ago(3), hours_ago(2)
    add_window(context, failed)
    pipeline.produce(context)
    monkeypatch.setattr("babylon_tasks.scoring.run.read_window", None)
    patient = replace(context, settings=context.settings.model_copy(update={"retry_seconds": 30}))
    assert pipeline.score(patient) == []
    monkeypatch.undo()
    add_window(context, dead)
    pipeline.produce(context)
    claim_and_die(context)
    add_window(context, new)
    pipeline.produce(context)
    move_clock(context, -HOUR)
    assert pipeline.score(context) == [new]  # its wait began in the future
    assert pipeline.score(context) == [failed]
    let_leases_run_out(context)
    assert pipeline.score(context) == [dead]
    report = pipeline.train(context, trainer)
    assert report
    assert sorted(report.window_ids) == [failed, dead, new]


def claim_and_die(context: Context) -> None:
    with context.database.transaction() as tx:
        due = DueQuery(context.lineage.name, "heuristic", ["heuristic"], None)
        assert transitions.claim_due(tx, due, "dead", 9, context.settings.lease_seconds)


def test_a_sweep_finds_them_and_a_dead_trainers_lease_ends(
    context: Context, trainer: Trainer
) -> None:
    fleet = Fleet(context.database, context.settings, context.holder)
    (window,) = scored_windows(context, 2)
    with context.database.transaction() as tx:
        leases.acquire(tx, "model/babylon-agent", "dead", context.settings.lease_seconds)
        tx.execute("UPDATE rl.windows SET not_before = rl.now() + interval '30 s'")
    assert list(fleet.in_turn("train")) == []
    move_clock(context, -HOUR)
    assert not fleet.sweep(9).train  # the lease has LEASE_SECONDS more
    let_leases_run_out(context)
    assert fleet.sweep(9).train
    assert [each.lineage.name for each in fleet.in_turn("train")] == ["babylon-agent"]
    report = pipeline.train(context, trainer)
    assert report
    assert report.window_ids == [window]


def test_a_living_holder_and_an_ordinary_wait_are_left_alone(context: Context) -> None:
    fleet = Fleet(context.database, context.settings, context.holder)
    scored_windows(context, 2)
    with context.database.transaction() as tx:
        lease = leases.acquire(tx, "model/m", "alive", context.settings.lease_seconds)
        assert lease
        tx.execute("UPDATE rl.windows SET not_before = rl.now() + interval '1 day'")
    before = query(context, "SELECT * FROM rl.leases")
    fleet.sweep(9)
    assert query(context, "SELECT * FROM rl.leases") == before
    waits = "SELECT not_before > rl.now() + interval '23 hours' AS waits FROM rl.windows"
    assert one(context, waits) == {"waits": True}
    move_clock(context, -HOUR)
    fleet.sweep(9)
    with context.database.transaction() as tx:
        leases.renew(tx, [lease], context.settings.lease_seconds)
        assert leases.holder(tx, "model/m") == "alive"


def test_turns_that_were_taken_in_the_future_are_no_turns(context: Context) -> None:
    fleet = Fleet(context.database, context.settings, context.holder)
    list(fleet.in_turn("train"))
    with context.database.transaction() as tx:
        tx.execute("UPDATE rl.turns SET taken_at = rl.clock_timestamp() + interval '1 hour'")
        canaries.note(tx, "cpu", "h")
    move_clock(context, -HOUR)
    fleet.sweep(9)
    assert query(context, "SELECT 1 FROM rl.turns WHERE taken_at > rl.clock_timestamp()") == []
    with context.database.transaction() as tx:
        assert canaries.read(tx)["cpu"].age_seconds > HOUR - 60
