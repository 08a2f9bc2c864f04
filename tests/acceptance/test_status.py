"""`babylon status` in a real terminal: colour, and a screen that follows what happens."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest
from psycopg import sql

from tests.acceptance.conftest import Deployment
from tests.conftest import with_database
from tests.rows import hours_ago, query
from tests.terminal import Terminal, terminal

BABYLON = str(Path(sys.executable).with_name("babylon"))
NOBODY = "redis://127.0.0.1:1/0"
RED = "\x1b[31m"


@contextmanager
def status(deployment: Deployment, *options: str, rows: int = 60, **env: str) -> Iterator[Terminal]:
    command = [BABYLON, "status", *options]
    with terminal(command, deployment._env(env), deployment.folder, rows) as opened:
        yield opened


def make_due(deployment: Deployment, hours: int) -> None:
    query(
        deployment.context,
        """INSERT INTO rl.windows (window_id, model_name, state)
           VALUES (%s, 'babylon-agent', 'due') RETURNING 1""",
        hours_ago(hours),
    )


@contextmanager
def nobody_may_connect(deployment: Deployment) -> Iterator[None]:
    """Postgres takes no connection to this database, and ends those there are."""
    url = deployment.context.settings.postgres()
    name = urlsplit(url).path.lstrip("/")
    allow = sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS {}")
    with psycopg.connect(with_database(url, "postgres"), autocommit=True) as server:
        server.execute(allow.format(sql.Identifier(name), sql.Literal(False)))
        server.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name]
        )
        try:
            yield
        finally:
            server.execute(allow.format(sql.Identifier(name), sql.Literal(True)))


@pytest.mark.slow
def test_red_is_for_a_terminal_that_wants_colour(deployment: Deployment) -> None:
    with status(deployment) as opened:
        assert opened.end() == 0
        assert f"{RED}  none         No worker scores windows" in opened.raw
    with status(deployment, NO_COLOR="1") as opened:
        assert opened.end() == 0
        assert "none         No worker scores windows" in opened.raw
        assert "\x1b[" not in opened.raw
    assert "\x1b[" not in deployment.call("babylon", "status").stdout


@pytest.mark.slow
def test_it_follows_what_happens_until_ctrl_c(deployment: Deployment) -> None:
    with status(deployment, "--watch") as opened:
        opened.wait_for("due 0 wait to be scored")
        make_due(deployment, 2)
        opened.wait_for("due 1 wait to be scored")
        assert opened.raw.count("\x1b[2J") <= 1, "it flickers"
        opened.type("\x03")
        assert opened.end() == 0
    _, left_screen, after = opened.raw.rpartition("\x1b[?1049l")
    assert left_screen
    assert "\x1b[?25h" in opened.raw, "the cursor is shown again"
    assert "due          1 wait to be scored" in after, "the last screen stays"
    assert after.endswith("\n")
    assert "Traceback" not in opened.raw


@pytest.mark.slow
def test_it_outlives_an_outage_of_postgres_and_of_redis(deployment: Deployment) -> None:
    with status(deployment, "--watch", REDIS_URL=NOBODY) as opened:
        opened.wait_for("is REDIS_URL right?")
        with nobody_may_connect(deployment):
            said = opened.wait_for("below is what was seen last", since=len(opened.raw))
            assert "due 0 wait to be scored" in said
        make_due(deployment, 2)
        opened.wait_for("due 1 wait to be scored")
        opened.process.send_signal(signal.SIGTERM)
        assert opened.end() == 0


@pytest.mark.slow
def test_a_low_terminal_says_what_it_does_not_show(deployment: Deployment) -> None:
    with status(deployment, "--watch", rows=10) as opened:
        said = opened.wait_for("lines: make the terminal higher")
        assert "due 0 wait to be scored" in said
        assert "Today" not in said
        opened.type("\x03")
        assert opened.end() == 0
    assert "Today" in opened.raw, "the last screen is whole"


def test_it_waits_for_a_server_that_is_not_there_yet(deployment: Deployment) -> None:
    with nobody_may_connect(deployment), status(deployment, "--watch") as opened:
        opened.wait_for("the database takes no connections")
        opened.process.send_signal(signal.SIGTERM)
        assert opened.end() == 0


def test_without_a_terminal_it_writes_screens_one_below_the_other(deployment: Deployment) -> None:
    with subprocess.Popen(
        [BABYLON, "status", "--watch"],
        env=deployment._env(None),
        cwd=deployment.folder,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        lines = iter(process.stdout.readline, "\n")  # until the empty line
        screen = "".join(lines)
        process.terminate()
        assert (process.stdout.read(), process.wait(timeout=20)) == ("", 0)
    assert screen.startswith("babylon-agent (active), ")
    assert "due          0 wait to be scored" in screen
    assert "\x1b" not in screen


def test_watching_is_for_people(deployment: Deployment) -> None:
    done = deployment.call("babylon", "status", "--watch", "--json")
    assert (done.returncode, done.stdout) == (2, "")
    assert "--watch is for people" in done.stderr
