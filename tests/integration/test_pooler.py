"""A real PgBouncer in between, which gives a server's connection to whoever is next."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import psycopg
import pytest

from babylon_tasks import pipeline
from babylon_tasks.cockpit import checks
from babylon_tasks.errors import ServerRefused, UserError
from babylon_tasks.records.steps import Trainer
from babylon_tasks.settings import Settings
from babylon_tasks.store.identity import key_prefix
from babylon_tasks.store.migrate import migrate, pending
from babylon_tasks.work.context import Context
from tests.captured import answer, remember
from tests.conftest import with_database
from tests.pgbouncer import pgbouncer
from tests.rows import add_window, hours_ago, one, query, states

MANY = 100


@pytest.fixture(scope="module")
def by_transaction(postgres_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of the pooler, in transaction mode."""
    folder = tmp_path_factory.mktemp("pooler")
    with pgbouncer(postgres_url, folder, "transaction") as url:
        yield url


def behind(pooler: str, settings: Settings) -> str:
    """The test's database, through the pooler."""
    with psycopg.connect(settings.postgres()) as connection:
        return with_database(pooler, connection.info.dbname)


def add_many_windows(context: Context, count: int) -> list[str]:
    """Windows of three agents each, copied from one in the database."""
    windows = [hours_ago(hours) for hours in range(2, 2 + count)]
    add_window(context, windows[0])
    with context.database.transaction() as tx:
        tx.execute(
            """CREATE TEMP TABLE copied ON COMMIT DROP AS
               SELECT t.*, w AS of FROM trajectories t, unnest(%s::text[]) AS w""",
            [windows[1:]],
        )
        tx.execute(
            """UPDATE copied SET id = id || '/' || of, "trajectoryId" = "trajectoryId" || '/' || of,
                                 "windowId" = of, "scenarioId" = of"""
        )
        tx.execute("ALTER TABLE copied DROP COLUMN of")
        tx.execute("INSERT INTO trajectories SELECT * FROM copied")
    return windows


_SCORE_SOME = """
import os, sys
from babylon_tasks import pipeline
from babylon_tasks.settings import Settings
from babylon_tasks.work.context import Context

context = Context.of_deployment(Settings(database_url=sys.argv[1]), f"test:{os.getpid()}")
moved = [window for _ in range(3) for window in pipeline.score(context, limit=4)]
print(len(moved), flush=True)
os._exit(0)  # nothing is closed
"""


def test_two_workers_of_which_one_is_restarted_again_and_again(
    by_transaction: str, context: Context, make_context: Callable[..., Context]
) -> None:
    windows = add_many_windows(context, MANY)
    url = behind(by_transaction, context.settings)
    steady = make_context(database_url=url, lookback_hours=2 * MANY)
    pipeline.produce(steady)

    def score_in_short_lives() -> int:
        moved = 0
        for _ in range(3):
            done = subprocess.run(
                [sys.executable, "-c", _SCORE_SOME, url], capture_output=True, text=True, check=True
            )
            moved += int(done.stdout)
        return moved

    with ThreadPoolExecutor(1) as pool:
        beside = pool.submit(score_in_short_lives)
        while "due" in states(context).values():
            pipeline.score(steady, limit=1)
    assert beside.result() > 0
    assert states(context) == dict.fromkeys(windows, "scored")
    assert query(context, "SELECT error FROM rl.attempts WHERE error IS NOT NULL") == []
    assert one(context, "SELECT count(*) AS n FROM rl.scores") == {"n": 3 * MANY}


def test_every_stage_and_command_goes_through_it(
    by_transaction: str, context: Context, make_context: Callable[..., Context], trainer: Trainer
) -> None:
    url = behind(by_transaction, context.settings)
    worker = make_context(database_url=url)
    window = add_window(worker, hours_ago(2)) and hours_ago(2)
    pipeline.produce(worker)
    assert pipeline.score(worker) == [window]
    assert pipeline.train(worker, trainer)
    pipeline.publish(worker)
    assert states(context) == {window: "trained"}
    assert key_prefix(url) == key_prefix(context.settings.postgres())
    assert pending(url) == []
    assert "127.0.0.1" in checks.postgres(worker.settings)


def test_migrations_go_through_it(by_transaction: str, fresh_database: str) -> None:
    with psycopg.connect(fresh_database) as connection:
        url = with_database(by_transaction, connection.info.dbname)
    assert len(migrate(url)) >= 14
    assert migrate(url) == []


@pytest.mark.parametrize("pool_mode", ["session", "statement"])
def test_other_modes_work_or_are_refused(
    pool_mode: str, postgres_url: str, context: Context, tmp_path: Path,
    make_context: Callable[..., Context],
) -> None:  # fmt: skip
    add_window(context, hours_ago(2))
    pipeline.produce(context)
    with pgbouncer(postgres_url, tmp_path, pool_mode) as pooler:
        worker = make_context(database_url=behind(pooler, context.settings))
        with closing(worker.database):
            if pool_mode == "session":
                assert pipeline.score(worker) == [hours_ago(2)]
                return
            with pytest.raises(UserError, match="pool_mode=statement knows no transactions"):
                pipeline.score(worker)
            with pytest.raises(UserError, match="set pool_mode=transaction"):
                checks.postgres(worker.settings)
            with pytest.raises(UserError, match="set pool_mode=transaction"):
                migrate(worker.settings.postgres())
    assert one(context, "SELECT attempts FROM rl.windows") == {"attempts": 0}


def test_its_console_is_no_database(by_transaction: str) -> None:
    settings = Settings(database_url=with_database(by_transaction, "pgbouncer"))
    for refuse in (checks.postgres, checks.tables, lambda _: migrate(settings.postgres())):
        with pytest.raises(UserError, match="invalid command") as caught:
            refuse(settings)
        assert "\n" not in str(caught.value)
    assert "this is PgBouncer's console" in str(caught.value)


def test_one_that_has_a_single_connection_for_a_process_is_named(
    postgres_url: str, context: Context, tmp_path: Path
) -> None:
    """PgBouncer lets the second one in and keeps it waiting, for two minutes by default."""
    with pgbouncer(postgres_url, tmp_path, "session", default_pool_size="1") as pooler:
        settings = Settings(database_url=behind(pooler, context.settings))
        with pytest.raises(UserError, match=r"no second connection .* raise PgBouncer's default_p"):
            checks.postgres(settings)


def test_one_that_forbids_simple_statements_is_named(
    postgres_url: str, context: Context, tmp_path: Path
) -> None:
    with pgbouncer(postgres_url, tmp_path, "transaction", disable_pqexec="1") as pooler:
        settings = Settings(database_url=behind(pooler, context.settings))
        for refuse in (checks.postgres, checks.tables, lambda s: migrate(s.postgres())):
            with pytest.raises(UserError, match="set disable_pqexec=0"):
                refuse(settings)


def test_options_that_it_does_not_pass_on_are_named(
    by_transaction: str, context: Context, make_context: Callable[..., Context]
) -> None:
    url = behind(by_transaction, context.settings) + "?options=-cgeqo%3Doff"
    with pytest.raises(UserError, match="takes no options=…: leave it out") as caught:
        query(make_context(database_url=url), "SELECT 1")
    assert isinstance(caught.value, ServerRefused)


def test_the_endpoint_remembers_through_it(
    by_transaction: str, make_context: Callable[..., Context], settings: Settings
) -> None:
    context = make_context(database_url=behind(by_transaction, settings))
    for _ in range(3):
        remember(context, [answer()] * 2)
    assert one(context, "SELECT count(*) AS n FROM rl.calls")["n"] == 6
    assert one(context, "SELECT answers FROM rl.assignments")["answers"] == 6
