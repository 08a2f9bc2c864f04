"""A Redis that answers and takes no writes, or comes back with an older past: rows of number 10.

After each fault every role still lives, without a supervisor.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import redis

from babylon_tasks.local.ports import free_port
from tests.chaos.test_faults import Trial, attempts, next_attempt, slow_step, start
from tests.chaos.world import World

ROLES = ("cpu1", "gpu1", "beat", "flower")
slow = pytest.mark.slow


@contextmanager
def client_of(world: World) -> Iterator[Any]:
    """The administrator's client; redis-py's types leave much out."""
    with redis.Redis.from_url(world.servers.redis.url) as client:
        yield client


@contextmanager
def configured(world: World, **options: str) -> Iterator[None]:
    with client_of(world) as client:
        before = {name: client.config_get(name)[name] for name in options}
        for name, value in options.items():
            client.config_set(name, value)
        yield
        for name, value in before.items():
            client.config_set(name, value)


@contextmanager
def demoted(world: World) -> Iterator[None]:
    """READONLY: it is a replica now, of a master that is away."""
    with client_of(world) as client:
        client.replicaof("127.0.0.1", 1)
        yield
        client.replicaof("NO", "ONE")


@contextmanager
def without_its_master(world: World) -> Iterator[None]:
    """MASTERDOWN, to reads too."""
    with configured(world, **{"replica-serve-stale-data": "no"}), demoted(world):
        yield


@contextmanager
def without_replicas(world: World) -> Iterator[None]:
    """NOREPLICAS."""
    with configured(world, **{"min-replicas-to-write": "1"}):
        yield


@contextmanager
def out_of_memory(world: World) -> Iterator[None]:
    """OOM."""
    with configured(world, **{"maxmemory": "1", "maxmemory-policy": "noeviction"}):
        yield


@contextmanager
def out_of_disk(world: World) -> Iterator[None]:
    """MISCONF: its snapshot failed, since its folder is gone."""
    with client_of(world) as client, tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / "gone"
        folder.mkdir()
        with configured(world, dir=str(folder), save="3600 1"):
            folder.rmdir()
            client.set("any", "1")
            client.bgsave()
            deadline = time.monotonic() + 10
            while client.info("persistence")["rdb_last_bgsave_status"] == "ok":
                assert time.monotonic() < deadline
                time.sleep(0.05)
            yield
        client.save()  # a good one ends it
        snapshot(client).unlink()


def snapshot(client: Any) -> Path:
    """Where its snapshot is; a server that starts reads it."""
    return Path(client.config_get("dir")["dir"]) / "dump.rdb"


@pytest.mark.parametrize(
    ("title", "refusing"),
    [
        pytest.param("Redis demoted 12 s", demoted, marks=slow),
        pytest.param("Redis without its master 12 s", without_its_master, marks=slow),
        pytest.param("Redis without replicas 12 s", without_replicas, marks=slow),
        pytest.param("Redis out of memory 12 s", out_of_memory, marks=slow),
        pytest.param("Redis out of disk 12 s", out_of_disk, marks=slow),
    ],
)
def test_redis_takes_no_writes(
    trial: Trial, world: World, title: str, refusing: Callable[[World], Any]
) -> None:
    """While the roles are idle, then in the middle of a step, which goes on."""
    start(world, *ROLES[:1], *ROLES[2:3])
    world.start("flower", f"--port={free_port()}")
    world.start("gpu1", inject=[slow_step(10)])
    world.add_windows(1)
    world.wait(lambda: attempts(world, "train", None) > 0)
    with refusing(world):
        world.add_windows(2)
        time.sleep(12)
        assert attempts(world, "train", "lost") == 0
        assert attempts(world, "train", "done") > 0
    since = datetime.now(UTC)
    world.wait(world.settled, 60)
    assert [name for name in ROLES if not world.fleet.lives(name)] == []
    trial(10, title, [next_attempt(world, "score", since)])


@slow
def test_redis_loses_its_last_seconds(trial: Trial, world: World) -> None:
    """As after a failover to a replica that lagged: what was taken comes again."""
    start(world, *ROLES[:3])
    world.start("flower", f"--port={free_port()}")
    world.add_windows(2)
    world.wait(lambda: attempts(world, "score", "done") > 0)
    with client_of(world) as client:
        client.save()
        file = snapshot(client)
    world.add_windows(2)
    time.sleep(3)
    world.servers.redis.kill()
    since = datetime.now(UTC)
    try:
        world.servers.redis.start()
    finally:
        file.unlink()
    world.add_windows(2)
    world.wait(world.settled, 60)
    assert [name for name in ROLES if not world.fleet.lives(name)] == []
    trial(10, "Redis back without its last 3 s", [next_attempt(world, "score", since)])
