"""`babylon up` on embedded servers: what can befall them, and the one line that says so."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

import psutil
import pytest

from tests.acceptance.conftest import Deployment


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
    marker = home / ".postgres.unfinished"
    first = embedded.start("babylon", "up")
    embedded.wait(lambda: (home / "postgres" / "PG_VERSION").exists())
    first.send_signal(signal.SIGTERM)
    first.wait(timeout=15)
    assert marker.exists()
    assert _postgres_in(home) == []
    second = _up(embedded)
    assert not marker.exists()
    assert _postgres_in(home)
    second.kill()  # its Postgres is no child of its own
    second.wait()
    embedded.wait(lambda: not _postgres_in(home), seconds=15)


def test_up_is_alone_in_its_folder_and_leaves_nothing_as_redis_ends(embedded: Deployment) -> None:
    home = embedded.folder / ".babylon"
    first = _up(embedded)
    second = embedded.run("babylon", "up")
    assert second.returncode == 2
    (line,) = second.stderr.splitlines()
    assert "another `babylon up` is running in this folder" in line
    assert first.poll() is None
    children = psutil.Process(first.pid).children()
    (redis,) = [child for child in children if child.name() == "redis-server"]
    redis.kill()
    assert first.wait(timeout=40) == 2
    assert "the embedded Redis ended: see" in _last_line(embedded)
    assert [child for child in children if child.is_running()] == []
    assert _postgres_in(home) == []


def test_up_says_that_its_postgres_ended(embedded: Deployment) -> None:
    first = _up(embedded)
    for process in _postgres_in(embedded.folder / ".babylon"):
        process.kill()
    assert first.wait(timeout=40) == 2
    assert "the embedded PostgreSQL ended: see" in _last_line(embedded)


def _up(embedded: Deployment) -> subprocess.Popen[str]:
    process = embedded.start("babylon", "up")
    embedded.wait(lambda: "Flower" in embedded.logs() or process.poll() is not None)
    assert process.poll() is None, embedded.logs()
    return process


def _last_line(embedded: Deployment) -> str:
    return embedded.logs().splitlines()[-1]


def _postgres_in(home: Path) -> list[psutil.Process]:
    found = psutil.process_iter(["name", "cwd"])
    return [
        p for p in found if p.info["name"] == "postgres" and p.info["cwd"] == f"{home}/postgres"
    ]
