"""Applies `migrations/NNN_name.sql` in order, each once, and lists the missing ones.

It is a runner of our own, since it may not use session state: behind a pooler in transaction mode a
`SET search_path` or a session's advisory lock stays on a connection that the app gets next. The
table `rl.migrations` lists the applied files. A file runs in one transaction together with its row
there. A file with `-- transactional: false` holds a single statement and runs outside of one. Every
file can also be run by hand with `psql -f`, before or after.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
from psycopg import errors, sql

from babylon_tasks.errors import BabylonError, Retryable, ServerUnavailable, UserError
from babylon_tasks.store import app_tables, postgres, rights
from babylon_tasks.text import one_line

log = logging.getLogger(__name__)

Connection = psycopg.Connection[tuple[Any, ...]]

APPLICATION_NAME = "babylon migrate"
_ADVISORY_LOCK = int.from_bytes(b"babylon")  # one migrate at a time in a database
_POLL_SECONDS = 0.2
_READING = "reading rl.migrations"
_BLOCKED_HINT_SECONDS = 5.0
_LOCK_TIMEOUT = "5s"  # if it is longer, the app's own statements queue up behind ours

_BOOKKEEPING = """
DO $$
BEGIN
    IF to_regnamespace('rl') IS NULL THEN
        CREATE SCHEMA rl;
    END IF;
END
$$;
CREATE TABLE IF NOT EXISTS rl.migrations (
    name       text        NOT NULL PRIMARY KEY,
    applied_at timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE rl.migrations IS 'Which files of migrations/ this database has seen.';
"""

_INDEX_STATE = """
SELECT n.nspname, i.indisvalid
FROM pg_index i
JOIN pg_class c ON c.oid = i.indexrelid
JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE i.indrelid = to_regclass(%s) AND c.relname = %s
"""

_BLOCKERS = """
SELECT b.pid, b.usename, b.application_name, b.state,
       date_trunc('second', clock_timestamp() - b.xact_start)::text
FROM pg_stat_activity m
CROSS JOIN unnest(pg_blocking_pids(m.pid)) AS blocking(pid)
JOIN pg_stat_activity b ON b.pid = blocking.pid
WHERE m.application_name = %s AND m.datname = current_database() AND m.wait_event_type = 'Lock'
"""


@dataclass(frozen=True)
class Migration:
    """One file: its name without `.sql`, and its text."""

    name: str
    text: str

    @property
    def transactional(self) -> bool:
        """Whether it runs in a transaction; otherwise it holds a single statement."""
        return re.search(r"^-- *transactional: *false *$", self.text, re.MULTILINE) is None

    @property
    def concurrent_index(self) -> tuple[str, str] | None:
        """Table and name of the index that it builds CONCURRENTLY, or None."""
        match = re.search(
            r"^CREATE (?:UNIQUE )?INDEX CONCURRENTLY IF NOT EXISTS (\w+)\s+ON (\S+)",
            self.text,
            re.MULTILINE,
        )
        return (match[2], match[1]) if match else None


def migrations_folder() -> Path:
    """Return the folder of the .sql files: in an installed package, or beside it in a checkout.

    Raises:
        UserError: Neither place has them; the installation is broken.
    """
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "migrations", package.parent / "migrations"):
        if folder.is_dir():
            return folder
    raise UserError("the migrations are not installed: install babylon-tasks again")


def load_migrations() -> list[Migration]:
    """Return all migrations, in the order in which they are applied.

    Raises:
        UserError: The files are missing.
    """
    files = sorted(migrations_folder().glob("[0-9][0-9][0-9]_*.sql"))
    return [Migration(file.stem, file.read_text(encoding="utf-8")) for file in files]


def pending(database_url: str) -> list[str]:
    """Return the names of the migrations that this database lacks; change nothing.

    Raises:
        UserError: DATABASE_URL does not fit the server, or the role may not read.
        ServerUnavailable: The server does not answer, refuses us, or went away.
    """
    with _connect(database_url) as connection, _explained(_READING):
        return [migration.name for migration in _unapplied(connection)]


def require_applied(database_url: str) -> None:
    """Refuse a database that lacks migrations, or whose tables are another app's.

    Raises:
        UserError: A migration is missing, a table is not Babylon's, or the role may not read.
        ServerUnavailable: The server does not answer, refuses us, or went away.
    """
    with _connect(database_url) as connection, _explained(_READING):
        missing = _unapplied(connection)
        app_tables.require_babylons(connection)
    if missing:
        raise UserError("migrations are not applied: run `babylon migrate`")


def require_usable(database_url: str) -> None:
    """Refuse a database whose tables are another app's, or whose role lacks a right.

    Where migrations are missing, these are the rights that `migrate` needs, otherwise those of the
    roles.

    Raises:
        UserError: The message names the table or the rights.
        ServerUnavailable: The server does not answer, refuses us, or went away.
    """
    with _connect(database_url) as connection, _explained(_READING):
        rights.require_schemas(connection)
        app_tables.require_babylons(connection)
        missing = _unapplied(connection)
        rights.require_writable(connection)
        (rights.require_to_migrate if missing else rights.require_to_work)(connection)


def migrate(database_url: str) -> list[str]:
    """Apply the pending migrations and return their names; a second run does nothing.

    If two run at once, one does the work; the other waits, then finds nothing to do. A killed
    migration leaves no lock behind, and can be run again.

    Raises:
        UserError: DATABASE_URL does not fit the server, a table is not Babylon's and nothing was
            written, or the database refuses a statement.
        ServerUnavailable: The server does not answer, refuses us, or went away.
        Retryable: The app's tables were busy; run it again.
    """
    applied = []
    with (
        _connect(database_url) as guard,
        _connect(database_url) as connection,
        _explained("babylon migrate"),
        _alone(guard),
        _blockers_reported(database_url),
    ):
        connection.add_notice_handler(_relay_warning)
        app_tables.require_babylons(connection)
        connection.execute(_BOOKKEEPING)
        for migration in _unapplied(connection):
            with _explained(f"migration {migration.name}"):
                _apply(connection, migration)
            log.info("applied %s", migration.name)
            applied.append(migration.name)
    return applied


def _unapplied(connection: Connection) -> list[Migration]:
    done: set[str] = set()
    row = connection.execute("SELECT to_regclass('rl.migrations') IS NOT NULL").fetchone()
    if row and row[0]:
        done = {name for (name,) in connection.execute("SELECT name FROM rl.migrations")}
    return [migration for migration in load_migrations() if migration.name not in done]


def _apply(connection: Connection, migration: Migration) -> None:
    if migration.transactional:
        with connection.transaction():
            connection.execute(f"SET LOCAL lock_timeout = '{_LOCK_TIMEOUT}'")
            connection.execute(migration.text.encode())
            _mark(connection, migration)
        return
    if not (migration.concurrent_index and _has_valid_index(connection, migration)):
        connection.execute(migration.text.encode())
    _mark(connection, migration)


def _mark(connection: Connection, migration: Migration) -> None:
    connection.execute("INSERT INTO rl.migrations (name) VALUES (%s)", (migration.name,))


def _has_valid_index(connection: Connection, migration: Migration) -> bool:
    """Tell whether the index already exists; drop it if it is invalid."""
    assert migration.concurrent_index is not None
    row = connection.execute(_INDEX_STATE, migration.concurrent_index).fetchone()
    if row is None:
        return False
    schema, valid = row
    if valid:
        return True
    name = migration.concurrent_index[1]
    log.warning("index %s is invalid, left by a build that was interrupted: building it anew", name)
    connection.execute(
        sql.SQL("DROP INDEX CONCURRENTLY IF EXISTS {}").format(sql.Identifier(schema, name))
    )
    return False


@contextmanager
def _alone(guard: Connection) -> Iterator[None]:
    """Hold the database's migration lock; it ends with its connection, whatever ends that.

    The lock belongs to a transaction that stays open and idle. CREATE INDEX CONCURRENTLY waits for
    every transaction with a snapshot, so this one must have none, or both would wait forever. An
    idle READ COMMITTED transaction has none. Therefore no statement waits for the lock (it is tried
    again and again), nothing runs while the lock is held, and no query has parameters: those use
    the extended protocol, whose portal stays open, with its snapshot, until the next statement.
    """
    try_lock = sql.SQL("SELECT pg_try_advisory_xact_lock({})").format(_ADVISORY_LOCK)
    guard.isolation_level = psycopg.IsolationLevel.READ_COMMITTED
    warned = False
    while True:
        with guard.transaction():
            guard.execute("SET LOCAL idle_in_transaction_session_timeout = 0")
            if guard.execute(try_lock).fetchone() == (True,):
                yield
                return
        if not warned:
            log.warning("another `babylon migrate` works on this database: waiting for it to end")
            warned = True
        time.sleep(_POLL_SECONDS)


@contextmanager
def _blockers_reported(url: str) -> Iterator[None]:
    """Log, inside the block, each process whose lock we wait for; each once."""
    done = threading.Event()
    thread = threading.Thread(target=_report_blockers, args=(url, done), daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _report_blockers(url: str, done: threading.Event) -> None:
    reported: set[int] = set()
    while not done.wait(_BLOCKED_HINT_SECONDS):
        try:
            with _connect(url) as connection:
                rows = connection.execute(_BLOCKERS, (APPLICATION_NAME,)).fetchall()
        except (psycopg.Error, BabylonError) as error:
            log.debug("cannot ask who blocks: %s", error)
            continue
        for pid, user, application, state, age in rows:
            if pid not in reported:
                reported.add(pid)
                log.warning(
                    "waiting for a transaction of process %s (user %s, application %r, %s, open "
                    "for %s) to end; it can be ended with SELECT pg_terminate_backend(%s)",
                    *(pid, user, application, state, age, pid),
                )


def _relay_warning(diagnostic: errors.Diagnostic) -> None:
    if diagnostic.severity_nonlocalized == "WARNING":
        log.warning("%s", diagnostic.message_primary)


def _connect(url: str) -> Connection:
    return postgres.connect(url, application_name=APPLICATION_NAME)


@contextmanager
def _explained(doing: str) -> Iterator[None]:
    try:
        yield
    except psycopg.Error as error:
        raise _explain(doing, error) from error


def _explain(doing: str, error: psycopg.Error) -> BabylonError:
    message = one_line(error.diag.message_primary or str(error))
    if isinstance(error, errors.LockNotAvailable):
        return Retryable(f"{doing}: the app's tables were busy, nothing changed; run it again")
    if isinstance(error, errors.QueryCanceled):
        return UserError(f"{doing}: {message}; run it again as a role without a statement_timeout")
    if isinstance(error, errors.InsufficientPrivilege) and doing == _READING:
        return UserError(f"{doing}: {message}: grant this role the schemas rl and public")
    if isinstance(error, errors.InsufficientPrivilege):
        return UserError(
            f"{doing}: {message}; run it as the owner of Babylon's tables, with CREATE on the "
            "database"
        )
    if isinstance(error, errors.ReadOnlySqlTransaction):
        return UserError(f"{doing}: {message}; is DATABASE_URL that of the primary?")
    if isinstance(error, psycopg.OperationalError) and error.sqlstate is None:
        return ServerUnavailable(f"{doing}: the connection was lost ({message}); run it again")
    if isinstance(error, errors.ProtocolViolation):  # of a pooler
        return UserError(f"{doing}: {postgres.hint(message) or 'is this a pooler?'} ({message})")
    return UserError(f"{doing}: {message}")
