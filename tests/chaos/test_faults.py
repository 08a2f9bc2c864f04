"""The faults that must cost nothing, each done to real processes.

After each: every window ended as it should, none is in two steps, `rl.steps` is dense, tokens only
grow, the head's checkpoint loads, and nothing is held (`verdict.py`). The fault's number is the one
of docs/reliability.md.

Each test costs seconds: `make test` does those that are not marked `slow`, one each of a worker
that dies, a node that comes back too late, and each server that fails; `make chaos` does them all.
"""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import kombu
import pytest
import redis
from celery import Celery

from babylon_tasks import pipeline
from tests import judge_server
from tests.chaos import judging
from tests.chaos.injection import FOLDER, Injection
from tests.chaos.links import Links
from tests.chaos.operator import Operator
from tests.chaos.world import ROOT, World
from tests.judge_server import Behaviour, JudgeServer
from tests.judged import stored
from tests.rows import add_trajectory, one, query, states, steps

Trial = Callable[..., None]
slow = pytest.mark.slow

STEP = "workers.trainer.noop.NoopTrainer.step"


def struck_at(file: Path) -> datetime:
    """Return when the injected harm was done."""
    return datetime.fromtimestamp(file.stat().st_mtime, UTC)


def next_attempt(world: World, stage: str, since: datetime, lineage: str = "%") -> float:
    """Return the seconds from then to the next attempt at the stage."""
    row = one(
        world.context,
        """SELECT min(started_at) AS at FROM rl.attempts
            WHERE stage = %s AND started_at > %s AND model_name LIKE %s""",
        stage,
        since,
        lineage,
    )
    return float((row["at"] - since).total_seconds())


def lost_and_found(world: World, since: datetime) -> list[float]:
    """Return the seconds from each lost attempt to the window's next attempt."""
    rows = query(
        world.context,
        """SELECT (SELECT min(n.started_at) FROM rl.attempts n
                    WHERE n.window_id = a.window_id AND n.stage = a.stage
                      AND n.token > a.token) AS at
             FROM rl.attempts a WHERE a.outcome = 'lost'""",
    )
    return [float((row["at"] - since).total_seconds()) for row in rows]


def attempts(world: World, stage: str, outcome: str | None) -> int:
    """Count the attempts at the stage that ended so; None counts those under way."""
    row = one(
        world.context,
        """SELECT count(*) AS n FROM rl.attempts
            WHERE stage = %s AND outcome IS NOT DISTINCT FROM %s""",
        stage,
        outcome,
    )
    return int(row["n"])


def start(world: World, *names: str, **options: Any) -> None:
    for name in names:
        world.start(name, **options)


def send(world: World, task: str, *args: Any, queue: str = "cpu", times: int = 1) -> None:
    """Send messages as any program may."""
    app = Celery(broker=world.servers.redis.url)
    app.conf.broker_transport_options = {"global_keyprefix": world.key("")}
    for _ in range(times):
        app.send_task(task, args=args, queue=queue)
    app.close()


def slow_step(seconds: float) -> Injection:
    return Injection(STEP, "sleep", seconds=seconds)


@pytest.mark.parametrize(
    ("number", "title", "role", "call", "at", "stage"),
    [
        pytest.param(1, "producer killed after its commit, before it publishes", "cpu1",
                     "workers.doorbells.score", "before", "score", marks=slow),
        pytest.param(2, "producer killed inside its transaction", "cpu1",
                     "babylon_tasks.store.transitions.produce", "after", "score", marks=slow),
        pytest.param(3, "worker killed between message and claim", "cpu1",
                     "babylon_tasks.pipeline.score", "before", "score", marks=slow),
        pytest.param(4, "scorer killed after the claim", "cpu1",
                     "babylon_tasks.scoring.stage.score_claimed", "before", "score", marks=slow),
        pytest.param(4, "trainer's worker killed after the claim", "gpu1",
                     "workers.gpu.client.TrainerProcess.step", "before", "train", marks=slow),
        pytest.param(5, "scorer killed between its scores and the commit", "cpu1",
                     "babylon_tasks.store.transitions.mark_scored", "after", "score", marks=slow),
        (20, "killed with a half-written checkpoint", "gpu1",
         "babylon_tasks.checkpoints.files._copy", "after", "train"),
    ],
)  # fmt: skip
def test_killed_at(
    trial: Trial, world: World, number: int, title: str, role: str, call: str, at: Any, stage: str
) -> None:
    """SIGKILL of the whole worker at the worst moment; another one of its kind goes on."""
    file = world.folder / "once"
    world.add_windows(4)
    world.start(role, inject=[Injection(call, "kill_parent", at=at, once=file)])
    start(world, "gpu2" if role == "cpu1" else "cpu2", "beat")
    world.wait(file.exists)
    world.start("cpu2" if role == "cpu1" else "gpu2")
    world.wait(world.settled)
    if number in (4, 20):
        assert attempts(world, stage, "lost") > 0
    if number == 20:
        assert query(world.context, "SELECT * FROM rl.unfinished_checkpoints") == []
        kept = {row["checkpoint"] for row in query(world.context, "SELECT * FROM rl.steps")}
        folders = Path(world.settings.checkpoint_store).glob("*/*")
        assert {str(folder) for folder in folders} == kept
    since = struck_at(file)
    trial(number, title, lost_and_found(world, since) or [next_attempt(world, stage, since)])


@slow
@pytest.mark.parametrize(
    ("title", "answers"),
    [
        ("scorer killed between the judge's answers and its commit", [judge_server.hang(1)] * 4),
        ("scorer killed while it asks the judge (asked twice: in flight only)",
         [judge_server.hang(1), judge_server.hang(1), judge_server.hang(), judge_server.hang()]),
    ],
)  # fmt: skip
def test_killed_with_a_judges_answers(
    trial: Trial, world: World, title: str, answers: list[Behaviour]
) -> None:
    """What was stored is not bought again; an answer that was under way is."""
    file = world.folder / "once"
    wanted = judging.add_windows(world, 4)
    kill = Injection(
        "babylon_tasks.store.transitions.mark_scored", "kill_parent", at="after", once=file
    )
    with JudgeServer(script=list(answers)) as judge:
        with judging.nobody_judges(world, {"cpu1": 1, "cpu2": 1}):
            start(world, "cpu1", "cpu2", inject=[kill], env=judging.asking(judge))
            start(world, "gpu1", "beat")
        world.wait(file.exists)
        world.wait(world.settled)
        asked = judging.questions(judge, wanted)
    since = struck_at(file)
    bought = query(world.context, "SELECT * FROM rl.judgments ORDER BY asked_at")
    kept = {row["window_id"] for row in bought if row["asked_at"] <= since}
    assert kept
    assert len(bought) == len(wanted)
    assert {window: asked[window] for window in kept} == dict.fromkeys(kept, 1)
    assert max(asked.values()) <= 2
    assert list(asked.values()).count(2) >= answers.count(judge_server.hang())
    assert stored(world.context) == {
        id_: s for scores in wanted.values() for id_, s in scores.items()
    }
    found = lost_and_found(world, since)
    assert min(found) < world.settings.lease_seconds + world.settings.sweep_seconds + 2
    trial(5, title, found)


@slow
def test_killed_after_the_commit(trial: Trial, world: World) -> None:
    """A repeat of everything that was said changes nothing."""
    scored, trained = world.folder / "scored", world.folder / "trained"
    world.add_windows(3)
    world.start("cpu1", inject=[
        Injection("babylon_tasks.work.leases.LeaseKeeper.finished", "kill_parent", once=scored)
    ])  # fmt: skip
    world.start("gpu1", inject=[
        Injection("babylon_tasks.training.step.StepAttempt._commit", "kill_parent", at="after",
                  once=trained)
    ])  # fmt: skip
    world.start("beat")
    world.wait(scored.exists)
    world.start("cpu2")
    world.wait(trained.exists)
    world.start("gpu2")
    world.wait(world.settled)
    before = query(world.context, "SELECT * FROM rl.windows ORDER BY window_id")
    send(world, "babylon.score", times=5)
    send(world, "babylon.train", queue="gpu", times=5)
    send(world, "babylon.produce")
    world.wait(lambda: not waiting(world))
    assert query(world.context, "SELECT * FROM rl.windows ORDER BY window_id") == before
    trial(6, "killed after the commit")


def waiting(world: World) -> int:
    with redis.Redis.from_url(world.servers.redis.url) as client:
        return sum(int(client.llen(world.key(queue))) for queue in ("cpu", "gpu"))


@slow
@pytest.mark.parametrize(
    ("title", "harm"),
    [
        ("trainer killed in a step", {"do": "kill"}),
        ("trainer hung in a step", {"do": "hang"}),
        ("trainer out of memory", {"do": "raise", "error": "builtins.MemoryError"}),
    ],
)
def test_trainer_fails(trial: Trial, world: World, title: str, harm: dict[str, Any]) -> None:
    """The same worker tries again at once."""
    file = world.folder / "once"
    world.add_windows(4)
    start(world, "cpu1", "beat")
    world.start(
        "gpu1",
        inject=[Injection(STEP, once=file, within="workers.trainer", **harm)],
        env={"TRAINER_STALL_SECONDS": "2"},
    )
    world.wait(world.settled)
    assert attempts(world, "train", "error") > 0
    assert attempts(world, "train", "lost") == 0
    trial(7, title, [next_attempt(world, "train", struck_at(file))])


@slow
def test_a_window_that_kills_the_trainer_fails_alone(trial: Trial, world: World) -> None:
    windows = world.add_windows(6)
    poison = windows[2]
    world.expected[poison] = "failed"
    start(world, "cpu1", "beat")
    world.wait(lambda: set(states(world.context).values()) == {"scored"})
    world.start(
        "gpu1",
        inject=[Injection("msgspec.json.decode", "kill", text=poison, within="workers.trainer")],
    )
    world.wait(world.settled)
    row = one(world.context, "SELECT * FROM rl.windows WHERE window_id = %s", poison)
    assert row["attempts"] == 3
    assert "SIGKILL" in row["last_error"]
    trial(7, "trainer killed in a step")


@slow
def test_sigterm_in_a_step(trial: Trial, world: World) -> None:
    """It has 20 seconds to finish; then it is dropped, and the next worker need not wait."""
    world.add_windows(2)
    start(world, "cpu1", "beat")
    world.start("gpu1", inject=[slow_step(60)])
    world.wait(lambda: attempts(world, "train", None) > 0)
    world.start("gpu2")
    assert world.fleet.terminate("gpu1") == 0
    ended = one(
        world.context, "SELECT max(ended_at) AS at FROM rl.attempts WHERE outcome = 'given_back'"
    )
    world.wait(world.settled)
    trial(8, "SIGTERM in a step", [next_attempt(world, "train", ended["at"])])


def test_flushall(trial: Trial, world: World) -> None:
    """Everything in Redis is gone while work waits there."""
    world.add_windows(4)
    start(world, "gpu1", "beat")
    world.wait(lambda: waiting(world) > 1)
    world.servers.redis.flush()
    since = datetime.now(UTC)
    world.start("cpu1")
    world.wait(world.settled)
    trial(9, "FLUSHALL", [next_attempt(world, "score", since)])


@slow
def test_redis_away_for_a_minute(trial: Trial, world: World) -> None:
    """Also in the middle of a step, which goes on."""
    world.add_windows(2)
    start(world, "cpu1", "beat")
    world.start("gpu1", inject=[slow_step(10)])
    world.wait(lambda: attempts(world, "train", None) > 0)
    world.servers.redis.kill()
    world.add_windows(2)
    time.sleep(60)
    assert attempts(world, "train", "lost") == 0
    assert attempts(world, "train", "done") > 0
    since = datetime.now(UTC)
    world.servers.redis.start()
    world.wait(world.settled, 60)
    trial(10, "Redis killed, 60 s down", [next_attempt(world, "score", since)])


@slow
@pytest.mark.parametrize("how", ["frozen", "cut off", "frozen for 3 s"])
def test_sigterm_without_redis(trial: Trial, world: World, how: str) -> None:
    """Celery alone waits for Redis without end."""
    world.add_windows(1)
    alone = world.own_links()
    world.start("cpu1", links=alone)
    start(world, "cpu2", "gpu1", "beat")
    world.wait(world.settled)
    if how == "cut off":
        alone.cut()
    else:
        world.servers.redis.freeze()
    if how == "frozen for 3 s":
        threading.Timer(3, world.servers.redis.thaw).start()
    assert world.fleet.terminate("cpu1") == 0
    if how == "frozen":
        world.servers.redis.thaw()
    world.add_windows(1)
    world.wait(world.settled)
    trial(8, "SIGTERM without Redis")


@slow
@pytest.mark.timeout(240)
def test_redis_frozen(trial: Trial, world: World) -> None:
    """Not one log line tells; the canary does."""
    world.add_windows(2)
    start(world, "cpu1", "gpu1", "beat")
    world.wait(lambda: len(query(world.context, "SELECT * FROM rl.canaries")) == 2)
    world.servers.redis.freeze()
    world.add_windows(2)
    time.sleep(90)
    ages = query(world.context, "SELECT extract(epoch FROM now() - ran_at) AS age FROM rl.canaries")
    assert len(ages) == 2
    assert min(row["age"] for row in ages) > 60
    told = babylon(world, "doctor", "--json")
    wrong = {finding["check"] for finding in told if not finding["ok"]}
    assert {"Redis", "queues"} <= wrong
    since = datetime.now(UTC)
    world.servers.redis.thaw()
    world.wait(world.settled, 60)
    trial(11, "Redis frozen 90 s", [next_attempt(world, "score", since)])


def babylon(world: World, *command: str) -> Any:
    """Run a command with a direct way to the servers, and return the JSON that it prints."""
    env = {
        **world.fleet.env,
        "DATABASE_URL": world.settings.postgres(),
        "REDIS_URL": world.servers.redis.url,
    }
    script = str(Path(sys.executable).with_name("babylon"))
    done = subprocess.run(
        [script, *command], env=env, cwd=world.folder, capture_output=True, text=True, check=False
    )
    return json.loads(done.stdout)


@slow
def test_the_same_message_ten_times(trial: Trial, world: World) -> None:
    windows = world.add_windows(3)
    start(world, "cpu1", "cpu2", "gpu1", "gpu2")
    send(world, "babylon.enqueue", windows)
    world.wait(lambda: len(states(world.context)) == 3)
    send(world, "babylon.score", times=10)
    world.wait(lambda: set(states(world.context).values()) <= {"scored", "trained"})
    send(world, "babylon.train", queue="gpu", times=10)
    world.wait(lambda: set(states(world.context).values()) == {"trained"})
    send(world, "babylon.publish", times=10)
    world.wait(world.settled)
    assert attempts(world, "score", "done") == 3
    assert attempts(world, "train", "done") == 3
    trial(12, "the same message ten times")


@pytest.mark.parametrize(
    "call",
    [
        pytest.param("babylon_tasks.store.transitions.mark_scored", marks=slow),
        "babylon_tasks.store.steps.commit",
    ],
)
def test_postgres_restarts_in_a_transaction(trial: Trial, world: World, call: str) -> None:
    file = world.folder / "once"
    world.add_windows(3)
    held = [Injection(call, "sleep", at="after", seconds=3, once=file)]
    start(world, "cpu1", "gpu1", inject=held)
    world.start("beat")
    world.wait(file.exists)
    world.servers.postgres.kill()
    since = datetime.now(UTC)
    world.servers.postgres.start()
    world.wait(world.settled, 60)
    outcomes = query(world.context, "SELECT DISTINCT outcome FROM rl.attempts")
    assert {row["outcome"] for row in outcomes} <= {"done", "given_back", "lost"}
    trial(13, "Postgres killed in a transaction", [written_after(world, call, since)])


def written_after(world: World, call: str, since: datetime) -> float:
    """Return the seconds until what was interrupted was written, by the same attempt or another."""
    scored = "scored" in call
    text = f"SELECT min({'scored' if scored else 'committed'}_at) AS at FROM rl."
    text += "windows" if scored else "steps"
    return float((one(world.context, text)["at"] - since).total_seconds())


def taken_over(world: World, alone: Links, how: str) -> datetime:
    """Take gpu1 away past its lease, and back when gpu2 has done its work; since when it was away.

    It has noticed that it lost its lease then.
    """
    if how == "suspended":
        world.fleet.freeze("gpu1")
    else:
        alone.cut()
    since = datetime.now(UTC)
    world.start("gpu2")
    world.wait(world.settled)
    if how == "suspended":
        world.fleet.thaw("gpu1")
    else:
        alone.restore()
    world.wait(lambda: "LeaseLost" in world.fleet.logs() or "ran out" in world.fleet.logs())
    return since


@pytest.mark.parametrize("how", ["cut off", pytest.param("suspended", marks=slow)])
def test_a_gpu_node_away_past_its_lease(trial: Trial, world: World, how: str) -> None:
    """It comes back with a step that another one has made: its commit and its files are refused."""
    world.add_windows(2)
    alone = world.own_links()
    start(world, "cpu1", "beat")
    world.start("gpu1", links=alone, inject=[slow_step(6)])
    world.wait(lambda: attempts(world, "train", None) > 0)
    since = taken_over(world, alone, how)
    world.wait(lambda: not world.fleet.trainers("gpu1"))
    steps_made = query(world.context, "SELECT checkpoint FROM rl.steps")
    folders = {str(f) for f in Path(world.settings.checkpoint_store).glob("*/*")}
    assert folders == {row["checkpoint"] for row in steps_made}
    trial(14, "GPU node away past its lease", [next_attempt(world, "train", since)])


OTHERWISE = Behaviour("otherwise", scores=(lambda s: [x | {"score": 1 - x["score"]} for x in s],))


@slow
@pytest.mark.parametrize("how", ["cut off", "suspended"])
def test_the_judges_worker_away_past_its_lease(trial: Trial, world: World, how: str) -> None:
    """Its questions are in flight; it comes back with their answers, and writes no score."""
    wanted = judging.add_windows(world, 3)
    links = {"cpu1": world.own_links(), "cpu2": world.own_links()}
    answered_after = 8.0
    late = OTHERWISE + judge_server.hang(answered_after)
    with JudgeServer(script=[late] * len(wanted)) as judge:
        with judging.nobody_judges(world, {"cpu1": 1, "cpu2": 1}):
            for name, own in links.items():
                world.start(name, links=own, env=judging.asking(judge))
            start(world, "gpu1", "beat")
        world.wait(lambda: len(judge.requests) == len(wanted))
        away = judging.who_judges(world, list(links))
        assert away is not None
        if how == "suspended":
            world.fleet.freeze(away)
        else:
            links[away].postgres.cut()
        since = datetime.now(UTC)
        world.wait(world.settled)
        before = everything_scored(world)
        asked_at = judge.requests[0].at_seconds
        world.wait(lambda: time.monotonic() > asked_at + answered_after + 1)
        if how == "suspended":
            world.fleet.thaw(away)
        else:
            links[away].postgres.restore()
        log = world.folder / f"{away}.log"
        world.wait(lambda: "ran out or went" in log.read_text() or "by somebody" in log.read_text())
        assert judging.questions(judge, wanted) == dict.fromkeys(wanted, 2)
    assert everything_scored(world) == before
    assert stored(world.context) == {
        id_: s for scores in wanted.values() for id_, s in scores.items()
    }
    assert attempts(world, "score", "lost") == attempts(world, "score", "done") == len(wanted)
    found = lost_and_found(world, since)
    assert min(found) < world.settings.lease_seconds + world.settings.sweep_seconds + 2
    trial(14, "the judge's worker away past its lease", found)


def everything_scored(world: World) -> list[dict[str, Any]]:
    return [
        *query(world.context, "SELECT * FROM rl.scores ORDER BY trajectory_id, scorer"),
        *query(world.context, "SELECT * FROM rl.windows ORDER BY window_id"),
        *query(world.context, "SELECT * FROM reward_judgments ORDER BY 1"),
    ]


@slow
@pytest.mark.parametrize("hours", [2, -2])
def test_clocks_two_hours_off(trial: Trial, world: World, hours: int) -> None:
    """Of every role."""
    world.add_windows(3)
    off = {"BABYLON_CLOCK_HOURS": str(hours), "PYTHONPATH": f"{FOLDER}:{ROOT}"}
    start(world, "cpu1", "gpu1", "beat", env=off)
    world.wait(world.settled)
    world.add_windows(1)
    world.wait(world.settled)
    trial(15, "clocks two hours off")


@slow
@pytest.mark.parametrize("harm", ["raise", "kill"])
def test_poison(trial: Trial, world: World, harm: Any) -> None:
    """Bad JSON is set aside; a row that raises or crashes the process fails its window, alone."""
    windows = world.add_windows(5)
    poison = windows[1]
    world.expected[poison] = "failed"
    add_trajectory(world.context, windows[0], "agent-bad", stepsJson='[{"llmCalls": [')
    add_trajectory(world.context, poison, "agent-poison", stepsJson=steps(0, response="POISON"))
    world.start(
        "cpu1", inject=[Injection("babylon_tasks.scoring.reading.parse_steps", harm, text="POISON")]
    )
    start(world, "gpu1", "beat")
    world.wait(world.settled, 60)
    row = one(world.context, "SELECT * FROM rl.windows WHERE window_id = %s", poison)
    assert row["attempts"] == 3
    assert row["last_error"]
    assert one(world.context, "SELECT reason FROM rl.quarantine")["reason"] == "bad_json"
    trial(16, "poison rows")


@slow
def test_a_trace_of_100_mb(trial: Trial, world: World) -> None:
    windows = world.add_windows(2)
    huge = add_trajectory(world.context, windows[0], "agent-huge", stepsJson="[]")
    query(
        world.context,
        """UPDATE trajectories SET "stepsJson" = repeat('x', 100000000)
            WHERE "trajectoryId" = %s RETURNING 1""",
        huge,
    )
    start(world, "cpu1", "gpu1", "beat")
    world.wait(world.settled)
    assert one(world.context, "SELECT reason FROM rl.quarantine")["reason"] == "too_large"
    peaks = [peak_megabytes(pid) for pid in world.fleet.children("cpu1")]
    assert max(peaks) < 200
    trial(17, "a trace of 100 MB")


def peak_megabytes(pid: int) -> float:
    """Return the peak memory of the process."""
    status = Path(f"/proc/{pid}/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


@slow
def test_three_beats(trial: Trial, world: World) -> None:
    world.start("cpu1")
    start(world, "beat", "beat2", "beat3")
    windows = world.add_windows(3)
    start(world, "cpu2", "gpu1")
    world.wait(world.settled)
    assert len(query(world.context, "SELECT * FROM rl.windows")) == len(windows)
    assert attempts(world, "score", "done") == len(windows)
    trial(18, "three beats")


@slow
def test_disk_full_at_the_checkpoint(trial: Trial, world: World) -> None:
    """The step fails cleanly and nobody is blamed; when there is room again, it goes on."""
    world.add_windows(2)
    start(world, "cpu1", "beat")
    full = Injection(
        "babylon_tasks.checkpoints.files._copy",
        "raise",
        error="builtins.OSError",
        arguments=(28, "No space left on device"),
        once=world.folder / "once",
    )
    world.start("gpu1", inject=[full])
    world.wait(world.settled)
    assert "No space left on device" in world.fleet.logs()
    assert attempts(world, "train", "given_back") > 0
    assert query(world.context, "SELECT * FROM rl.windows WHERE attempts > 0") == []
    trial(19, "disk full at the checkpoint")


@slow
def test_a_node_that_cannot_read_the_store(trial: Trial, world: World) -> None:
    """It gives the claim back and rests, so that the other node trains."""
    world.add_windows(2)
    start(world, "cpu1", "gpu1", "beat")
    world.wait(world.settled)
    assert world.fleet.terminate("gpu1") == 0
    unreadable = Injection(
        "babylon_tasks.checkpoints.files.open_local",
        "raise",
        error="babylon_tasks.errors.CheckpointUnreadable",
        arguments=("cannot read the checkpoint",),
    )
    world.start("gpu2", inject=[unreadable], env={"RETRY_SECONDS": "5"})
    world.add_windows(2)
    world.wait(lambda: attempts(world, "train", "given_back") > 0)
    world.start("gpu3")
    world.wait(world.settled)
    trial(20, "a node without the store")


LIMITED, HANGS, NONSENSE = judge_server.rate_limited(2), judge_server.hang(), judge_server.refusal


@slow
@pytest.mark.parametrize(
    ("title", "behaviour", "tries", "round_seconds"),
    [
        ("judge answers 429: its windows wait", LIMITED, 4, 6),
        ("judge hangs: its windows wait", HANGS, 4, 11),
        ("judge answers nonsense: its windows wait", NONSENSE, 3, 1),
    ],
)
def test_windows_wait_for_the_judge(
    trial: Trial, world: World, title: str, behaviour: Behaviour, tries: int, round_seconds: float
) -> None:
    """It is asked so often and no more, others are scored; once it is well, no hand is needed."""
    wanted = judging.add_windows(world, 3)
    with JudgeServer(default=behaviour) as judge:
        start_two_processes(world, judge, MAX_ATTEMPTS="10")
        world.wait(lambda: bool(judge.requests))
        nothing_starves(world)
        bad_seconds = time.monotonic() - judge.requests[0].at_seconds
        rounds = 1 + int(bad_seconds / round_seconds)
        assert max(judging.questions(judge, wanted).values()) <= tries * rounds
        assert stored(world.context) == {}
        judge.default = judge_server.good
        since = datetime.now(UTC)
        world.wait(world.settled, 60)
    assert stored(world.context) == {
        id_: s for scores in wanted.values() for id_, s in scores.items()
    }
    trial(21, title, [last_scored(world, since)])


@slow
@pytest.mark.parametrize(
    ("title", "behaviour", "tries"),
    [
        ("judge answers 429: the heuristic scores", LIMITED, 4),
        ("judge hangs: the heuristic scores", HANGS, 4),
        ("judge answers nonsense: the heuristic scores", NONSENSE, 3),
    ],
)
def test_the_heuristic_scores_while_the_judge_is_away(
    trial: Trial, world: World, title: str, behaviour: Behaviour, tries: int
) -> None:
    wanted = judging.add_windows(world, 3)
    with JudgeServer(default=behaviour) as judge:
        start_two_processes(world, judge, JUDGE_FALLBACK="heuristic")
        world.wait(lambda: bool(judge.requests))
        since = datetime.now(UTC)
        nothing_starves(world)
        world.wait(world.settled)
        seconds = last_scored(world, since)
        assert max(judging.questions(judge, wanted).values()) <= tries
        assert stored(world.context) == {}
        assert len(stored(world.context, "heuristic")) == 12
        judge.default = judge_server.good
        world.add_windows(1)
        world.wait(world.settled)
        assert len(stored(world.context)) == 3
    trial(21, title, [seconds])


@slow
def test_a_judge_that_answers_nonsense_for_long(trial: Trial, world: World) -> None:
    """As many attempts as at anything else; then a window fails, and says why."""
    wanted = judging.add_windows(world, 3)
    world.expected |= dict.fromkeys(wanted, "failed")
    with JudgeServer(default=NONSENSE) as judge:
        start_two_processes(world, judge)
        world.wait(world.settled, 60)
        assert set(judging.questions(judge, wanted).values()) == {9}
        for row in query(world.context, "SELECT * FROM rl.windows"):
            assert row["attempts"] == 3
            assert row["last_error"].startswith("JudgeFault: no usable answer from openai/judge")
        judge.default = judge_server.good
        world.expected |= dict.fromkeys(pipeline.retry(world.context, None), "trained")
        world.wait(world.settled)
    trial(21, "judge answers nonsense for long: its windows fail, and are retried by hand")


def start_two_processes(world: World, judge: JudgeServer, **settings: str) -> None:
    """Start one CPU worker with two pool processes, both of which could ask the judge."""
    env = judging.asking(judge, JUDGE_TIMEOUT_SECONDS="1", **settings)
    with judging.nobody_judges(world, {"cpu1": 2}):
        world.start("cpu1", "-c", "2", env=env)
        start(world, "gpu1", "beat")


def nothing_starves(world: World, seconds: float = 10) -> None:
    """Require that, without a judge, a window that needs none is scored and the canary answers."""
    bound = 2 * world.settings.sweep_seconds + 2
    (window,) = world.add_windows(1)
    pipeline.enqueue(world.context, window, scoring="heuristic")
    world.wait(lambda: states(world.context)[window] in ("scored", "trained"), bound)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        row = one(
            world.context,
            """SELECT extract(epoch FROM clock_timestamp() - ran_at) AS age FROM rl.canaries
                WHERE queue = 'cpu'""",
        )
        assert row["age"] < bound
        time.sleep(0.1)


def last_scored(world: World, since: datetime) -> float:
    row = one(world.context, "SELECT max(scored_at) AS at FROM rl.windows")
    return float((row["at"] - since).total_seconds())


@slow
def test_hostile_messages(trial: Trial, world: World) -> None:
    world.add_windows(1)
    start(world, "cpu1", "gpu1", "beat")
    proof = world.folder / "executed"
    ours = {"global_keyprefix": world.key("")}
    with kombu.Connection(world.servers.redis.url, transport_options=ours) as connection:
        producer = connection.Producer()
        for name, args in [
            ("babylon.nonsense", []),
            ("babylon.score", ["not a list", 2, 3]),
            ("babylon.enqueue", [["2025-99-99T00:00", "'; DROP TABLE trajectories; --"]]),
        ]:
            send(world, name, *args)
        producer.publish(
            pickle.dumps((os.system, f"touch {proof}")),
            routing_key="cpu",
            content_type="application/x-python-serialize",
            content_encoding="binary",
        )
    world.wait(world.settled)
    assert not proof.exists()
    trial(22, "hostile messages")


@slow
def test_a_reset_that_is_killed(trial: Trial, world: World) -> None:
    """Inside its transaction, and after it while it holds the lease; a fork goes on meanwhile."""
    start(world, "cpu1", "gpu1", "beat")
    for _ in range(3):
        world.add_windows(1)
        world.wait(world.settled)
    with closing(Operator(world)) as operator:
        operator.fork("babylon-agent@2", "fork")
        given_up = operator.reset(1)
        since = datetime.now(UTC)
        world.add_windows(1)
        operator.retry(given_up)
    assert given_up == [2, 3]
    world.wait(world.settled)
    trial(31, "reset of a lineage killed", [next_attempt(world, "train", since, "babylon-agent")])
