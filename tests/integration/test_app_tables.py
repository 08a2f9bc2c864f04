"""Databases whose tables are another app's, or whose columns differ: worked with, or named."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest
from psycopg import sql

from babylon_tasks import pipeline
from babylon_tasks.cockpit import checks
from babylon_tasks.errors import UserError
from babylon_tasks.records.steps import Trainer
from babylon_tasks.settings import Settings
from babylon_tasks.store.migrate import migrate, require_applied
from babylon_tasks.work.context import Context
from tests.conftest import with_database
from tests.integration.test_migrations import PRISMA, rows, run, shape_of_public
from tests.rows import add_request, add_window, hours_ago, one, query, states

ALONE = [  # in an empty database
    ('CREATE TABLE "User" (id serial PRIMARY KEY, email text)', 'User .* has no column "username"'),
    ('CREATE TABLE "User" (id uuid PRIMARY KEY, username text, "isAgent" bool)', '"id" is uuid'),
    ('CREATE TABLE "User" (id text, username text, "isAgent" bool)', '"id" is not unique'),
    ("CREATE TABLE trajectories (id serial, points text)", 'trajectories .* no column "trajecto'),
    ("CREATE TABLE trajectories ()", r"no column .* and 10 more; name Babylon's own database"),
    ("CREATE VIEW trajectories AS SELECT 1 AS id", "it is a view, not a table"),
    ("CREATE MATERIALIZED VIEW trajectories AS SELECT 1 AS id", "it is a materialized view"),
    ("CREATE SEQUENCE trajectories", "it is a sequence, not a table"),
    ("CREATE TYPE trained_models AS (id text)", "it is a type, not a table"),
    ("CREATE TABLE trained_models (id serial, name text)", "trained_models is not Babylon's"),
    (
        'CREATE SCHEMA babylon; CREATE TABLE babylon.trajectories ("stepsJson" text)',
        "Babylon's tables are in the schema 'babylon'",
    ),
]  # fmt: skip
BESIDE = [  # in Babylon's own
    ('ALTER TABLE trajectories DROP COLUMN "isEvaluation"', 'no column "isEvaluation"; name'),
    ('ALTER TABLE trajectories ALTER "agentId" TYPE int USING 1', '"agentId" is int4, not text'),
    ('ALTER TABLE trajectories ALTER "isTrainingData" DROP DEFAULT, '
     'ALTER "isTrainingData" TYPE int USING 1', '"isTrainingData" is int4, not boolean'),
    ('ALTER TABLE trajectories ALTER "stepsJson" TYPE bytea USING NULL', '"stepsJson" is bytea'),
    ("ALTER TABLE trained_models ADD region text NOT NULL", '"region" must be given, and our rows'),
    ('ALTER TABLE training_batches ALTER "createdAt" DROP DEFAULT, '
     'ALTER "createdAt" TYPE int USING 1', '"createdAt" is int4, not timestamp'),
    ('DROP INDEX "reward_judgments_trajectoryId_key"', '"trajectoryId" is not unique'),
    ("CREATE TYPE status AS ENUM ('pending'); ALTER TABLE training_batches ALTER status "
     "DROP DEFAULT, ALTER status TYPE status USING NULL", '"status" is status, not text'),
    ("ALTER TABLE market_outcomes DROP COLUMN outcome", 'market_outcomes .* no column "outcome"'),
]  # fmt: skip
WITHOUT_KEYS = """ALTER TABLE trajectories DROP CONSTRAINT IF EXISTS "trajectories_agentId_fkey";
ALTER TABLE reward_judgments DROP CONSTRAINT IF EXISTS "reward_judgments_trajectoryId_fkey";"""


@pytest.mark.parametrize(("change", "says"), ALONE)
def test_tables_of_another_app_are_named_and_left_alone(
    fresh_database: str, change: str, says: str
) -> None:
    run(fresh_database, change)
    refused_everywhere(fresh_database, says)


def test_columns_of_babylons_tables_that_differ_are_named(fresh_database: str) -> None:
    """Each in a schema of its own would cost a second: they are changed back and forth."""
    for change, says in BESIDE:
        run(fresh_database, "DROP SCHEMA public CASCADE; CREATE SCHEMA public")
        run(fresh_database, PRISMA.read_text())
        run(fresh_database, WITHOUT_KEYS + change)
        refused_everywhere(fresh_database, says)


@pytest.mark.parametrize("encoding", ["SQL_ASCII", "LATIN1"])
def test_a_database_that_is_not_in_utf8_is_named(encoding: str, postgres_url: str) -> None:
    """In SQL_ASCII all was migrated, and every role said that nothing was."""
    name = f"other_{uuid.uuid4().hex[:8]}"
    run(postgres_url, f"CREATE DATABASE {name} ENCODING '{encoding}' LOCALE 'C' TEMPLATE template0")
    try:
        refused_everywhere(with_database(postgres_url, name), f"encoding is {encoding}, not UTF8")
    finally:
        run(postgres_url, f"DROP DATABASE {name} WITH (FORCE)")


def refused_everywhere(url: str, says: str) -> None:
    """By migrate, by doctor, and by what every role does at its start; nothing is written."""
    before = shape_of_public(url)
    settings = Settings(database_url=url)
    for refuse in (migrate, require_applied, lambda _: checks.tables(settings)):
        with pytest.raises(UserError, match=says) as caught:
            refuse(url)
        assert "\n" not in str(caught.value)
    assert shape_of_public(url) == before
    assert rows(url, "SELECT to_regnamespace('rl')") == [(None,)]


OTHER_TYPES = {
    "jsonb": 'ALTER TABLE trajectories ALTER "stepsJson" TYPE jsonb USING "stepsJson"::jsonb',
    "json": 'ALTER TABLE trajectories ALTER "stepsJson" TYPE json USING "stepsJson"::json',
    "varchar": 'ALTER TABLE trajectories ALTER "trajectoryId" TYPE varchar(64), '
    'ALTER "agentId" TYPE varchar(64), ALTER "windowId" TYPE text',
    "domain": 'CREATE DOMAIN id AS text; ALTER TABLE trajectories ALTER "trajectoryId" TYPE id',
}


@pytest.mark.parametrize("change", OTHER_TYPES.values(), ids=OTHER_TYPES)
def test_columns_of_other_types_work(context: Context, trainer: Trainer, change: str) -> None:
    run(
        context.settings.postgres(),
        WITHOUT_KEYS + "DROP INDEX rl_trajectories_window_idx;" + change,
    )
    works_whole(context, trainer)


def test_timestamps_with_a_time_zone_work(
    context: Context, make_context: Callable[..., Context], trainer: Trainer
) -> None:
    with psycopg.connect(context.settings.postgres(), autocommit=True) as connection:
        name = connection.info.dbname
        connection.execute(f"ALTER DATABASE \"{name}\" SET timezone = 'Asia/Tokyo'".encode())
        for table, column in connection.execute(
            """SELECT table_name, column_name FROM information_schema.columns
                WHERE table_schema = 'public' AND data_type = 'timestamp without time zone'"""
        ).fetchall():
            connection.execute(
                sql.SQL(
                    "ALTER TABLE {} ALTER {} TYPE timestamptz USING {} AT TIME ZONE 'utc'"
                ).format(*map(sql.Identifier, (table, column, column)))
            )
    context.database.close()
    works_whole(context, trainer)
    row = one(context, """SELECT "updatedAt" - now() AS off FROM trained_models""")
    assert abs(row["off"].total_seconds()) < 60


def test_forms_of_the_databases_own_work(context: Context, trainer: Trainer) -> None:
    """psycopg reads no time in German: steps ended with NotImplementedError, again and again."""
    with psycopg.connect(context.settings.postgres(), autocommit=True) as connection:
        name = connection.info.dbname
        for form in (
            "DateStyle = 'German'",
            "IntervalStyle = 'iso_8601'",
            "extra_float_digits = -5",
        ):
            connection.execute(f'ALTER DATABASE "{name}" SET {form}'.encode())
    context.database.close()
    works_whole(context, trainer)


def test_a_server_that_takes_no_writes_is_named(context: Context) -> None:
    url = context.settings.postgres()
    with psycopg.connect(url, autocommit=True) as connection:
        name = connection.info.dbname
        connection.execute(
            f'ALTER DATABASE "{name}" SET default_transaction_read_only = on'.encode()
        )
    with pytest.raises(UserError, match=r"is read-only .*: is DATABASE_URL that of the primary"):
        checks.tables(context.settings)


def works_whole(context: Context, trainer: Trainer) -> None:
    checks.tables(context.settings)
    window = hours_ago(2)
    add_window(context, window)
    add_request(context, "batch-1", window, "v1.0.0")
    pipeline.produce(context)
    assert pipeline.score(context) == [window]
    assert pipeline.train(context, trainer)
    pipeline.publish(context)
    assert states(context) == {window: "trained"}
    assert one(context, "SELECT status FROM training_batches") == {"status": "completed"}
    used = query(context, 'SELECT 1 FROM trajectories WHERE "usedInTraining"')
    assert len(used) == 3


def test_a_column_that_goes_later_costs_no_attempt(context: Context) -> None:
    add_window(context, hours_ago(2))
    pipeline.produce(context)
    run(context.settings.postgres(), 'ALTER TABLE trajectories RENAME "stepsJson" TO "steps"')
    assert pipeline.score(context) == []
    row = one(context, "SELECT state, attempts, last_error FROM rl.windows")
    assert (row["state"], row["attempts"]) == ("due", 0)
    assert "column t.stepsJson does not exist (`babylon doctor` says" in row["last_error"]
    with pytest.raises(UserError, match='it has no column "stepsJson"'):
        checks.tables(context.settings)


# --- rights ---


@pytest.fixture
def ordinary(database_url: str, postgres_url: str) -> Iterator[tuple[str, str]]:
    """URL of the database for a role without any right; its name."""
    name = f"ordinary_{uuid.uuid4().hex[:8]}"
    role = sql.Identifier(name)
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD 'p'").format(role))
        parts = urlsplit(database_url)
        yield urlunsplit(parts._replace(netloc=f"{name}:p@{parts.netloc.rpartition('@')[2]}")), name
        with psycopg.connect(database_url, autocommit=True) as inside:
            inside.execute(sql.SQL("DROP OWNED BY {} CASCADE").format(role))
        connection.execute(sql.SQL("DROP ROLE {}").format(role))


def test_missing_rights_are_named(ordinary: tuple[str, str], database_url: str) -> None:
    url, role = ordinary
    settings = Settings(database_url=url)

    def says(text: str) -> None:
        with pytest.raises(UserError, match=text) as caught:
            checks.tables(settings)
        assert "\n" not in str(caught.value)

    run(database_url, "REVOKE ALL ON SCHEMA public FROM PUBLIC")
    says(f"the role {role} lacks USAGE on schema public, USAGE on schema rl: GRANT it")
    run(database_url, f"GRANT USAGE ON SCHEMA public, rl TO {role}")
    says("permission denied for table migrations: grant this role")
    run(database_url, f"GRANT SELECT ON rl.migrations TO {role}")
    says(f"{role} lacks SELECT on public.trajectories, UPDATE on public.traj.* and .* more: GRANT")
    run(database_url, f"GRANT SELECT ON ALL TABLES IN SCHEMA public, rl TO {role}")
    run(database_url, f'GRANT UPDATE ("usedInTraining") ON trajectories TO {role}')
    run(database_url, f"GRANT INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA rl TO {role}")
    run(database_url, f"GRANT USAGE ON ALL SEQUENCES IN SCHEMA rl TO {role}")
    run(database_url, f"GRANT INSERT, UPDATE ON training_batches, trained_models TO {role}")
    says(
        "lacks INSERT on public.reward_judgments, UPDATE on .*, DELETE on public.reward_judgments:"
    )
    run(database_url, f"GRANT INSERT, UPDATE, DELETE ON reward_judgments TO {role}")
    assert "may use them" in checks.tables(settings)
    run(database_url, "ALTER TABLE trajectories ENABLE ROW LEVEL SECURITY")
    says(f"row-level security hides rows of public.trajectories from the role {role}")
    run(database_url, "ALTER TABLE trajectories DISABLE ROW LEVEL SECURITY")
    run(database_url, f"REVOKE USAGE ON SEQUENCE rl.lease_tokens FROM {role}")
    says("lacks USAGE on rl.lease_tokens")
    run(database_url, f"GRANT USAGE ON SEQUENCE rl.lease_tokens TO {role}")
    run(database_url, "REVOKE EXECUTE ON FUNCTION rl.now() FROM PUBLIC")
    says(r"lacks EXECUTE on rl\.now\(\): GRANT it")
    run(database_url, f"GRANT EXECUTE ON FUNCTION rl.now() TO {role}")
    for table in ("market_outcomes", "trained_models", "rl.windows"):
        run(database_url, f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
    says("hides rows of public.market_outcomes, public.trained_models, rl.windows from the role")
    for table in ("market_outcomes", "trained_models", "rl.windows"):
        run(database_url, f"CREATE POLICY ours ON {table} TO {role} USING (true)")
    assert "may use them" in checks.tables(settings)
    run(database_url, "DELETE FROM rl.migrations WHERE name LIKE '014%'")
    says("lacks ownership of public.trained_models, .*, ownership of rl.attempts")


def test_the_rights_to_migrate_are_named(
    ordinary: tuple[str, str], database_url: str, fresh_database: str
) -> None:
    url, role = ordinary
    empty = urlunsplit(urlsplit(url)._replace(path=urlsplit(fresh_database).path))
    with pytest.raises(UserError, match=f"{role} lacks CREATE on database .*, CREATE on sch"):
        checks.tables(Settings(database_url=empty))
    checks.tables(Settings(database_url=fresh_database))
