"""The database's disk is full for a while: work goes on when there is room; nobody is blamed."""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest
from psycopg import sql

from babylon_tasks.local.pgdata import open_to, system_user
from tests.chaos.servers import Servers
from tests.chaos.world import World
from tests.rows import one, query

FULL_SECONDS = 25.0
_SPACE = "babylon_small"


class SmallDisk:
    """A file system in memory that holds one database and little more."""

    def __init__(self, folder: Path) -> None:
        self._filler = folder / "filler"

    def fill(self) -> None:
        """Leave no byte."""
        chunk = bytes(65536)
        with contextlib.suppress(OSError), self._filler.open("ab", buffering=0) as file:
            while file.write(chunk):
                pass

    def make_room(self) -> None:
        """Give the room back."""
        self._filler.unlink(missing_ok=True)


@pytest.fixture
def small_disk(servers: Servers) -> Iterator[SmallDisk]:
    """A tablespace on a disk of 48 MB; only root may mount one."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to mount a small disk")
    servers.repair()
    with tempfile.TemporaryDirectory(prefix="babylon-small-") as folder:
        place = Path(folder) / "disk"
        place.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", "size=48m", "tmpfs", str(place)]
        if subprocess.run(mount, check=False, capture_output=True).returncode:
            pytest.skip("this machine mounts no disk")
        data = place / "data"
        data.mkdir()
        open_to(system_user(), data)
        try:
            _as_admin(
                servers,
                sql.SQL("CREATE TABLESPACE {} LOCATION {}").format(
                    sql.Identifier(_SPACE), sql.Literal(str(data))
                ),
            )
            yield SmallDisk(place)
            _as_admin(servers, sql.SQL("DROP TABLESPACE {}").format(sql.Identifier(_SPACE)))
        finally:
            subprocess.run(["umount", "--lazy", str(place)], check=False)


def _as_admin(servers: Servers, statement: sql.Composed) -> None:
    with psycopg.connect(servers.postgres.admin_url, autocommit=True) as connection:
        connection.execute(statement)


@pytest.mark.slow
def test_the_databases_disk_is_full(
    small_disk: SmallDisk, trial: Callable[..., None], world: World
) -> None:
    world.context.database.close()
    name = urlsplit(world.settings.postgres()).path[1:]
    _as_admin(
        world.servers,
        sql.SQL("ALTER DATABASE {} SET TABLESPACE {}").format(
            sql.Identifier(name), sql.Identifier(_SPACE)
        ),
    )
    world.add_windows(150)
    for role in ("cpu1", "gpu1", "beat"):
        world.start(role)
    world.wait(lambda: _count(world, "trained") > 0)
    small_disk.fill()
    world.wait(lambda: "No space left on device" in world.fleet.logs())
    time.sleep(FULL_SECONDS)
    assert not world.settled()
    assert all(world.fleet.lives(role) for role in ("cpu1", "gpu1", "beat"))
    small_disk.make_room()
    began = time.monotonic()
    world.wait(world.settled)
    seconds = time.monotonic() - began
    assert query(world.context, "SELECT * FROM rl.windows WHERE attempts > 0") == []
    again = one(
        world.context,
        """SELECT count(DISTINCT token) AS steps FROM rl.attempts
            WHERE stage = 'train' AND outcome <> 'done'""",
    )
    assert again["steps"] <= 1
    trial(27, f"the database's disk full for {FULL_SECONDS:.0f} s", [seconds])


def _count(world: World, state: str) -> int:
    return int(
        one(world.context, "SELECT count(*) AS n FROM rl.windows WHERE state = %s", state)["n"]
    )
