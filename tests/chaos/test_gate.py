"""Faults of the gate and of the live experiment: no worse version serves, whoever dies when.

A bad step answers nonsense (`inject/opinions.py`), and so does every step that continues it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest
from psycopg import sql

from babylon_tasks import pipeline
from babylon_tasks.records.exams import ExamState
from tests.chaos.examined import Examined, examined, trainer_of
from tests.chaos.injection import FOLDER, Injection
from tests.chaos.servers import Servers
from tests.chaos.test_faults import start, struck_at, taken_over
from tests.chaos.test_moments import OUTAGES, away
from tests.chaos.verdict import REJECTED
from tests.chaos.world import ROOT, World
from tests.rows import one, query, steps

Trial = Callable[..., None]
slow = pytest.mark.slow

EXAMINER = "babylon_tasks.evaluation.exam.Examiner"
GENERATE = "workers.trainer.noop.NoopTrainer.generate"


@pytest.fixture
def world(servers: Servers, tmp_path: Path) -> Iterator[World]:
    """Make an empty world with a gate, without a role."""
    folder = tmp_path / "world"
    folder.mkdir()
    with examined(servers, folder) as made:
        yield made


@pytest.fixture
def gate(world: World) -> Iterator[Examined]:
    with trainer_of(world) as trainer:
        yield Examined(world, trainer)


def verdict(gate: Examined, step: int) -> str | None:
    """Return the state of a step's exam; None: it was not begun."""
    exam = gate.exams().get(step)
    return str(exam.state) if exam else None


def decided_after(gate: Examined, step: int, since: datetime) -> float:
    """Return the seconds until a step's exam was decided."""
    decided_at = gate.exams()[step].decided_at
    assert decided_at
    return (decided_at - since).total_seconds()


def promoted_after(gate: Examined, since: datetime) -> float:
    row = one(gate.world.context, "SELECT max(at) AS at FROM rl.promotions")
    return float((row["at"] - since).total_seconds())


# --- in an exam -------------------------------------------------------------------------------

IN_AN_EXAM = [
    ("before it asks", f"{EXAMINER}.compare", "before", None),
    ("between the two versions", f"{EXAMINER}._likelihoods", "before", "is_candidate"),
    ("with its verdict, before the row", "babylon_tasks.evaluation.stage.judge", "after", None),
    ("between row and head", "babylon_tasks.store.exams.decide", "after", None),
    ("before its COMMIT", "babylon_tasks.store.heads.move", "after", None),
    ("after its COMMIT", "babylon_tasks.evaluation.stage._Exam._decide", "after", None),
]


@slow
@pytest.mark.parametrize(("when", "call", "at", "text"), IN_AN_EXAM)
def test_killed_in_an_exam(
    trial: Trial, gate: Examined, when: str, call: str, at: Any, text: str | None
) -> None:
    """SIGKILL of the whole worker; another one decides, and the next step continues a good one."""
    world, file = gate.world, gate.world.folder / "once"
    gate.step(bad=True)
    gate.scored()
    kill = Injection(call, "kill_parent", at=at, text=text, once=file)
    world.start("gpu1", inject=[kill])
    start(world, "cpu1", "beat")
    world.wait(file.exists)
    world.start("gpu2")
    world.wait(world.settled)
    exam = gate.exams()[1]
    assert (exam.state, exam.attempts) == (ExamState.FAILED, 1 if when == "after its COMMIT" else 2)
    assert gate.parents() == {1: 0, 2: 0}
    gate.window()
    world.wait(lambda: gate.position() == (3, 2))
    world.wait(world.settled)
    assert gate.promotions() == [("automatic", 2)]
    since = struck_at(file)
    trial(33, "killed in an exam", [] if exam.attempts == 1 else [decided_after(gate, 1, since)])


@slow
@pytest.mark.parametrize("harm", ["kill", "hang"])
def test_the_examiners_trainer_fails(trial: Trial, gate: Examined, harm: Any) -> None:
    """The same worker examines again."""
    world, file = gate.world, gate.world.folder / "once"
    gate.step(bad=True)
    gate.scored()
    strikes = Injection(GENERATE, harm, once=file, within="workers.trainer")
    world.start("gpu1", inject=[strikes], env={"TRAINER_STALL_SECONDS": "2"})
    start(world, "cpu1", "beat")
    world.wait(file.exists)
    world.wait(world.settled)
    assert (gate.exams()[1].state, gate.exams()[1].attempts) == (ExamState.FAILED, 2)
    trial(33, "the trainer dies in an exam", [decided_after(gate, 1, struck_at(file))])


@slow
def test_sigterm_in_an_exam(trial: Trial, gate: Examined) -> None:
    """It is dropped after 20 seconds, and counts for nothing: there is one attempt."""
    world = gate.world
    gate.step(bad=True)
    gate.scored()
    start(world, "cpu1", "beat")
    held = Injection(GENERATE, "sleep", seconds=60, within="workers.trainer")
    world.start("gpu1", inject=[held], env={"MAX_ATTEMPTS": "1"})
    world.wait(lambda: bool(query(world.context, "SELECT FROM rl.exams WHERE attempts = 1")))
    assert world.fleet.terminate("gpu1") == 0
    assert gate.exams()[1].attempts == 0
    since = datetime.now(UTC)
    world.start("gpu2", env={"MAX_ATTEMPTS": "1"})
    world.wait(world.settled)
    exam = gate.exams()[1]
    assert exam.attempts == 1
    assert (exam.reason or "").startswith("form fell")
    trial(8, "SIGTERM in an exam", [decided_after(gate, 1, since)])


@slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize("how", ["it refuses", "it restarts", "its network is cut"])
@pytest.mark.parametrize("twins", [1, 2])
def test_postgres_away_in_an_exam(trial: Trial, gate: Examined, how: str, twins: int) -> None:
    """Three times, between question and verdict; with one attempt, so that none may count."""
    world, waited = gate.world, list[float]()
    late = Injection("babylon_tasks.evaluation.stage.judge", "sleep", seconds=1.5)
    gate.step(bad=True)
    start(world, "cpu1", "beat", env={"MAX_ATTEMPTS": "1"})
    for number in range(twins):
        world.start(f"gpu{number + 1}", inject=[late], env={"MAX_ATTEMPTS": "1"})
    for step, seconds in enumerate(OUTAGES, 1):
        gate.window(bad=step == 1)
        world.wait(lambda step=step: verdict(gate, step) == "open")
        time.sleep(0.7)
        away(world, how, seconds)
        since = datetime.now(UTC)
        world.wait(lambda step=step: verdict(gate, step) != "open")
        waited.append(decided_after(gate, step, since))
        world.wait(world.settled)
    assert [verdict(gate, step) for step in (1, 2, 3)] == ["failed", "failed", "passed"]
    assert not any("begun" in (exam.reason or "") for exam in gate.exams().values())
    trial(34, "Postgres away 4 to 20 s in an exam", waited)


@slow
@pytest.mark.parametrize("call", ["exams.decide", "heads.move"])
def test_postgres_restarts_in_a_verdicts_transaction(
    trial: Trial, gate: Examined, call: str
) -> None:
    """It is written again by the same worker, or examined again by another."""
    world, file = gate.world, gate.world.folder / "once"
    gate.step(bad=True)
    gate.scored()
    held = Injection(f"babylon_tasks.store.{call}", "sleep", at="after", seconds=3, once=file)
    world.start("gpu1", inject=[held])
    start(world, "cpu1", "beat")
    world.wait(file.exists)
    world.servers.postgres.kill()
    since = datetime.now(UTC)
    world.servers.postgres.start()
    world.wait(world.settled, 60)
    assert gate.exams()[1].state == ExamState.FAILED
    assert len(query(world.context, "SELECT FROM rl.resets")) == 1
    trial(34, "Postgres killed in a verdict's transaction", [decided_after(gate, 1, since)])


@slow
@pytest.mark.parametrize("how", ["cut off", "suspended"])
def test_an_examiner_away_past_its_lease(trial: Trial, gate: Examined, how: str) -> None:
    """It comes back with a verdict on a step that another one has examined: it is refused."""
    world, alone = gate.world, gate.world.own_links()
    gate.step(bad=True)
    gate.scored()
    late = Injection("babylon_tasks.evaluation.stage.judge", "sleep", seconds=4)
    world.start("gpu1", links=alone, inject=[late])
    start(world, "cpu1", "beat")
    world.wait(lambda: 1 in gate.exams())
    time.sleep(1)
    since = taken_over(world, alone, how)
    assert len(query(world.context, "SELECT FROM rl.resets")) == 1
    gate.window()
    world.wait(lambda: gate.position() == (3, 2))
    trial(35, "GPU node away past its lease in an exam", [decided_after(gate, 1, since)])


@slow
def test_redis_away_in_an_exam(trial: Trial, gate: Examined) -> None:
    """The exam goes on; what it lets serve is found by the sweep."""
    world, file = gate.world, gate.world.folder / "once"
    gate.step()
    gate.scored()
    late = Injection("babylon_tasks.evaluation.stage.judge", "sleep", seconds=3, once=file)
    world.start("gpu1", inject=[late], env={"LEASE_SECONDS": "10"})
    start(world, "cpu1", "beat")
    world.wait(file.exists)
    world.servers.redis.kill()
    world.wait(lambda: verdict(gate, 1) == "passed")
    time.sleep(4)  # two sweeps
    assert gate.position()[1] == 0
    since = datetime.now(UTC)
    world.servers.redis.start()
    world.wait(world.settled, 60)
    assert gate.position() == (2, 1)
    trial(36, "Redis away in an exam", [promoted_after(gate, since)])


# --- in a promotion ---------------------------------------------------------------------------


def publish_elsewhere(gate: Examined, *inject: Injection) -> int:
    """Publish in a process of its own, and return its exit code."""
    code = (
        "from babylon_tasks import pipeline\n"
        "from babylon_tasks.settings import load_settings\n"
        "from babylon_tasks.work.context import Context\n"
        "pipeline.publish(Context.of_deployment(load_settings(), 'other:1'))"
    )
    return gate.world.run("publisher", "-c", code, inject=inject)


def test_killed_as_it_publishes(trial: Trial, gate: Examined) -> None:
    gate.step()
    gate.scored()
    assert gate.train()
    for at in ("before", "after"):
        kill = Injection("babylon_tasks.store.promotions.publish", "kill", at=at)  # type: ignore[arg-type]
        assert publish_elsewhere(gate, kill) == -9
        assert gate.position() == (2, 0)
    assert pipeline.publish(gate.world.context) == ["v1.0.0"]
    assert gate.promotions() == [("automatic", 1)]
    trial(37, "publisher killed in a promotion by the exam")


@slow
@pytest.mark.parametrize(
    ("call", "at"),
    [
        ("babylon_tasks.store.promotions.publish", "before"),
        ("babylon_tasks.store.promotions.publish", "after"),
        ("babylon_tasks.serving.promote.publish", "after"),
    ],
)
def test_a_publisher_is_killed(trial: Trial, gate: Examined, call: str, at: Any) -> None:
    """The whole worker, in the transaction or after it."""
    world, file = gate.world, gate.world.folder / "once"
    gate.step()
    gate.scored()
    assert gate.train()
    world.start("cpu1", inject=[Injection(call, "kill_parent", at=at, once=file)])
    world.start("beat")
    world.wait(file.exists)
    world.start("cpu2")
    world.wait(world.settled)
    assert gate.position() == (2, 1)
    assert gate.promotions() == [("automatic", 1)]
    since = struck_at(file)
    trial(37, "publisher killed in a promotion by the exam", [promoted_after(gate, since)])


# --- in an experiment -------------------------------------------------------------------------


def ended(gate: Examined) -> bool:
    """Tell whether the first experiment has ended; then another one may begin."""
    return gate.experiments()[-1][0].ended_at is not None


def decisions(gate: Examined) -> list[str]:
    """Return what the looks of the first experiment decided."""
    return [look.decision for look in gate.experiments()[-1][1]]


@pytest.mark.parametrize("better", [True, False])
def test_killed_in_a_look(trial: Trial, gate: Examined, better: bool) -> None:
    """Nothing of it is written; the next one decides once."""
    gate.experiment()
    for number in range(2):
        gate.play(number, better)
    assert gate.train()
    for call in ("experiments.write_look", "experiments.end"):
        kill = Injection(f"babylon_tasks.store.{call}", "kill", at="after")
        assert publish_elsewhere(gate, kill) == -9
        assert (decisions(gate), gate.position()[1]) == ([], 0)
    pipeline.publish(gate.world.context)
    assert decisions(gate)[-1] == ("promoted" if better else "rolled back")
    assert gate.position()[1] == (1 if better else 0)
    trial(38, "publisher killed in a look")


@slow
@pytest.mark.parametrize(
    ("call", "at"),
    [
        ("babylon_tasks.store.experiments.write_look", "after"),
        ("babylon_tasks.store.experiments.end", "after"),
        ("babylon_tasks.store.promotions.publish", "after"),
        ("babylon_tasks.serving.promote.publish", "after"),
    ],
)
@pytest.mark.parametrize("better", [True, False])
def test_a_publisher_is_killed_in_an_experiment(
    trial: Trial, gate: Examined, call: str, at: Any, better: bool
) -> None:
    """The whole worker; one look decides, and what is rolled back is left by the head."""
    if not better and call.endswith("promotions.publish"):
        pytest.skip("nothing is promoted")
    world, file = gate.world, gate.world.folder / "once"
    gate.experiment()
    for number in range(2):
        gate.play(number, better)
    world.start("cpu1", inject=[Injection(call, "kill_parent", at=at, once=file)])
    start(world, "gpu1", "beat")
    world.wait(file.exists)
    world.start("cpu2")
    world.wait(lambda: ended(gate) and world.settled())
    found = gate.experiments()[-1][0]
    assert str(found.state) == ("promoted" if better else "rolled_back")
    if not better:
        leave_what_was_rolled_back(gate)
    assert gate.position()[1] == (1 if better else 0)
    since = struck_at(file)
    recovered = (found.ended_at - since).total_seconds() if found.ended_at else 0.0
    trial(38, "publisher killed in an experiment", [recovered] if recovered > 0 else [])


def set_back(world: World, seconds: int) -> None:
    """Set the database's clock back for all new connections."""
    name = urlsplit(world.settings.postgres()).path[1:]
    with psycopg.connect(world.servers.postgres.admin_url, autocommit=True) as connection:
        connection.execute(
            sql.SQL("ALTER DATABASE {} SET rl.clock_offset = {}").format(
                sql.Identifier(name), sql.Literal(f"-{seconds} seconds")
            )
        )
    world.context.database.close()


def leave_what_was_rolled_back(gate: Examined) -> None:
    """Let another window train, before which the head leaves the step and all that continues it."""
    world = gate.world
    last = gate.play(9, None)
    world.wait(lambda: bool(query(
        world.context,
        "SELECT FROM rl.windows WHERE window_id = %s AND state = 'trained'", last
    )))  # fmt: skip
    world.wait(world.settled)
    left = query(world.context, "SELECT * FROM rl.steps WHERE given_up_at IS NOT NULL")
    assert 1 in {row["step"] for row in left}
    for row in left:
        world.expected |= dict.fromkeys(row["window_ids"], REJECTED)


@slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize("how", ["it refuses", "it restarts", "its network is cut"])
def test_postgres_away_in_a_look(trial: Trial, gate: Examined, how: str) -> None:
    """Its row is written, and nothing committed: all of the look is done again."""
    world, waited = gate.world, list[float]()
    gate.experiment()
    files = [world.folder / f"look {number}" for number in range(2)]
    late = [
        Injection("babylon_tasks.store.experiments.write_look", "sleep", at="after", seconds=2,
                  text=gate.window_of(number), once=file)
        for number, file in enumerate(files)
    ]  # fmt: skip
    start(world, "cpu1", "cpu2", inject=late)
    start(world, "gpu1", "beat")
    for number, seconds in enumerate((4.0, 20.0)):
        gate.play(number, better=True)
        world.wait(files[number].exists)
        away(world, how, seconds)
        since = time.monotonic()
        world.wait(lambda number=number: len(decisions(gate)) > number)
        waited.append(time.monotonic() - since)
    world.wait(lambda: ended(gate) and world.settled())
    assert decisions(gate) == ["more agents", "promoted"]
    assert gate.promotions() == [("automatic", 1)]
    trial(34, "Postgres away 4 to 20 s in a look", waited)


@slow
@pytest.mark.timeout(240)
def test_two_of_each(trial: Trial, gate: Examined) -> None:
    """Two examiners and three publishers, all of them slow, and bad steps among good ones."""
    world = gate.world
    slow_exam = Injection(f"{EXAMINER}.compare", "sleep", seconds=1)
    calls = ("experiments.open_one", "experiments.write_look", "promotions.publish")
    slow_rows = [
        Injection(f"babylon_tasks.store.{call}", "sleep", at="after", seconds=1) for call in calls
    ]
    start(world, "cpu1", "cpu2", "cpu3", inject=slow_rows)
    start(world, "gpu1", "gpu2", inject=[slow_exam])
    world.start("beat")
    for number in range(8):
        gate.window(bad=number in (1, 4))
        world.wait(lambda number=number: gate.position()[0] == number + 1)
    gate.window()
    world.wait(lambda: len(gate.exams()) == 8)
    world.wait(world.settled)
    failed = [step for step, exam in sorted(gate.exams().items()) if exam.state == "failed"]
    assert failed == [2, 5]
    promoted = gate.promotions()
    assert len(set(promoted)) == len(promoted)
    assert gate.position() == (9, 8)
    trial(39, "two examiners, three publishers")


@slow
def test_two_candidates_at_once(trial: Trial, gate: Examined) -> None:
    """While one step is tried the next one passes: it waits until the first is decided."""
    world = gate.world
    gate.experiment()
    late = Injection("babylon_tasks.store.experiments.end", "sleep", at="after", seconds=2)
    start(world, "cpu1", "cpu2", inject=[late])
    start(world, "gpu1", "gpu2", "beat")
    for number in range(2):
        gate.play(number, better=None)
    world.wait(world.settled)
    assert max(gate.exams()) >= 2
    assert [found.step for found, _ in gate.experiments()] == [1]
    for number in range(2, 5):
        gate.play(number, better=True)
    world.wait(lambda: bool(gate.promotions()))
    world.wait(world.settled)
    assert gate.promotions()[0] == ("automatic", 1)
    steps_tried = [found.step for found, _ in gate.experiments()]
    assert steps_tried == sorted(set(steps_tried), reverse=True)
    trial(39, "two candidates at once")


@slow
def test_the_endpoint_away_in_an_experiment(trial: Trial, gate: Examined) -> None:
    """Nobody is answered: the experiment ends undecided, and nothing else changes."""
    world = gate.world
    gate.experiment()
    start(world, "cpu1", env={"EXPERIMENT_WINDOWS": "3"})
    start(world, "gpu1", "beat")
    for number in range(3):
        gate.play(number, better=None)
        world.wait(lambda number=number: len(decisions(gate)) > number)
    world.wait(lambda: str(gate.experiments()[-1][0].state) == "undecided")
    assert gate.experiments()[-1][0].step == 1
    assert gate.position()[1] == 0
    assert gate.promotions() == []
    assert query(world.context, "SELECT FROM rl.resets") == []
    trial(40, "the endpoint away in an experiment")


# --- files, clocks, rewritten windows ---------------------------------------------------------


@slow
@pytest.mark.parametrize("mend", ["the files come back", "a person rolls back"])
def test_the_files_of_the_served_version_are_gone(trial: Trial, gate: Examined, mend: str) -> None:
    """Nothing trains and nothing else serves until they are back, or an older version serves."""
    world = gate.world
    for _ in range(3):
        gate.step()
    assert gate.position() == (3, 2)
    served = one(world.context, "SELECT checkpoint FROM rl.steps WHERE step = 2")["checkpoint"]
    files, elsewhere = Path(served), world.folder / "elsewhere"
    files.rename(elsewhere)
    start(world, "cpu1", "gpu1", "beat")
    gate.window()
    log = world.folder / "gpu1.log"
    world.wait(lambda: f"cannot read the checkpoint {files}" in log.read_text())
    time.sleep(5)  # it is tried again, and again
    assert gate.position() == (3, 2)
    assert verdict(gate, 3) == "open"
    assert gate.exams()[3].attempts <= 1
    assert query(world.context, "SELECT FROM rl.windows WHERE attempts > 0") == []
    assert "Traceback" not in log.read_text()
    since = datetime.now(UTC)
    if mend == "the files come back":
        elsewhere.rename(files)
        world.wait(lambda: gate.position() == (4, 3))
    else:
        told = ("models", "rollback", "--why", "its files are gone")
        assert world.run("operator", "babylon", *told) == 0
        world.wait(lambda: gate.position() == (4, 1))
    assert gate.exams()[3].served_step == (2 if mend == "the files come back" else 1)
    waited = decided_after(gate, 3, since)
    if not files.exists():
        elsewhere.rename(files)  # the head continues it, so its files are judged
    trial(41, f"the served version's files are gone: {mend}", [waited])


@slow
@pytest.mark.parametrize("hours", [5, -5])
def test_a_workers_clock_is_off_in_an_exam(trial: Trial, gate: Examined, hours: int) -> None:
    """Of every role; an experiment begins and decides by the database's."""
    world = gate.world
    gate.experiment()
    off = {"BABYLON_CLOCK_HOURS": str(hours), "PYTHONPATH": f"{FOLDER}:{ROOT}"}
    start(world, "cpu1", "gpu1", "beat", env=off)
    for number in range(2):
        gate.play(number, better=True)
    world.wait(lambda: bool(gate.promotions()) and world.settled())
    assert gate.promotions()[0] == ("automatic", 1)
    gate.play(2, better=None)
    world.wait(lambda: len(gate.exams()) >= 2)
    world.wait(world.settled)
    ages = query(
        world.context, "SELECT abs(extract(epoch FROM now() - decided_at)) AS s FROM rl.exams"
    )
    assert max(row["s"] for row in ages) < 300
    trial(15, "clocks five hours off in exams and an experiment")


@slow
def test_the_databases_clock_goes_back_an_hour_in_an_exam(trial: Trial, gate: Examined) -> None:
    """The examiner died, and its lease was to end in an hour; failures are counted all the same."""
    world, file = gate.world, gate.world.folder / "once"
    gate.step()
    gate.step(bad=True)  # step 1 passed by the clock that goes back
    gate.scored()
    kill = Injection("babylon_tasks.evaluation.stage.judge", "kill_parent", once=file)
    world.start("gpu1", inject=[kill])
    start(world, "cpu1", "beat")
    world.wait(file.exists)
    world.fleet.kill("cpu1")
    world.fleet.kill("beat")
    set_back(world, 3600)
    since = time.monotonic()
    start(world, "cpu2", "gpu2", "beat2")
    world.wait(lambda: verdict(gate, 2) == "failed")
    waited = time.monotonic() - since
    world.wait(world.settled)
    exam = gate.exams()[2]
    assert exam.seconds is not None
    assert exam.seconds >= 0
    trial(15, "the database's clock an hour back in an exam", [waited])


@slow
def test_a_window_is_rewritten_after_its_exam(trial: Trial, gate: Examined) -> None:
    """It is scored again and trains; the verdict that it gave stays."""
    world, file = gate.world, gate.world.folder / "once"
    gate.step(bad=True)
    window = gate.scored()
    late = Injection("babylon_tasks.training.stage.train", "sleep", seconds=4, once=file)
    world.start("gpu1", inject=[late])
    start(world, "cpu1", "beat")
    world.wait(file.exists)
    before = gate.exams()[1]
    assert before.state == ExamState.FAILED
    with world.context.database.transaction() as tx:
        tx.execute(
            'UPDATE trajectories SET "stepsJson" = %s WHERE "windowId" = %s AND "agentId" = %s',
            [steps(7, response="SELL YES"), window, "agent-1"],
        )
    world.wait(lambda: gate.position()[0] == 2)
    world.wait(world.settled)
    assert gate.exams() == {1: before}
    row = one(world.context, "SELECT * FROM rl.windows WHERE window_id = %s", window)
    assert (row["score_rev"], row["trained_step"]) == (2, 2)
    trial(42, "a window rewritten after its exam")


@slow
def test_three_failures_pause_it_whoever_dies(trial: Trial, gate: Examined) -> None:
    """The third verdict dies in its transaction; then it is written with the pause."""
    world, file = gate.world, gate.world.folder / "once"
    for _ in range(3):
        gate.step(bad=True)
    last = gate.scored()
    world.expected[last] = "scored"
    kill = Injection("babylon_tasks.store.lineages.change", "kill_parent", at="after", once=file)
    world.start("gpu1", inject=[kill])
    start(world, "cpu1", "beat")
    world.wait(file.exists)
    assert one(world.context, "SELECT state FROM rl.lineages")["state"] == "active"
    assert gate.exams()[3].state == ExamState.OPEN
    world.start("gpu2")
    world.wait(lambda: one(world.context, "SELECT state FROM rl.lineages")["state"] == "paused")
    assert gate.position() == (0, 0)
    time.sleep(4)
    assert len(gate.parents()) == 3
    trial(33, "killed as the third failure pauses the lineage")
