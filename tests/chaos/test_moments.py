"""Moments at which an outage, a twin or a bug of ours once cost work, a version or an attempt."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.chaos.injection import FOLDER, Injection
from tests.chaos.test_faults import attempts, babylon, next_attempt, start, struck_at
from tests.chaos.verdict import left_in
from tests.chaos.world import ROOT, World
from tests.old_release import extract_old_release
from tests.rows import query, states

Trial = Callable[..., None]
slow = pytest.mark.slow

OUTAGES = (4.0, 12.0, 20.0)  # seconds; a lease has two


def away(world: World, how: str, seconds: float) -> None:
    """Take Postgres from every role for so long, then wait until all is done."""
    if how == "it restarts":
        world.servers.postgres.stop_immediate()
    elif how == "its network is cut":
        world.links.postgres.cut()
    else:
        world.links.postgres.drop()
    time.sleep(seconds)
    if how == "it restarts":
        world.servers.postgres.start()
    else:
        world.links.postgres.restore()


@slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize("how", ["it refuses", "it restarts", "its network is cut"])
@pytest.mark.parametrize("twins", [1, 2])
def test_postgres_away_as_a_step_ends(trial: Trial, world: World, how: str, twins: int) -> None:
    """Three times in a row, after the gradient and before the checkpoint is announced."""
    late = Injection("babylon_tasks.store.steps.begin_checkpoint", "sleep", seconds=1.5)
    start(world, "cpu1", "beat", env={"MAX_ATTEMPTS": "1"})
    for number in range(twins):
        world.start(f"gpu{number + 1}", inject=[late], env={"MAX_ATTEMPTS": "1"})
    waited = []
    for seconds in OUTAGES:
        world.add_windows(1)
        world.wait(lambda: attempts(world, "train", None) > 0)
        time.sleep(0.7)
        away(world, how, seconds)
        since = time.monotonic()
        world.wait(world.settled)
        waited.append(time.monotonic() - since)
    assert query(world.context, "SELECT * FROM rl.windows WHERE attempts > 0") == []
    assert attempts(world, "train", "error") == 0
    assert attempts(world, "train", "done") == len(OUTAGES)
    if twins == 1:  # else the other one may be faster
        assert attempts(world, "train", "lost") == attempts(world, "train", "given_back") == 0
    trial(24, "Postgres away 4 to 20 s as a step ends", waited)


@slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize("how", ["it refuses", "it restarts", "its network is cut"])
def test_postgres_away_in_mid_scoring(trial: Trial, world: World, how: str) -> None:
    """Three times in a row at the same windows."""
    late = Injection("babylon_tasks.store.scores.write", "sleep", seconds=1.0)
    start(world, "cpu1", "cpu2", inject=[late], env={"MAX_ATTEMPTS": "1"})
    start(world, "gpu1", "beat")
    world.add_windows(6)
    waited = []
    for seconds in (4.0, 8.0, 4.0):
        world.wait(lambda: attempts(world, "score", None) > 0)
        away(world, how, seconds)
        since = time.monotonic()
        done = attempts_done(world)
        world.wait(lambda done=done: attempts_done(world) > done or world.settled())
        waited.append(time.monotonic() - since)
    world.wait(world.settled)
    assert query(world.context, "SELECT * FROM rl.windows WHERE attempts > 0") == []
    assert attempts(world, "score", "error") == 0
    trial(24, "Postgres away in mid-scoring", waited)


def attempts_done(world: World) -> int:
    return attempts(world, "score", "done")


@slow
def test_publish_beside_a_commit(trial: Trial, world: World) -> None:
    """Each commit holds the head for a second, in which the step before it is published."""
    held = Injection("babylon_tasks.store.heads.advance", "sleep", at="after", seconds=1.0)
    late = Injection("babylon_tasks.store.promotions.publish", "sleep", seconds=0.5)
    start(world, "cpu1", "cpu2", inject=[late])
    world.start("gpu1", inject=[held])
    world.start("beat")
    for _ in range(6):
        world.add_windows(1)
        time.sleep(1.5)
    world.wait(world.settled)
    ready = query(world.context, "SELECT status FROM trained_models ORDER BY status")
    assert len(ready) >= 2
    assert [row["status"] for row in ready] == ["deployed"] + ["ready"] * (len(ready) - 1)
    trial(26, "publish beside a commit")


@slow
def test_two_nodes_with_the_same_hostname(trial: Trial, world: World) -> None:
    """And the same pids, as in containers: their names in leases, rows and Celery are the same."""
    same = {
        "BABYLON_PRELOAD": "same_holder",
        "PYTHONPATH": f"{FOLDER}:{ROOT}",
    }
    slow_step = Injection("workers.trainer.noop.NoopTrainer.step", "sleep", seconds=3)
    for role in ("cpu1", "cpu2"):
        world.start(role, "-n", "cpu@node", env=same)
    for role in ("gpu1", "gpu2"):
        world.start(role, "-n", "gpu@node", inject=[slow_step], env=same)
    world.start("beat")
    world.add_windows(4)
    world.wait(lambda: any(map(world.fleet.trainers, ("gpu1", "gpu2"))))
    held = query(world.context, "SELECT DISTINCT holder FROM rl.attempts")
    assert [row["holder"] for row in held] == ["node:7"]
    trains = next(filter(world.fleet.trainers, ("gpu1", "gpu2")))
    since = datetime.now(UTC)
    world.fleet.kill(trains)
    world.add_windows(3)
    world.wait(world.settled)
    assert attempts(world, "train", "lost") > 0
    trial(28, "two nodes with one hostname, one killed", [next_attempt(world, "train", since)])


@slow
@pytest.mark.timeout(240)
def test_an_old_release_beside_a_new_one(trial: Trial, world: World, tmp_path: Path) -> None:
    """Each with its beat; a GPU worker of each is killed, and Postgres is away for a while."""
    old = tmp_path / "old"
    extract_old_release(old)
    theirs = {"PYTHONPATH": str(old)}
    slow_step = Injection("workers.trainer.noop.NoopTrainer.step", "sleep", seconds=2)
    start(world, "cpu1", "beat", env=theirs)
    world.start("gpu1", env=theirs)
    start(world, "cpu2", "beat2")
    world.start("gpu2", inject=[slow_step])
    file = world.folder / "once"
    world.start(
        "gpu3",
        inject=[Injection("babylon_tasks.checkpoints.files._copy", "kill_parent", once=file)],
    )
    for number in range(6):
        world.add_windows(2)
        time.sleep(2)
        if number == 2:
            world.fleet.kill("gpu1")
            world.start("gpu1", env=theirs)
        if number == 4:
            away(world, "it refuses", 3)
    world.wait(world.settled, 60)
    assert query(world.context, "SELECT * FROM rl.windows WHERE state = 'failed'") == []
    waited = [next_attempt(world, "train", struck_at(file))] if file.exists() else []
    for left in world.tmp.glob("babylon-step-*"):  # of 0.1.0; ours go when a day old
        shutil.rmtree(left)
    world.start("gpu4")  # if only theirs has trained since
    world.wait(lambda: not left_in(world.tmp))
    trial(28, "an old release beside a new one", waited)


@slow
@pytest.mark.parametrize("stage", ["score", "train"])
def test_a_release_that_always_raises(trial: Trial, world: World, stage: str) -> None:
    """It stops, and no window is failed; the next release does them all."""
    call = {
        "score": "babylon_tasks.scoring.heuristic.heuristic",
        "train": "workers.trainer.noop._read",
    }[stage]
    bug = Injection(call, "raise", error="builtins.KeyError", arguments=("no such thing",))
    broken, other = ("cpu1", "gpu1") if stage == "score" else ("gpu1", "cpu1")
    world.add_windows(5)
    world.start(broken, inject=[bug])
    start(world, other, "beat")
    log = world.folder / f"{broken}.log"
    world.wait(lambda: "this machine is at fault" in log.read_text())
    time.sleep(6)  # three sweeps
    state = "due" if stage == "score" else "scored"
    assert set(states(world.context).values()) == {state}
    assert query(world.context, "SELECT * FROM rl.windows WHERE attempts > 0") == []
    assert attempts(world, stage, None) == 0
    assert log.read_text().count("so this machine is at fault") == 1
    told = {each["check"]: each for each in babylon(world, "doctor", "--json")}
    assert not told["machines"]["ok"]
    assert "no such thing" in told["machines"]["detail"]
    assert world.fleet.terminate(broken) == 0
    since = datetime.now(UTC)
    world.start(broken)
    world.wait(world.settled)
    trial(30, "a release that always raises", [next_attempt(world, stage, since)])


@slow
def test_what_a_killed_step_left(trial: Trial, world: World) -> None:
    """Its prompts are in the folder for temporary files; the next start removes them."""
    world.add_windows(2)
    start(world, "cpu1", "beat")
    slow_step = Injection("workers.trainer.noop.NoopTrainer.step", "sleep", seconds=30)
    world.start("gpu1", inject=[slow_step])
    world.wait(lambda: bool(prompts(world)))
    world.fleet.kill("gpu1")
    assert prompts(world)
    world.start("gpu1")
    world.wait(lambda: not prompts(world))
    world.wait(world.settled)
    trial(32, "prompts of a step that was killed")


def prompts(world: World) -> list[Path]:
    return list(world.tmp.glob("**/samples.jsonl"))
