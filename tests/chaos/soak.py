"""All roles serve six lineages, while windows keep coming and one role is killed all the time.

At a third of the time one lineage is forked, and at half of it the same one is reset to a step
before the fork. The commands that do so are killed as well.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime

from tests.chaos.fleet import Kill
from tests.chaos.injection import Injection
from tests.chaos.operator import Operator
from tests.chaos.recovery import percentile
from tests.chaos.schedule import WORKERS, PlannedKill, kill_schedule
from tests.chaos.verdict import Verdict
from tests.chaos.world import World
from tests.paths import lineage_rows
from tests.rows import query

_TICK_SECONDS = 0.1
_SCORE_SECONDS = 0.1
_STEP_SECONDS = 0.5
_REDIS_DOWN_SECONDS = 1.0
_GIVEN_UP_STEPS = 3  # of those before the fork; all after it are given up, too
_LINEAGES = ("second", "third", "fourth")  # beside MODEL_NAME and its fork
_GATED = "gated"  # its steps pass an exam before they serve
_EXAM_SECONDS = 0.3


@dataclass(frozen=True, slots=True)
class SoakReport:
    """The result of a soak; recoveries in seconds, None if no kill lost an attempt.

    Each of the windows trains each of the lineages; `given_up` counts the steps before the reset.
    """

    seconds: float
    windows: int
    lineages: int
    given_up: int
    kills: dict[str, int]
    lost: int
    twice: int
    broken: list[str]
    attempts: dict[str, int]
    recoveries: int
    recovery_p50: float | None
    recovery_p99: float | None
    drain_seconds: float


def run_soak(
    world: World, seconds: float, seed: int, windows: int, drain_seconds: float = 120
) -> SoakReport:
    """Insert `windows` evenly over the time, kill by the schedule, let all drain, and count.

    Each window is due for every lineage. A window takes 0.1 s to score, a step 0.5 s and an exam
    0.3 s, so that kills meet work under way. What has not ended `drain_seconds` after the last
    window is counted as lost.
    """
    work = [
        Injection("babylon_tasks.scoring.heuristic.heuristic", "sleep", seconds=_SCORE_SECONDS),
        Injection("workers.trainer.noop.NoopTrainer.step", "sleep", seconds=_STEP_SECONDS),
        Injection("babylon_tasks.evaluation.stage.judge", "sleep", seconds=_EXAM_SECONDS),
    ]
    for name in (*WORKERS, "beat"):
        world.start(name, keep_running=True, inject=work)
    world.wait(lambda: all(world.fleet.children(name) for name in WORKERS))
    with _changing_lineages(world, seconds):
        kills = _hurt(world, seconds, seed, windows)
    drained = _drain(world, drain_seconds)
    return _report(world, seconds, windows, kills, world.verdict(), drained)


def _hurt(world: World, seconds: float, seed: int, windows: int) -> dict[str, int]:
    """Insert the windows over the time and kill; return how often each was killed."""
    planned = kill_schedule(seed, seconds)
    kills: Counter[str] = Counter()
    added = 0
    started = time.monotonic()
    while (elapsed := time.monotonic() - started) < seconds:
        while planned and planned[0].after_seconds <= elapsed:
            kills.update(_kill(world, planned.pop(0)))
        due = int(windows * elapsed / seconds)
        if due > added:
            world.add_windows(due - added)
            added = due
        time.sleep(_TICK_SECONDS)
    world.add_windows(windows - added)
    return dict(kills)


@contextmanager
def _changing_lineages(world: World, seconds: float) -> Iterator[None]:
    """Create the lineages; fork and reset one of them meanwhile, at the latest at the end."""
    operator = Operator(world)
    operator.create(*_LINEAGES)
    operator.create(_GATED, settings=["PUBLISH=gate"])
    with ThreadPoolExecutor(max_workers=1) as thread:
        changed = thread.submit(_fork_and_reset, operator, world.context.lineage.name, seconds)
        yield
        changed.result()
    operator.close()


def _fork_and_reset(operator: Operator, name: str, seconds: float) -> None:
    time.sleep(seconds / 3)
    forked = operator.head(at_least=_GIVEN_UP_STEPS + 1)
    operator.fork(f"{name}@{forked}", "fork")
    time.sleep(seconds / 6)
    operator.retry(operator.reset(forked - _GIVEN_UP_STEPS))


def _kill(world: World, planned: PlannedKill) -> list[str]:
    """Kill one, and return it; nobody if no process of its kind lives now."""
    fleet, servers = world.fleet, world.servers
    living = [name for name in (*WORKERS, "beat") if fleet.lives(name)]
    if planned.victim in ("child", "trainer"):
        find = fleet.children if planned.victim == "child" else fleet.trainers
        candidates = [pid for name in living if name in WORKERS for pid in find(name)]
        if not candidates:
            return []
        fleet.kill_process(planned.pick(candidates), planned.victim)
    elif planned.victim == "redis":
        fleet.kills.append(Kill(datetime.now(UTC), "redis"))
        servers.redis.kill()
        time.sleep(_REDIS_DOWN_SECONDS)
        servers.redis.start()
    elif planned.victim == "postgres":
        fleet.kills.append(Kill(datetime.now(UTC), "postgres"))
        servers.postgres.kill()
        servers.postgres.start()
    elif planned.victim in living:
        fleet.kill(planned.victim)
    else:
        return []
    return [planned.victim]


def _drain(world: World, limit_seconds: float) -> float:
    """Wait until everything has ended, or for the limit; return the seconds."""
    started = time.monotonic()
    while time.monotonic() - started < limit_seconds and not world.settled():
        time.sleep(_TICK_SECONDS)
    return time.monotonic() - started


def _report(
    world: World,
    seconds: float,
    windows: int,
    kills: dict[str, int],
    verdict: Verdict,
    drained: float,
) -> SoakReport:
    recovered = world.recoveries()
    given_up = query(world.context, "SELECT FROM rl.steps WHERE given_up_at IS NOT NULL")
    return SoakReport(
        seconds=seconds,
        windows=windows,
        lineages=len(lineage_rows(world.context)),
        given_up=len(given_up),
        kills=kills,
        lost=len(verdict.lost),
        twice=len(verdict.twice),
        broken=verdict.broken,
        attempts=world.attempts(),
        recoveries=len(recovered),
        recovery_p50=percentile(recovered, 0.5),
        recovery_p99=percentile(recovered, 0.99),
        drain_seconds=round(drained, 1),
    )
