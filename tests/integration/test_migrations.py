"""The migrations on every database they may meet, and the runner that applies them."""

from __future__ import annotations

import logging
import shutil
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest
from psycopg import sql

from babylon_tasks.cockpit.lineages import list_lineages
from babylon_tasks.errors import Retryable, UserError
from babylon_tasks.local.pgdata import program
from babylon_tasks.settings import Settings
from babylon_tasks.store import migrate as runner
from babylon_tasks.store.migrate import load_migrations, migrate, migrations_folder, pending
from babylon_tasks.work import lineage_changes
from babylon_tasks.work.fleet import Fleet
from tests.clock import wait_until_blocked

DATA = Path(__file__).parents[1] / "data"
PRISMA = DATA / "prisma_babylon.sql"
UPSTREAM_PYTHON = DATA / "upstream_python_tables.sql"
RELEASE_0_1_0 = DATA / "release_0_1_0.sql"
NAMES = [
    "001_add_babylon_tables",
    "002_add_self_hosted_tables",
    "003_index_trajectory_windows",
    "004_add_attempts",
    "005_add_judgments",
    "006_add_step_economics",
    "007_add_jobs",
    "008_add_logprobs",
    "009_add_checkpoint_nonce",
    "010_add_clock",
    "011_add_lineages",
    "012_key_quarantine_by_lineage",
    "013_add_judgment_purpose",
    "014_add_rubric_hash",
    "015_count_by_version",
    "016_add_promotions",
    "017_add_calls",
    "018_add_api_keys",
    "019_one_deployed_version",
    "020_add_gate",
    "021_index_evaluations",
    "022_add_watching",
    "023_hold_versions",
]
INDEX = "rl_trajectories_window_idx"
DEPLOYED_INDEX = "rl_trained_models_deployed_idx"
EVALUATION_INDEX = "rl_trajectories_evaluation_idx"
OURS = {
    "api_key_usage",
    "api_keys",
    "assignments",
    "attempts",
    "calls",
    "canaries",
    "exams",
    "experiment_looks",
    "experiments",
    "heads",
    "jobs",
    "judgments",
    "leases",
    "lineages",
    "logprobs",
    "migrations",
    "promotions",
    "quarantine",
    "quarantine_by_lineage",
    "resets",
    "scores",
    "shares",
    "steps",
    "turns",
    "unfinished_checkpoints",
    "windows",
    "workers",
}

COLUMNS = """
SELECT table_name, column_name, ordinal_position, data_type, character_maximum_length,
       numeric_precision, numeric_scale, datetime_precision, is_nullable, column_default
FROM information_schema.columns WHERE table_schema = 'public' ORDER BY 1, 3
"""
INDEXES = "SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = 'public' ORDER BY 1"
CONSTRAINTS = """
SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid)
FROM pg_constraint WHERE connamespace = 'public'::regnamespace ORDER BY 1, 2
"""
# The window of a row, written as the store's queries write it.
WINDOW = """(COALESCE("windowId", left("scenarioId", 16)) COLLATE "C")"""
COUNTED = """"isTrainingData" AND NOT "isEvaluation" """


def rows(url: str, query: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(url, autocommit=True) as connection:
        return connection.execute(query).fetchall()


def run(url: str, script: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(script.encode())


def shape_of_public(url: str) -> dict[str, list[tuple[Any, ...]]]:
    """Columns, indexes and constraints of `public`, without the three indexes that we add."""
    ours = (INDEX, DEPLOYED_INDEX, EVALUATION_INDEX)
    return {
        "columns": rows(url, COLUMNS),
        "indexes": [row for row in rows(url, INDEXES) if row[0] not in ours],
        "constraints": rows(url, CONSTRAINTS),
    }


def index_is_valid(url: str, name: str = INDEX) -> bool | None:
    found = rows(
        url,
        "SELECT indisvalid FROM pg_index JOIN pg_class c ON c.oid = indexrelid "
        f"WHERE relname = '{name}'",
    )
    return found[0][0] if found else None


def assert_complete(url: str) -> None:
    found = {name for (name,) in rows(url, "SELECT tablename FROM pg_tables WHERE schemaname='rl'")}
    assert found >= OURS
    assert index_is_valid(url) is True


def insert_trajectories(url: str, windows: int, agents: int) -> None:
    """Hours from 2025-11-01T00:00 on, every second one with its id in scenarioId alone."""
    run(
        url,
        f"""
        INSERT INTO public."User" (id, "updatedAt")
        SELECT 'agent-' || a, now() FROM generate_series(1, {agents}) a;
        INSERT INTO public."trajectories" (id, "trajectoryId", "agentId", "startTime", "endTime",
            "durationMs", "windowId", "scenarioId", "stepsJson", "rewardComponentsJson",
            "metricsJson", "metadataJson", "totalReward", "episodeLength", "finalStatus",
            "updatedAt")
        SELECT id, id, 'agent-' || a, hour, hour + interval '1 hour', 3600000,
            CASE WHEN w % 2 = 0 THEN window_id END,
            CASE WHEN w % 2 = 1 THEN window_id || '-btc' END,
            repeat('x', 500), '{{}}', '{{}}', '{{}}', 0, 1, 'completed', now()
        FROM generate_series(0, {windows} - 1) w, generate_series(1, {agents}) a,
            LATERAL (SELECT timestamp '2025-11-01' + w * interval '1 hour') h (hour),
            LATERAL (SELECT to_char(hour, 'YYYY-MM-DD"T"HH24:00')) i (window_id),
            LATERAL (SELECT window_id || '-' || a) t (id);
        """,
    )
    run(url, 'VACUUM ANALYZE public."trajectories"')


def psql_binary() -> str:
    """The psql of the embedded server's wheel, else one on the PATH."""
    try:
        return str(program("psql"))
    except UserError:
        on_path = shutil.which("psql")
        if not on_path:
            pytest.skip("no psql: install babylon-tasks[embedded]")
        return on_path


def psql_all(url: str) -> str:
    """Run every migration as a DBA would, file by file; returns what psql wrote to stderr."""
    said = ""
    for file in sorted(migrations_folder().glob("*.sql")):
        done = subprocess.run(
            [psql_binary(), "-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", url, "-f", str(file)],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        said += done.stderr
    return said


def break_index(url: str) -> None:
    """Leave the invalid index of a CREATE INDEX CONCURRENTLY that was cut off."""
    index, *_ = (m for m in load_migrations() if not m.transactional)
    with psycopg.connect(url) as blocker:
        blocker.execute('LOCK TABLE public."trajectories" IN ROW EXCLUSIVE MODE')
        with psycopg.connect(url, autocommit=True) as builder:
            builder.execute("SET statement_timeout = '500ms'")
            with pytest.raises(psycopg.errors.QueryCanceled):
                builder.execute(index.text.encode())
    assert index_is_valid(url) is False


@pytest.fixture
def application_database(fresh_database: str) -> str:
    run(fresh_database, PRISMA.read_text())
    return fresh_database


# --- the databases they may meet ---


def test_empty_database_gets_everything(fresh_database: str) -> None:
    assert migrate(fresh_database) == NAMES
    assert_complete(fresh_database)


def test_our_tables_of_babylon_are_those_of_prisma(postgres_url: str, fresh_database: str) -> None:
    """No drift: all but "User", of which we make the columns we read."""
    migrate(fresh_database)
    ours = shape_of_public(fresh_database)
    run(fresh_database, "DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    run(fresh_database, PRISMA.read_text())
    theirs = shape_of_public(fresh_database)

    tables = {row[0] for row in ours["columns"]} - {"User"}
    assert tables == {
        "trajectories",
        "market_outcomes",
        "training_batches",
        "trained_models",
        "reward_judgments",
    }
    assert [c for c in ours["columns"] if c[0] in tables] == [
        c for c in theirs["columns"] if c[0] in tables
    ]
    assert [c for c in ours["constraints"] if c[0] in tables] == [
        c for c in theirs["constraints"] if c[0] in tables
    ]
    expected = [i for i in theirs["indexes"] if i[0].startswith(tuple(f"{t}_" for t in tables))]
    assert [i for i in ours["indexes"] if not i[0].startswith("User_")] == expected
    assert {i for i in ours["indexes"] if i[0].startswith("User_")} < set(theirs["indexes"])


def test_application_database_keeps_its_shape(application_database: str) -> None:
    before = shape_of_public(application_database)
    assert migrate(application_database) == NAMES
    assert shape_of_public(application_database) == before
    assert_complete(application_database)


def test_application_database_with_upstream_python_tables_keeps_its_shape(
    application_database: str,
) -> None:
    run(application_database, UPSTREAM_PYTHON.read_text())
    before = shape_of_public(application_database)
    assert {"training_windows", "training_jobs"} <= {row[0] for row in before["columns"]}
    assert migrate(application_database) == NAMES
    assert shape_of_public(application_database) == before
    assert_complete(application_database)


def test_upstream_python_tables_alone_stay_and_are_reported(
    fresh_database: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Upstream's scripts ran on an empty database: its market_outcomes is not the app's."""
    run(fresh_database, UPSTREAM_PYTHON.read_text())
    before = rows(fresh_database, COLUMNS)
    migrate(fresh_database)
    assert_complete(fresh_database)
    assert set(before) <= set(rows(fresh_database, COLUMNS))
    assert 'market_outcomes is not the app\'s table (it has no "windowId")' in caplog.text


def test_upstream_python_tables_may_come_after_ours(application_database: str) -> None:
    migrate(application_database)
    run(application_database, UPSTREAM_PYTHON.read_text())
    before = shape_of_public(application_database)
    assert migrate(application_database) == []
    psql_all(application_database)
    assert shape_of_public(application_database) == before


def test_a_table_that_is_missing_is_added_to_the_others(application_database: str) -> None:
    """A database of an older app: only what is absent is made, with its foreign key."""
    run(application_database, 'DROP TABLE "reward_judgments"')
    before = shape_of_public(application_database)
    migrate(application_database)
    after = shape_of_public(application_database)
    assert {row[0] for row in after["columns"]} - {row[0] for row in before["columns"]} == {
        "reward_judgments"
    }
    assert "reward_judgments_trajectoryId_fkey" in {row[1] for row in after["constraints"]}


# --- a database of an older release ---


def test_versions_that_the_app_deployed_and_took_none_back_are_mended(fresh_database: str) -> None:
    """One stays `deployed`: the one that serves. Rows of other trainers stay as they are."""
    run(fresh_database, RELEASE_0_1_0.read_text())
    run(
        fresh_database,
        """UPDATE trained_models SET status = 'deployed', "deployedAt" = '2026-11-20T05:00'
            WHERE status = 'ready';
           UPDATE rl.steps SET removed_at = now() WHERE model_name = 'babylon-agent' AND step = 1;
           INSERT INTO trained_models (id, "modelId", version, "baseModel", status, "storagePath",
                                       "updatedAt")
           SELECT 'model-' || n, 'babylon-agent-v0.0.' || n, 'v0.0.' || n, 'base', 'deployed', '',
                  now() FROM generate_series(1, 2) n""",
    )
    migrate(fresh_database)
    psql_all(fresh_database)
    found = rows(
        fresh_database,
        """SELECT version, status, "deployedAt"::date::text, "archivedAt" IS NULL
             FROM trained_models ORDER BY version""",
    )
    assert found == [
        ("v0.0.1", "deployed", None, True), ("v0.0.2", "deployed", None, True),
        ("v1.0.0", "archived", "2026-11-20", False), ("v1.0.1", "deployed", "2026-11-20", True),
        ("v1.0.2", "training", None, True),
    ]  # fmt: skip
    assert rows(fresh_database, "SELECT FROM rl.promotions") == []
    assert index_is_valid(fresh_database, DEPLOYED_INDEX)
    assert index_is_valid(fresh_database, EVALUATION_INDEX)


def test_a_database_of_0_1_0_migrates_without_a_hand(fresh_database: str) -> None:
    """Its lineages, which it knew by their heads alone, get rows; its steps get their parents."""
    run(fresh_database, RELEASE_0_1_0.read_text())
    heads = rows(
        fresh_database,
        "SELECT model_name, step, published_step, base_model FROM rl.heads ORDER BY 1",
    )
    assert migrate(fresh_database) == NAMES[10:]
    assert_complete(fresh_database)
    psql_all(fresh_database)
    assert (
        rows(
            fresh_database,
            "SELECT model_name, step, published_step, base_model FROM rl.heads ORDER BY 1",
        )
        == heads
    )
    assert rows(
        fresh_database,
        """SELECT name, base_model, own_settings, state, forked_from, config::text,
                  (SELECT array_agg(stage ORDER BY stage) FROM rl.turns WHERE model_name = name)
             FROM rl.lineages ORDER BY name""",
    ) == [
        (name, base_model, True, "active", None, "{}", ["score", "train"])
        for name, _, _, base_model in heads
    ]
    assert rows(
        fresh_database,
        "SELECT model_name, step, parent_step, given_up_at FROM rl.steps ORDER BY 1, 2",
    ) == [
        ("babylon-agent", 1, 0, None), ("babylon-agent", 2, 1, None),
        ("babylon-agent", 3, 2, None),
        ("night-shift", 1, 0, None), ("night-shift", 2, 1, None),
    ]  # fmt: skip
    set_aside = "SELECT model_name, trajectory_id FROM rl.quarantine ORDER BY 1"
    assert rows(fresh_database, set_aside) == [
        ("babylon-agent", "t-1000010"), ("night-shift", "t-1000010")
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("model_name", "base_model", "waits"),
    [
        ("babylon-agent", "OpenPipe/Qwen3-14B-Instruct", {"due": 1, "scored": 1}),
        ("night-shift", "Qwen/Qwen3-0.6B", {"due": 0, "scored": 0}),
    ],
)
def test_a_lineage_of_0_1_0_is_served_by_its_own_workers_and_can_be_forked(
    fresh_database: str, model_name: str, base_model: str, waits: dict[str, int]
) -> None:
    run(fresh_database, RELEASE_0_1_0.read_text())
    migrate(fresh_database)
    settings = Settings(database_url=fresh_database, model_name=model_name, base_model=base_model)
    fleet = Fleet.of_deployment(settings, "host:1")
    try:
        assert [context.lineage.name for context in fleet.active()] == [model_name]
        listed = {each.name: each for each in list_lineages(fleet)}
        assert listed.keys() == {"babylon-agent", "night-shift"}
        ours = listed[model_name]
        assert (ours.base_model, ours.primary, ours.state) == (base_model, True, "active")
        assert {"due": ours.due, "scored": ours.scored} == waits
        assert ours.trained == ours.step
        made = lineage_changes.fork(fleet, f"{model_name}@1", "bolder", [])
        assert (made.lineage.base_model, made.inherited_windows) == (base_model, 1)
        assert {context.lineage.name for context in fleet.active()} == {"bolder", model_name}
    finally:
        fleet.database.close()


# --- run twice, run at once, run by hand ---


def test_second_run_does_nothing(fresh_database: str) -> None:
    migrate(fresh_database)
    before = shape_of_public(fresh_database)
    assert migrate(fresh_database) == []
    assert shape_of_public(fresh_database) == before


def test_psql_twice_then_migrate(fresh_database: str) -> None:
    psql_all(fresh_database)
    before = shape_of_public(fresh_database)
    psql_all(fresh_database)
    assert shape_of_public(fresh_database) == before
    assert index_is_valid(fresh_database) is True
    assert pending(fresh_database) == NAMES
    assert migrate(fresh_database) == NAMES
    assert shape_of_public(fresh_database) == before
    assert pending(fresh_database) == []


def test_psql_after_migrate(application_database: str) -> None:
    migrate(application_database)
    before = shape_of_public(application_database)
    psql_all(application_database)
    assert shape_of_public(application_database) == before


def test_two_at_once_do_the_work_once(application_database: str) -> None:
    """Both succeed, though a build of an index waits for whoever has a snapshot."""
    insert_trajectories(application_database, windows=100, agents=20)
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(migrate, [application_database] * 4))
    assert sorted(results) == [[], [], [], NAMES]
    assert_complete(application_database)


def test_a_killed_run_leaves_no_lock(application_database: str) -> None:
    """Killed in the middle of the index: the next one repairs and finishes, without waiting."""
    blocker = psycopg.connect(application_database)
    blocker.execute('LOCK TABLE public."trajectories" IN ROW EXCLUSIVE MODE')
    code = "import sys; from babylon_tasks.store.migrate import migrate; migrate(sys.argv[1])"
    process = subprocess.Popen([sys.executable, "-c", code, application_database])
    try:
        wait_until_blocked(application_database)
        assert index_is_valid(application_database) is False
    finally:
        process.kill()
        process.wait()
    blocker.close()
    assert migrate(application_database) == NAMES[2:]
    assert_complete(application_database)
    assert pending(application_database) == []


# --- the index ---


def test_invalid_index_is_repaired(
    application_database: str, caplog: pytest.LogCaptureFixture
) -> None:
    break_index(application_database)
    assert migrate(application_database) == NAMES
    assert index_is_valid(application_database) is True
    assert "is invalid" in caplog.text


def test_valid_index_is_not_built_again(application_database: str) -> None:
    psql_all(application_database)
    query = f"SELECT oid FROM pg_class WHERE relname = '{INDEX}'"
    before = rows(application_database, query)
    migrate(application_database)
    assert rows(application_database, query) == before


@pytest.mark.parametrize(
    "query",
    [
        f"""SELECT {WINDOW} AS window_id, count(DISTINCT "agentId"), count(*)
            FROM public."trajectories"
            WHERE {COUNTED} AND {WINDOW} BETWEEN '2025-11-08T00:00' AND '2025-11-09T00:00'
              AND NOT COALESCE("scenarioId" LIKE ANY (ARRAY['benchmark-%']), false)
            GROUP BY 1""",
        f"""SELECT count(DISTINCT "agentId") FROM public."trajectories"
            WHERE {COUNTED} AND {WINDOW} = '2025-11-08T00:00'""",
    ],
    ids=["list", "one window"],
)
def test_windows_are_listed_from_the_index_alone(application_database: str, query: str) -> None:
    migrate(application_database)
    insert_trajectories(application_database, windows=240, agents=25)
    plan = "\n".join(row[0] for row in rows(application_database, f"EXPLAIN {query}"))
    assert f"Index Only Scan using {INDEX}" in plan, plan


def test_windows_are_found_in_window_id_and_in_scenario_id(application_database: str) -> None:
    migrate(application_database)
    insert_trajectories(application_database, windows=2, agents=3)
    counted = rows(
        application_database,
        f'SELECT {WINDOW}, count(*) FROM public."trajectories" WHERE {COUNTED} GROUP BY 1 '
        "ORDER BY 1",
    )
    assert counted == [("2025-11-01T00:00", 3), ("2025-11-01T01:00", 3)]


def test_waiting_for_an_old_transaction_is_said(
    application_database: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "_BLOCKED_HINT_SECONDS", 0.1)
    caplog.set_level(logging.WARNING)
    with psycopg.connect(application_database, application_name="a forgotten shell") as blocker:
        blocker.execute('LOCK TABLE public."trajectories" IN ROW EXCLUSIVE MODE')
        worker = threading.Thread(target=migrate, args=(application_database,))
        worker.start()
        deadline = time.monotonic() + 30
        while "a forgotten shell" not in caplog.text:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert worker.is_alive()
        assert f"pg_terminate_backend({blocker.info.backend_pid})" in caplog.text
    worker.join(30)
    assert_complete(application_database)
    assert caplog.text.count("a forgotten shell") == 1


# --- pending ---


def test_pending_names_what_is_missing_and_writes_nothing(fresh_database: str) -> None:
    assert pending(fresh_database) == NAMES
    assert rows(fresh_database, "SELECT to_regnamespace('rl')") == [(None,)]
    migrate(fresh_database)
    assert pending(fresh_database) == []
    run(fresh_database, f"DELETE FROM rl.migrations WHERE name = '{NAMES[1]}'")
    assert pending(fresh_database) == [NAMES[1]]
    assert migrate(fresh_database) == [NAMES[1]]


def test_pending_is_quick(fresh_database: str) -> None:
    """Every role asks at its start; 50 ms at the best of a few, whatever else runs."""
    migrate(fresh_database)

    def seconds() -> float:
        started = time.perf_counter()
        pending(fresh_database)
        return time.perf_counter() - started

    assert min(seconds() for _ in range(10)) < 0.05


# --- constraints ---


@pytest.mark.parametrize(
    "statement",
    [
        "INSERT INTO rl.windows (window_id, model_name, state) VALUES ('w', 'm', 'done')",
        """INSERT INTO rl.lineages (name, base_model, created_by, state)
           VALUES ('m', 'b', 'p', 'gone')""",
        """INSERT INTO rl.lineages (name, base_model, created_by, forked_step)
           VALUES ('m', 'b', 'p', 1)""",
        """INSERT INTO rl.steps (model_name, step, token, trainer, window_ids, trajectories,
           trainable_tokens, started_at) VALUES ('m', 0, 1, 'noop', '{}', 0, 0, now())""",
        *(
            f"""INSERT INTO rl.scores (trajectory_id, model_name, scorer, window_id, agent_id,
            score, content_hash) VALUES ('t', 'm', 's', 'w', 'a', '{score}', 'h')"""
            for score in ("NaN", "-0.1", "1.1", "Infinity")
        ),
    ],
)
def test_wrong_values_are_refused(fresh_database: str, statement: str) -> None:
    migrate(fresh_database)
    with pytest.raises(psycopg.errors.CheckViolation):
        run(fresh_database, statement)


def test_a_token_makes_one_step(fresh_database: str) -> None:
    migrate(fresh_database)
    insert = """INSERT INTO rl.steps (model_name, step, token, trainer, window_ids, trajectories,
        trainable_tokens, started_at) VALUES ('m', {step}, 7, 'noop', '{{}}', 0, 0, now())"""
    run(fresh_database, insert.format(step=1))
    with pytest.raises(psycopg.errors.UniqueViolation):
        run(fresh_database, insert.format(step=2))


def test_every_table_is_commented(fresh_database: str) -> None:
    migrate(fresh_database)
    tables = rows(
        fresh_database,
        "SELECT relname, obj_description(oid, 'pg_class') FROM pg_class "
        "WHERE relnamespace = 'rl'::regnamespace AND relkind IN ('r', 'S') "
        "AND NOT EXISTS (SELECT FROM pg_depend WHERE objid = pg_class.oid AND deptype = 'i')",
    )  # without the sequences of identity columns
    assert {name for name, comment in tables if not comment} == set()
    assert {name for name, _ in tables} == OURS | {"lease_tokens"}


# --- what goes wrong ---


@pytest.fixture
def role_with_password(postgres_url: str, fresh_database: str) -> Iterator[tuple[str, str]]:
    """URL of the fresh database for an ordinary role whose password must be right; its name."""
    name = f"with_password_{uuid.uuid4().hex[:8]}"
    password = "s3cret %/?#@:&=+ é"
    role = sql.Identifier(name)
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(
            sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(role, sql.Literal(password))
        )
        quoted = "s3cret%20%25%2F%3F%23%40%3A%26%3D%2B%20%C3%A9"
        parts = urlsplit(fresh_database)
        host = parts.netloc.rpartition("@")[2]
        yield urlunsplit(parts._replace(netloc=f"{name}:{quoted}@{host}")), name
        with psycopg.connect(fresh_database, autocommit=True) as inside:
            inside.execute(sql.SQL("DROP OWNED BY {} CASCADE").format(role))
        connection.execute(sql.SQL("DROP ROLE {}").format(role))


def test_ordinary_role_with_an_odd_password(
    fresh_database: str, role_with_password: tuple[str, str]
) -> None:
    url, role = role_with_password
    run(fresh_database, f'ALTER DATABASE "{urlsplit(url).path[1:]}" OWNER TO {role}')
    run(fresh_database, f"GRANT CREATE ON SCHEMA public TO {role}")
    assert migrate(f"{url}&sslmode=prefer" if "?" in url else f"{url}?sslmode=prefer") == NAMES
    assert pending(url) == []
    run(fresh_database, f'ALTER DATABASE "{urlsplit(url).path[1:]}" OWNER TO CURRENT_USER')


def test_role_without_rights_is_told_so(role_with_password: tuple[str, str]) -> None:
    with pytest.raises(UserError, match=r"permission denied for database .*run it as the owner"):
        migrate(role_with_password[0])


def test_who_does_not_own_the_apps_versions_is_told_so(
    fresh_database: str, role_with_password: tuple[str, str]
) -> None:
    """The triggers on them need it; nothing of that migration is written."""
    url, role = role_with_password
    run(fresh_database, PRISMA.read_text())
    name = urlsplit(url).path[1:]
    run(fresh_database, f'GRANT CREATE ON DATABASE "{name}" TO {role}')
    run(fresh_database, f"GRANT CREATE ON SCHEMA public TO {role}")
    run(fresh_database, f'ALTER TABLE "trajectories" OWNER TO {role}')
    run(fresh_database, f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {role}")
    run(fresh_database, f'REVOKE TRIGGER ON "trained_models" FROM {role}')
    with pytest.raises(UserError, match="table trained_models; run it as the owner of Babylon's"):
        migrate(url)
    assert rows(fresh_database, "SELECT to_regclass('rl.promotions')") == [(None,)]
    run(fresh_database, f'ALTER TABLE "trained_models" OWNER TO {role}')
    assert migrate(url) == NAMES[15:]
    run(fresh_database, f"REASSIGN OWNED BY {role} TO CURRENT_USER; DROP OWNED BY {role}")


@pytest.mark.parametrize("function", [migrate, pending])
def test_wrong_password(
    fresh_database: str, role_with_password: tuple[str, str], function: Any
) -> None:
    wrong = role_with_password[0].replace("s3cret", "mistaken")
    with pytest.raises(UserError, match="password authentication failed") as caught:
        function(wrong)
    assert "mistaken" not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://someone:hunter@two@localhost/db",
        "postgresql://someone:hunter/two@localhost/db",
        "postgresql://someone:hunter%zz@localhost/db",
        "postgresql://someone:12/hunter@localhost/db",
        "hunter",
    ],
)
def test_malformed_url_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(UserError, match="is not a Postgres URL") as caught:
        pending(url)
    assert "hunter" not in str(caught.value)


@pytest.mark.parametrize("function", [migrate, pending])
def test_nobody_answers(function: Any) -> None:
    with pytest.raises(UserError, match=r"cannot reach.*refused") as caught:
        function("postgresql://someone:hunter@127.0.0.1:1/db")
    assert "hunter" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unknown_database(postgres_url: str) -> None:
    missing = urlunsplit(urlsplit(postgres_url)._replace(path="/no_such_database"))
    with pytest.raises(UserError, match='"no_such_database" does not exist'):
        pending(missing)


def test_busy_tables_are_not_queued_up_behind(
    application_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The foreign key of a table that we add needs a lock; we let go, and change nothing."""
    monkeypatch.setattr(runner, "_LOCK_TIMEOUT", "100ms")
    run(application_database, 'DROP TABLE "reward_judgments"')
    with psycopg.connect(application_database) as writer:
        writer.execute('LOCK TABLE public."trajectories" IN ROW EXCLUSIVE MODE')
        with pytest.raises(Retryable, match="001_add_babylon_tables: the app's tables were busy"):
            migrate(application_database)
    assert pending(application_database) == NAMES
    assert migrate(application_database) == NAMES


def test_failed_migration_leaves_nothing_behind(
    fresh_database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "001_half.sql").write_text("CREATE TABLE public.half (); SELECT 1 / 0;")
    monkeypatch.setattr(runner, "migrations_folder", lambda: tmp_path)
    with pytest.raises(UserError, match="migration 001_half: division by zero"):
        migrate(fresh_database)
    assert rows(fresh_database, "SELECT to_regclass('public.half')") == [(None,)]
    assert pending(fresh_database) == ["001_half"]


def test_names_are_in_order_and_unique() -> None:
    names = [migration.name for migration in load_migrations()]
    assert names == sorted(names)
    numbers = [name[:3] for name in names]
    assert numbers == [f"{n:03}" for n in range(1, len(names) + 1)]
    built = [m.name for m in load_migrations() if not m.transactional]
    assert built == [NAMES[2], NAMES[18], NAMES[20]]
