"""The prefix of a deployment's keys in Redis, which comes from its Postgres, under faults."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.chaos.injection import Injection
from tests.chaos.world import World

Trial = Callable[..., None]
slow = pytest.mark.slow

ROLES = ("cpu1", "gpu1", "beat")


@slow
def test_two_deployments_on_one_redis(trial: Trial, world: World, tmp_path: Path) -> None:
    """By mistake, with workers of the same names. FLUSHALL of one is that of the other, too."""
    folder = tmp_path / "other"
    folder.mkdir()
    with World(world.servers, folder) as other:
        for each in (world, other):
            each.add_windows(4)
            for role in ROLES:
                each.start(role)
        world.servers.redis.flush()
        for each in (world, other):
            each.wait(each.settled)
            assert workers(each) == ["cpu1", "gpu1"]
        other.invariants()
        trial(29, "two deployments on one Redis database")


@slow
def test_postgres_goes_away_as_workers_start(trial: Trial, world: World) -> None:
    """After they know the prefix, and before they take messages: they go on, and wait for it."""
    file = world.folder / "once"
    world.add_windows(2)
    checked = Injection("workers.refusal.require_broker", "sleep", at="after", seconds=2, once=file)
    alone = world.own_links()
    world.start("cpu1", links=alone, inject=[checked])
    world.wait(file.exists)
    alone.postgres.drop()
    world.wait(lambda: "cpu1" in workers(world))
    alone.postgres.restore()
    for role in ROLES[1:]:
        world.start(role)
    world.wait(world.settled)
    trial(13, "Postgres away as a worker starts")


@slow
def test_a_worker_comes_back_to_redis_without_postgres(trial: Trial, world: World) -> None:
    """What Postgres said once is remembered."""
    world.add_windows(2)
    alone = world.own_links()
    world.start("cpu1", links=alone)
    for role in ROLES[1:]:
        world.start(role)
    world.wait(world.settled)
    alone.postgres.drop()
    world.servers.redis.kill()
    world.servers.redis.start()
    world.wait(lambda: "cpu1" in workers(world))
    alone.postgres.restore()
    world.add_windows(1)
    world.wait(world.settled)
    trial(10, "Redis killed while Postgres is away")


def workers(world: World) -> list[str]:
    """Return the names of the workers that answer this deployment, without their hosts."""
    asked = subprocess.run(
        [
            *(str(Path(sys.executable).with_name("celery")), "-A", "babylon_tasks"),
            *("inspect", "ping", "--json", "--timeout", "3"),
        ],
        env=world.fleet.env,
        cwd=world.folder,
        capture_output=True,
        text=True,
        check=False,
    )
    if asked.returncode:
        return []
    return sorted(name.partition("@")[0] for name in json.loads(asked.stdout))
