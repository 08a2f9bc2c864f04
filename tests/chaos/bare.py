"""The same kills on plain Celery, as its documentation advises to set it up.

`celery -A tests.chaos.bare worker`: acknowledged late, given back when the worker is lost, one
message at a time. A killed worker's message comes back when `visibility_timeout` has passed; that
is 30 s here instead of Celery's hour, so that it happens within the run. No task takes nearly as
long.
"""

from __future__ import annotations

import functools
import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import psycopg
import redis
from celery import Celery

from tests.chaos.schedule import PlannedKill, kill_schedule
from tests.rows import one

if TYPE_CHECKING:
    from tests.chaos.world import World

VISIBILITY_SECONDS = 30
_WORK_SECONDS = 0.005
_TICK_SECONDS = 0.1
_WORKERS = ("bare1", "bare2")

app = Celery("bare", broker=os.environ.get("REDIS_URL"))
app.conf.update(
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    task_ignore_result=True,
    worker_prefetch_multiplier=1,
    broker_connection_retry_on_startup=True,
    broker_connection_max_retries=None,
    broker_transport_options={
        "visibility_timeout": VISIBILITY_SECONDS,
        "global_keyprefix": "",  # also in a process that knows our transport, which would ask
    },
)


@functools.cache
def _connection() -> psycopg.Connection[Any]:
    return psycopg.connect(os.environ["DATABASE_URL"], autocommit=True)


@app.task(name="bare.run")  # type: ignore[untyped-decorator]
def run(task_id: int) -> None:
    """Work for a moment, then write that the task ran."""
    time.sleep(_WORK_SECONDS)
    _connection().execute("INSERT INTO bare_runs (task_id) VALUES (%s)", [task_id])


@dataclass(frozen=True, slots=True)
class BareReport:
    """How often tasks that were sent once never ran, or ran more than once."""

    seconds: float
    tasks: int
    kills: int
    never: int
    twice: int
    drain_seconds: float


def run_bare(world: World, tasks: int, seconds: float, seed: int) -> BareReport:
    """Send the tasks evenly over the time, kill workers by the schedule, and count.

    Two workers of one process each; every kill hits one of them, whole, and it starts again.
    """
    with world.context.database.transaction() as tx:
        tx.execute("CREATE TABLE bare_runs (task_id integer NOT NULL)")
    for name in _WORKERS:
        world.fleet.start(
            name, "celery", "-A", "tests.chaos.bare", "worker", "-n", f"{name}@%h", "-c", "1",
            keep_running=True,
        )  # fmt: skip
    world.wait(lambda: all(world.fleet.children(name) for name in _WORKERS))
    planned = kill_schedule(seed, seconds)
    kills = sent = 0
    started = time.monotonic()
    with app.connection_for_write(world.servers.redis.url) as connection:
        while (elapsed := time.monotonic() - started) < seconds or sent < tasks:
            while planned and planned[0].after_seconds <= elapsed:
                kills += _kill(world, planned.pop(0))
            for task_id in range(sent, min(tasks, int(tasks * elapsed / seconds) + 1)):
                run.apply_async([task_id], connection=connection)
                sent = task_id + 1
            time.sleep(_TICK_SECONDS)
    drained = _drain(world)
    counts = one(
        world.context,
        """SELECT count(*) FILTER (WHERE runs IS NULL)::int AS never,
                  count(*) FILTER (WHERE runs > 1)::int AS twice
             FROM generate_series(0, %s) AS task_id
             LEFT JOIN (SELECT task_id, count(*) AS runs FROM bare_runs GROUP BY task_id) r
                 USING (task_id)""",
        tasks - 1,
    )
    return BareReport(seconds, tasks, kills, counts["never"], counts["twice"], round(drained, 1))


def _kill(world: World, planned: PlannedKill) -> int:
    """Kill one, and return how many died: none if the victim is starting again."""
    victim = planned.pick(_WORKERS)
    if not world.fleet.lives(victim):
        return 0
    world.fleet.kill(victim)
    return 1


def _drain(world: World) -> float:
    """Wait until no message waits or is taken, or nothing moves; return the seconds.

    What comes back does so after the visibility timeout; it is looked for every 10 s.
    """
    started = moved = time.monotonic()
    left = None
    with redis.Redis.from_url(world.servers.redis.url) as client:
        while now := (client.llen("celery"), client.hlen("unacked")):
            if now == (0, 0) or time.monotonic() - moved > 4 * VISIBILITY_SECONDS:
                break
            if now != left:
                left, moved = now, time.monotonic()
            time.sleep(_TICK_SECONDS)
    return time.monotonic() - started
