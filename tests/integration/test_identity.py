"""The database's own id, on real servers and for every role."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import LiteralString
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest
from psycopg import sql

from babylon_tasks.errors import ServerUnavailable, UserError
from babylon_tasks.store.identity import key_prefix
from babylon_tasks.store.migrate import migrate


@pytest.fixture(autouse=True)
def nothing_remembered() -> None:
    """Each test asks its databases itself."""
    key_prefix.cache_clear()


@pytest.fixture
def url_without_rights(postgres_url: str, database_url: str) -> Iterator[str]:
    """URL of the test's database for a role that may log in, and no more."""
    name = f"plain_{uuid.uuid4().hex[:8]}"
    role = sql.Identifier(name)
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD 'x'").format(role))
        parts = urlsplit(database_url)
        host = parts.netloc.rpartition("@")[2]
        yield urlunsplit(parts._replace(netloc=f"{name}:x@{host}"))
        connection.execute(sql.SQL("DROP ROLE {}").format(role))


def run(url: str, *statements: LiteralString) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement)


def test_each_database_of_a_server_has_an_id(database_url: str, other_database_url: str) -> None:
    """Also where one is a copy of the other: the databases of tests are copies of a template."""
    ours = key_prefix(database_url)
    assert ours != key_prefix(other_database_url)
    with psycopg.connect(database_url) as connection:
        row = connection.execute(
            """SELECT system_identifier, d.oid FROM pg_control_system(), pg_database d
                WHERE d.datname = current_database()"""
        ).fetchone()
    assert row is not None
    assert ours == f"babylon:{row[0]}-{row[1]}:"


def test_a_role_without_rights_finds_the_same_id(
    database_url: str, url_without_rights: str
) -> None:
    assert key_prefix(url_without_rights) == key_prefix(database_url)


def test_where_not_all_may_ask_the_server_all_find_another_id(
    database_url: str, other_database_url: str, url_without_rights: str
) -> None:
    """Also the superuser, who still could: he must find the workers of a plain role."""
    of_server = key_prefix(database_url)
    key_prefix.cache_clear()
    for url in (database_url, other_database_url):
        run(
            url,
            "REVOKE EXECUTE ON FUNCTION pg_catalog.pg_control_system() FROM PUBLIC",
            "GRANT USAGE ON SCHEMA rl TO PUBLIC",
            "GRANT SELECT ON rl.migrations TO PUBLIC",
        )
    ours = key_prefix(database_url)
    assert key_prefix(url_without_rights) == ours
    assert ours not in (of_server, key_prefix(other_database_url))
    key_prefix.cache_clear()
    run(database_url, "INSERT INTO rl.migrations (name) VALUES ('999_of_a_later_release')")
    assert key_prefix(database_url) == ours


def test_a_service_that_refuses_the_question_to_all(database_url: str, fresh_database: str) -> None:
    for url in (database_url, fresh_database):
        run(
            url,
            "ALTER FUNCTION pg_catalog.pg_control_system() RENAME TO pg_control_system_of_postgres",
            """CREATE FUNCTION pg_catalog.pg_control_system(OUT system_identifier bigint)
               LANGUAGE plpgsql AS $$ BEGIN RAISE feature_not_supported; END $$""",
        )
    with pytest.raises(UserError, match="babylon migrate"):
        key_prefix(fresh_database)
    migrate(fresh_database)
    assert key_prefix(fresh_database) != key_prefix(database_url)


def test_a_failure_is_not_remembered_and_an_answer_is(postgres_url: str, database_url: str) -> None:
    name = urlsplit(database_url).path.lstrip("/")
    here, away = sql.Identifier(name), sql.Identifier(f"{name}_away")
    rename = sql.SQL("ALTER DATABASE {} RENAME TO {}")
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(rename.format(here, away))
        with pytest.raises(ServerUnavailable):
            key_prefix(database_url)
        connection.execute(rename.format(away, here))
        prefix = key_prefix(database_url)
        connection.execute(rename.format(here, away))
        assert key_prefix(database_url) == prefix
        connection.execute(rename.format(away, here))
