"""Commands that take long say what they do: in a line that moves, or in plain lines."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from tests.acceptance.conftest import Deployment
from tests.chaos.injection import Injection, injecting
from tests.rows import add_window, hours_ago
from tests.terminal import terminal

BABYLON = str(Path(sys.executable).with_name("babylon"))
SLOW = Injection("workers.trainer.noop.NoopTrainer.step", "sleep", seconds=2.7)
MODULE = ("-m", "babylon_tasks")


def progress_lines(stderr: str) -> list[str]:
    """The lines that are none of the log."""
    return [line for line in stderr.splitlines() if re.match(r"[0-9]+ s  \w", line)]


@pytest.fixture
def due(deployment: Deployment) -> Deployment:
    add_window(deployment.context, hours_ago(2))
    return deployment


def test_a_step_says_what_it_does_in_plain_lines(due: Deployment) -> None:
    done = due.call("babylon", "train", silence_seconds=0.0)
    assert "step 1 (v1.0.0)" in done.stdout
    assert progress_lines(done.stderr) == ["0 s  claiming what is due"]


def test_a_program_hears_nothing_of_it(due: Deployment) -> None:
    done = due.call("babylon", "train", "--json", silence_seconds=0.0)
    assert json.loads(done.stdout)["steps"] == [{"step": 1, "version": "v1.0.0"}]
    assert not progress_lines(done.stderr)


def test_what_is_done_soon_says_nothing(due: Deployment) -> None:
    started = time.monotonic()
    done = due.run("babylon", "migrate")
    if time.monotonic() - started > 2:
        pytest.skip("this machine is slow now")
    assert done.stderr == ""


@pytest.mark.slow
def test_in_a_terminal_the_line_moves_and_is_gone_at_the_end(due: Deployment) -> None:
    env = due._env(injecting(SLOW))
    with terminal([BABYLON, "train"], env, due.folder) as opened:
        opened.wait_for("babylon-agent: step 1, 1 window, 3 runs")
        assert opened.end() == 0
    assert opened.words().endswith("v1.0.0 is promoted")
    assert "\x1b[2K" in opened.raw.rpartition("step 1, 1 window, 3 runs")[2], "it is wiped"
    assert "step 1 (v1.0.0): 1 windows, 3 trajectories, loss 0\r\n" in opened.raw


def test_mode_single_says_it_too(due: Deployment, unserved: None) -> None:
    done = due.call(*MODULE, env={"MODE": "single"}, silence_seconds=0.0)
    assert progress_lines(done.stderr)[0] == "0 s  claiming the window"
    assert "Training on: " in done.stdout


@contextmanager
def index_to_build(deployment: Deployment) -> Iterator[psycopg.Connection]:
    """A migration is to build its index, and waits for this connection's transaction."""
    url = deployment.context.settings.postgres()
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("DROP INDEX rl_trajectories_window_idx")
        connection.execute("DELETE FROM rl.migrations WHERE name LIKE '003%'")
    with psycopg.connect(url) as writer:
        writer.execute("LOCK TABLE trajectories IN ROW EXCLUSIVE MODE")
        yield writer


@pytest.mark.slow
def test_a_migration_says_how_far_its_index_is(deployment: Deployment) -> None:
    with index_to_build(deployment) as writer:
        env, folder = deployment._env(None), deployment.folder
        with terminal([BABYLON, "migrate"], env, folder) as opened:
            opened.wait_for("s waiting for writers before build 0%: rl_trajectories_window_idx on")
            opened.wait_for("waiting for a transaction of process")  # the log stands above it
            writer.commit()
            assert opened.end() == 0
        assert opened.words().endswith("1 migration applied")


def test_a_migration_in_a_script_writes_lines(deployment: Deployment) -> None:
    with (
        index_to_build(deployment) as writer,
        subprocess.Popen(
            [BABYLON, "migrate"],
            env=deployment._env(None),
            cwd=deployment.folder,
            stderr=subprocess.PIPE,
            text=True,
        ) as process,
    ):
        assert process.stderr is not None
        first = process.stderr.readline()
        writer.commit()
        assert process.wait(timeout=60) == 0
    assert re.match("[0-9]+ s  waiting for writers before build 0%: rl_trajectories", first)
