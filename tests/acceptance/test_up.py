"""`babylon up` on embedded servers: what can befall them, and the one line that says so."""

from __future__ import annotations

import os
import re
import signal
import stat
import subprocess
from pathlib import Path

import psycopg
import pytest

from babylon_tasks.local.postgres import embedded_postgres
from babylon_tasks.store.migrate import migrate
from tests.acceptance.conftest import Deployment
from tests.chaos.processes import command_line, every_pid, parent, working_folder

pytestmark = pytest.mark.slow


@pytest.fixture
def embedded(deployment: Deployment) -> Deployment:
    """Without servers of one's own."""
    for variable in ("DATABASE_URL", "REDIS_URL"):
        del deployment.env[variable]
    return deployment


def test_a_first_start_interrupted_is_begun_anew_and_a_killed_one_stops_its_postgres(
    embedded: Deployment,
) -> None:
    home = embedded.folder / ".babylon"
    draft = home / ".postgres.new"
    first = embedded.start("babylon", "up")
    embedded.wait(lambda: (draft / "PG_VERSION").exists())
    first.send_signal(signal.SIGTERM)
    first.wait(timeout=15)
    assert draft.exists()
    assert not (home / "postgres").exists()
    assert _postgres_in(draft) == []
    second = _up(embedded)
    assert not draft.exists()
    assert _postgres_in(home / "postgres")
    second.kill()
    second.wait()
    embedded.wait(lambda: not _postgres_in(home / "postgres"), seconds=15)
    assert (home / "servers.env").exists()
    lost = embedded.call("babylon", "status")  # of nobody
    assert (lost.returncode, lost.stderr[:23]) == (2, "DATABASE_URL is not set")


def test_up_goes_on_with_its_data_after_a_server_that_was_killed_with_it(
    embedded: Deployment,
) -> None:
    """The pid of its Postgres stays in a file, and may be a zombie's."""
    data = embedded.folder / ".babylon" / "postgres"
    with embedded_postgres(data, "babylon") as url:
        migrate(url)
        with psycopg.connect(url) as connection:
            connection.execute("CREATE TABLE kept ()")
    first = _up(embedded)
    first.send_signal(signal.SIGSTOP)  # or it would notice
    _kill_postgres(data)
    first.kill()
    first.wait()
    assert (data / "postmaster.pid").exists()
    second = _up(embedded)
    sockets = (data / "postmaster.pid").read_text().splitlines()[4]
    with psycopg.connect(f"postgresql://postgres@/babylon?host={sockets}") as connection:
        connection.execute("SELECT FROM kept")
    second.terminate()
    assert second.wait(timeout=40) == 0
    assert not (data / "postmaster.pid").exists()


def test_up_is_alone_in_its_folder_and_leaves_nothing_as_redis_ends(embedded: Deployment) -> None:
    home = embedded.folder / ".babylon"
    first = _up(embedded)
    second = embedded.run("babylon", "up")
    assert second.returncode == 2
    (line,) = second.stderr.splitlines()
    assert "another `babylon up` is running in this folder" in line
    assert first.poll() is None
    found = embedded.call("babylon", "status", "--json")
    assert found.returncode == 0, found.stderr
    servers = home / "servers.env"
    assert stat.S_IMODE(servers.stat().st_mode) == 0o600
    (password,) = re.findall(r"redis://:(.+)@", servers.read_text())
    assert "DATABASE_URL=postgresql://" in embedded.logs()
    assert "REDIS_URL=redis://" in embedded.logs()
    assert password not in embedded.logs()
    children = [pid for pid in every_pid() if parent(pid) == first.pid]
    (redis,) = [pid for pid in children if "redis-server" in command_line(pid)]
    os.kill(redis, signal.SIGKILL)
    assert first.wait(timeout=40) == 2
    assert "the embedded Redis ended: see" in _last_line(embedded)
    assert [pid for pid in children if pid in every_pid()] == []
    assert _postgres_in(home / "postgres") == []
    assert not servers.exists()


def test_a_folder_that_cannot_be_written_to_is_one_line(embedded: Deployment) -> None:
    (embedded.folder / ".babylon").write_text("")
    for command in ("up", "demo"):
        done = embedded.call("babylon", command)
        assert done.returncode == 2
        assert done.stderr.count("\n") == 1
        assert done.stderr.startswith(f"cannot write to {embedded.folder}/.babylon")


def test_up_says_that_its_postgres_ended(embedded: Deployment) -> None:
    first = _up(embedded)
    _kill_postgres(embedded.folder / ".babylon" / "postgres")
    assert first.wait(timeout=40) == 2
    assert "the embedded PostgreSQL ended: see" in _last_line(embedded)


def _up(embedded: Deployment) -> subprocess.Popen[str]:
    before = embedded.logs().count("Flower")
    process = embedded.start("babylon", "up")
    embedded.wait(lambda: embedded.logs().count("Flower") > before or process.poll() is not None)
    assert process.poll() is None, embedded.logs()
    return process


def _last_line(embedded: Deployment) -> str:
    return embedded.logs().splitlines()[-1]


def _kill_postgres(data: Path) -> None:
    """Its other processes notice, and end."""
    os.kill(int((data / "postmaster.pid").read_text().splitlines()[0]), signal.SIGKILL)


def _postgres_in(folder: Path) -> list[int]:
    return [pid for pid in every_pid() if working_folder(pid) == folder]
