"""No secret shows in a log, a row, a page of Flower or a command line, also when things fail."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import psycopg
import pytest
from psycopg import sql

from babylon_tasks.local.ports import free_port
from tests.acceptance.conftest import Deployment
from tests.rows import add_window, hours_ago, query, states

pytestmark = pytest.mark.slow

CPU = ("celery", "-A", "babylon_tasks", "worker", "-Q", "cpu", "-n", "cpu@%h", "-c", "1")
GPU = ("celery", "-A", "babylon_tasks", "worker", "-Q", "gpu", "-n", "gpu@%h")
BEAT = ("celery", "-A", "babylon_tasks", "beat")
FLOWER = ("celery", "-A", "babylon_tasks", "flower")
PAGES = (
    "/", "/workers", "/tasks", "/broker", "/api/workers?refresh=1", "/api/tasks", "/metrics",
    "/api/queues/length", "/worker/cpu@{host}", "/worker/gpu@{host}",
)  # fmt: skip

# Letters and digits, as they would stand in a URL, a header or a log.
SECRETS = {name: f"s3cret{name}{secrets.token_hex(8)}" for name in (
    "postgres", "wrongpostgres", "wrongredis", "wandb", "serve", "flower"
)}  # fmt: skip


@pytest.fixture
def guarded_url(postgres_url: str, deployment: Deployment) -> Iterator[str]:
    """The database as a role sees it that must give its password."""
    role = f"with_password_{secrets.token_hex(4)}"
    url = deployment.env["DATABASE_URL"]
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(
            sql.SQL("CREATE ROLE {} LOGIN SUPERUSER PASSWORD {}").format(
                sql.Identifier(role), sql.Literal(SECRETS["postgres"])
            )
        )
        host = urlsplit(url).query
        yield f"postgresql://{role}:{SECRETS['postgres']}@{urlsplit(url).path}?{host}"
        connection.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(role)))


def found_in(text: str, more: str) -> list[str]:
    """Names of the secrets that the text holds; `more` is Redis's own password."""
    known = {**SECRETS, "redis": more}
    return [name for name, secret in known.items() if secret in text]


def test_no_secret_shows(deployment: Deployment, guarded_url: str) -> None:
    redis_password = urlsplit(deployment.redis_url).password
    assert redis_password
    deployment.env |= {
        "DATABASE_URL": guarded_url,
        "WANDB_API_KEY": SECRETS["wandb"],
        "SERVE_API_KEY": SECRETS["serve"],
        "FLOWER_BASIC_AUTH": f"person:{SECRETS['flower']}",
        "LOG_LEVEL": "DEBUG",
    }
    good, bad = hours_ago(2), hours_ago(3)
    add_window(deployment.context, good)
    add_window(deployment.context, bad)
    port = free_port()
    deployment.start(*FLOWER, f"--port={port}")
    deployment.start(*CPU)
    deployment.start(*GPU)
    deployment.start(*BEAT)
    unreachable = _start_what_cannot_work(deployment, guarded_url)
    said = "".join(_run_commands(deployment, unreachable))
    deployment.wait(lambda: states(deployment.context) == {good: "trained", bad: "trained"})
    pages = _pages(port, SECRETS["flower"])
    shown = {
        "commands": said,
        "logs": deployment.logs(),
        "rows": _rows(deployment),
        "pages": pages,
        "command lines": _command_lines(),
    }
    for where, text in shown.items():
        assert text
        assert found_in(text, redis_password) == [], where
    assert "cpu@" in pages
    assert "scored" in shown["logs"]


def _start_what_cannot_work(deployment: Deployment, url: str) -> list[dict[str, str]]:
    """Roles with a wrong password, or nobody at the address; the changes to the environment."""
    wrong_postgres = url.replace(SECRETS["postgres"], SECRETS["wrongpostgres"])
    redis_port = urlsplit(deployment.redis_url).port
    changes = [
        {"DATABASE_URL": wrong_postgres},
        {"DATABASE_URL": f"postgresql://u:{SECRETS['wrongpostgres']}@127.0.0.1:1/x"},
        {"REDIS_URL": f"redis://:{SECRETS['wrongredis']}@127.0.0.1:{redis_port}/0"},
        {"REDIS_URL": f"redis://:{SECRETS['wrongredis']}@127.0.0.1:1/0"},
    ]
    for change in changes[2:]:  # without Redis a role tries again and again
        deployment.start(*CPU, "-n", f"none{len(change)}@%h", env=change)
        deployment.start(*BEAT, env=change)
    deployment.start(*GPU, "-n", "nodisk@%h", env={"CHECKPOINT_STORE": "/dev/null/none"})
    return changes


def _run_commands(deployment: Deployment, changes: list[dict[str, str]]) -> Iterator[str]:
    window = hours_ago(2)
    runs = [
        (("babylon", "doctor"), changes[0]),
        (("babylon", "doctor"), changes[3]),
        (("babylon", "status", "--json"), changes[1]),
        (("babylon", "status"), changes[2]),
        (CPU, changes[0]),
        (("-m", "babylon_tasks"), {"MODE": "list"}),
        (("-m", "babylon_tasks"), {"MODE": "single", "WINDOW_ID": window, **changes[1]}),
    ]
    for arguments, change in runs:
        run = deployment.call if arguments[0] == "babylon" else deployment.run
        done = run(*arguments, env=change)
        assert "Traceback" not in done.stderr, done.stderr
        yield done.stdout + done.stderr


def _rows(deployment: Deployment) -> str:
    tables = query(
        deployment.context,
        """SELECT schemaname || '.' || tablename AS name FROM pg_tables
            WHERE schemaname = 'rl' OR tablename IN ('training_batches', 'trained_models')""",
    )
    assert len(tables) > 5
    return "\n".join(
        str(row)
        for table in tables
        for row in query(deployment.context, f"SELECT t::text FROM {table['name']} t")
    )


def _pages(port: int, password: str) -> str:
    with httpx.Client(
        base_url=f"http://127.0.0.1:{port}", auth=("person", password), timeout=20
    ) as client:
        assert httpx.get(f"http://127.0.0.1:{port}/workers").status_code == 401
        answers = [client.get(page.format(host=os.uname().nodename)) for page in PAGES]
    assert all(answer.status_code == 200 for answer in answers), answers
    return "".join(answer.text for answer in answers)


def _command_lines() -> str:
    """Of every process of this machine; titles are command lines too."""
    lines = []
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            lines.append(process.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        except OSError:
            continue  # it has just ended
    return "\n".join(lines)
