"""`babylon simulate`: hours as the app writes them, which are then scored, trained and served."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from babylon_tasks import pipeline
from babylon_tasks.local import ask
from babylon_tasks.records.windows import parse_window_id, window_id_at
from babylon_tasks.simulation.game import endpoint
from babylon_tasks.simulation.game.hour import DECISIONS, MARKETS, play_hour
from babylon_tasks.simulation.game.market import Rules
from babylon_tasks.simulation.game.population import POPULATION, players
from babylon_tasks.simulation.game.record import record
from babylon_tasks.simulation.game.schedule import (
    ONCE,
    TOO_LATE,
    hold,
    read_schedule,
    why_not,
)
from babylon_tasks.simulation.write import write
from babylon_tasks.work.context import Context
from tests.acceptance.conftest import Deployment
from tests.clock import at_half_past
from tests.openai_server import Stub, completion, serving
from tests.rows import add_window, hours_ago, one, query, scored_windows, states
from workers.gpu.client import TrainerProcess

APP = ("trajectories", "market_outcomes", '"User"')
KEY = "sk-a-key"
WAITS = "SELECT FROM pg_locks WHERE NOT granted AND pg_backend_pid() = ANY (pg_blocking_pids(pid))"


@pytest.fixture(autouse=True)
def _no_hour_ends_or_settles(deployment: Deployment) -> None:
    at_half_past(deployment.context)


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stub]:
    """An endpoint whose model always buys."""
    monkeypatch.setattr(endpoint, "_WAIT_SECONDS", 0.001)
    with serving() as made:
        made.reply = lambda body: (
            200,
            completion('{"action":"BUY"}', system_fingerprint="step-0"),
        )
        yield made


def simulate(deployment: Deployment, *more: str, **env: str) -> dict[str, Any]:
    done = deployment.call("babylon", "simulate", *more, "--json", env=env)
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def counts(context: Context) -> dict[str, int]:
    return {table: one(context, f"SELECT count(*) AS n FROM {table}")["n"] for table in APP}


def newest(context: Context) -> str:
    """The window of the newest hour that has settled."""
    with context.database.transaction() as tx:
        schedule = read_schedule(tx, context.lineage.name, 1, context.settings.settle_seconds)
    return schedule.hours[0]


def test_hours_of_scripted_agents_are_written_and_then_scored(deployment: Deployment) -> None:
    context, agents = deployment.context, len(POPULATION)
    told = simulate(deployment, "--hours", "2")
    windows = [hour["window"] for hour in told["hours"]]
    assert [hour["hour"] for hour in told["hours"]] == [0, 1]
    first, second = map(parse_window_id, windows)
    assert second - first == timedelta(hours=1)
    assert windows[1] == hours_ago(1)
    assert all(hour["policy"] is None for hour in told["hours"])
    assert all(hour["noise"] < hour["oracle"] for hour in told["hours"])
    written = {"trajectories": 2 * agents, "market_outcomes": 2 * MARKETS, '"User"': agents}
    assert counts(context) == written

    assert pipeline.produce(context) == windows
    assert sorted(pipeline.score(context)) == windows
    assert states(context) == dict.fromkeys(windows, "scored")
    scores = query(context, "SELECT score FROM rl.scores")
    assert len({row["score"] for row in scores}) > agents // 2

    again = deployment.call("babylon", "simulate", "--hours", "2", "--seed", "2")
    assert (again.returncode, again.stderr) == (0, "")
    assert again.stdout.startswith("passed over 2 hours: an hour is played once\nnothing to play")
    assert counts(context) == written


def test_the_games_clock_goes_on_from_the_first_hour(deployment: Deployment) -> None:
    (newest,) = simulate(deployment)["hours"]
    start = parse_window_id(newest["window"])
    with deployment.context.database.transaction() as tx:  # as if it had been played yesterday
        earlier = f"{start - timedelta(hours=3):%Y-%m-%dT%H:00}"
        tx.execute('UPDATE trajectories SET "windowId" = %s, "scenarioId" = %s', [earlier] * 2)
    told = simulate(deployment, "--hours", "5")
    assert [hour["hour"] for hour in told["hours"]] == [1, 2, 3]
    assert [*told["passed_over"]] == [
        f"{start - timedelta(hours=back):%Y-%m-%dT%H:00}" for back in (4, 3)
    ]


def test_a_database_of_the_app_is_left_alone(deployment: Deployment) -> None:
    context = deployment.context
    add_window(context, hours_ago(3))
    before = counts(context)
    done = deployment.call("babylon", "simulate")
    assert done.returncode == 2
    assert done.stderr.startswith("the database has trajectories of the app's agents (agent-")
    assert done.stderr.endswith("say --into-app-data\n")
    assert done.stderr.count("\n") == 1
    assert counts(context) == before
    assert len(simulate(deployment, "--into-app-data")["hours"]) == 1


def test_a_database_with_users_of_the_app_is_left_alone(deployment: Deployment) -> None:
    context = deployment.context
    query(context, """INSERT INTO "User" (id, "updatedAt") VALUES ('ann', now()) RETURNING 1""")
    before = counts(context)
    done = deployment.call("babylon", "simulate")
    assert done.returncode == 2
    assert done.stderr.startswith("the database has users of the app (ann and others)")
    assert done.stderr.count("\n") == 1
    assert counts(context) == before
    assert len(simulate(deployment, "--into-app-data")["hours"]) == 1


def test_an_hour_whose_window_is_past_due_is_passed_over(deployment: Deployment) -> None:
    context = deployment.context
    (scored,) = scored_windows(context, 4)
    add_window(context, hours_ago(3))
    assert pipeline.produce(context) == [hours_ago(3)]  # and stays due: its hour can be played
    told = simulate(deployment, "--hours", "4", "--into-app-data")
    assert told["passed_over"] == {scored: TOO_LATE}
    assert [hour["hour"] for hour in told["hours"]] == [0, 1, 2]
    assert told["hours"][0]["window"] == hours_ago(3)

    done = deployment.call("babylon", "simulate", "--hours", "4", "--into-app-data")
    late, once = done.stdout.splitlines()[:2]
    assert late == f"passed over 1 hour: {TOO_LATE}"
    assert once == f"passed over 3 hours: {ONCE}"


def test_an_hour_that_was_scored_while_it_was_played_is_not_written(
    deployment: Deployment, make_context: Callable[..., Context], stub: Stub
) -> None:
    worker = make_context()
    window = newest(worker)
    add_window(worker, window)
    answer = stub.reply

    def score_first(body: dict[str, Any]) -> tuple[int, Any]:
        with scoring:
            if states(worker) == {}:
                pipeline.produce(worker)
                pipeline.score(worker)
        return answer(body)

    scoring = threading.Lock()
    stub.reply = score_first
    before = counts(worker)
    options = ("--url", stub.url, "--model", "m", "--policies", "1", "--into-app-data")
    done = deployment.call("babylon", "simulate", *options)
    assert (done.returncode, done.stdout) == (0, f"{window}  passed over: {TOO_LATE}\n")
    assert counts(worker) == before


def test_two_commands_at_once_play_an_hour_once(
    deployment: Deployment, make_context: Callable[..., Context]
) -> None:
    other = make_context()
    window = newest(other)
    start = parse_window_id(window).replace(tzinfo=None)
    hour = play_hour(2, 0, Rules(), players(POPULATION, 0), lambda prompts: [])
    written = threading.Event()
    waited: list[object] = []

    def write_slowly() -> None:
        with other.database.transaction() as tx:
            hold(tx)
            write(tx, [record(hour, start, 2)])
            written.set()
            deadline = time.monotonic() + 25
            while time.monotonic() < deadline and not waited:
                time.sleep(0.02)
                waited.extend(tx.execute(WAITS).fetchall())

    thread = threading.Thread(target=write_slowly)
    thread.start()
    assert written.wait(10)
    try:
        told = simulate(deployment)
    finally:
        thread.join()
    assert waited
    assert told == {"hours": [], "passed_over": {window: ONCE}}
    assert counts(deployment.context)["trajectories"] == len(POPULATION)


def test_an_hour_of_another_clock_is_not_written(deployment: Deployment) -> None:
    (played,) = simulate(deployment)["hours"]
    later = window_id_at(parse_window_id(played["window"]) + timedelta(hours=2))
    with deployment.context.database.transaction() as tx:
        name = deployment.context.lineage.name
        assert why_not(tx, name, 2, later) is None
        assert why_not(tx, name, 0, later)


def test_a_model_plays_and_is_recorded_by_version(deployment: Deployment, stub: Stub) -> None:
    options = ("--url", stub.url, "--model", "babylon-agent", "--key-env", "ITS_KEY")
    (hour,) = simulate(deployment, *options, "--policies", "3", ITS_KEY=KEY)["hours"]
    assert (hour["decisions"], hour["failed"]) == (3 * DECISIONS, 0)
    assert hour["versions"] == {"babylon-agent@0": 3 * DECISIONS}
    assert stub.keys == {f"Bearer {KEY}"}
    rows = query(deployment.context, 'SELECT "stepsJson" AS steps FROM trajectories')
    calls = [call for row in rows for step in json.loads(row["steps"]) for call in step["llmCalls"]]
    ours = [call for call in calls if call.get("modelVersion") == "babylon-agent@0"]
    assert len(ours) == 3 * DECISIONS
    assert {call["response"] for call in ours} == {'{"action":"BUY"}'}
    pipeline.produce(deployment.context)
    pipeline.score(deployment.context)
    by_version = one(deployment.context, "SELECT by_version FROM rl.windows")["by_version"]
    assert "babylon-agent@0" in json.dumps(by_version)


def test_a_line_tells_what_the_models_decisions_are_worth(
    deployment: Deployment, stub: Stub
) -> None:
    options = ("--url", stub.url, "--model", "babylon-agent", "--policies", "2")
    done = deployment.call("babylon", "simulate", *options)
    assert done.returncode == 0, done.stderr
    assert done.stderr == f"writing into {deployment.context.database.name}\n"
    (line,) = done.stdout.splitlines()
    assert ", oracle " in line
    assert line.endswith(f"; 0 of {2 * DECISIONS} answers failed; babylon-agent@0")


def test_an_hour_with_missing_answers_is_not_written(deployment: Deployment, stub: Stub) -> None:
    asked = 2 * DECISIONS
    whole = stub.reply
    stub.reply = lambda body: whole(body) if len(stub.bodies) <= asked + 1 else (503, "busy")
    done = deployment.call(
        *("babylon", "simulate", "--hours", "2", "--json"),
        *("--url", stub.url, "--model", "m", "--policies", "2"),
    )
    assert done.returncode == 2
    assert done.stderr.endswith("\n127.0.0.1 does not answer after 5 tries (HTTP 503: busy)\n")
    windows = query(deployment.context, 'SELECT DISTINCT "windowId" AS id FROM trajectories')
    assert len(windows) == 1
    told = json.loads(done.stdout)  # of the hour that was written
    assert [hour["window"] for hour in told["hours"]] == [row["id"] for row in windows]


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (("--model", "m"), "--model, --key-env and --policies go with --url"),
        (("--url", "http://h"), "name the model that --url serves with --model"),
        (("--url", "http://h", "--model", "m", "--key-env", "NONE_SUCH"),
         "--key-env: the environment variable NONE_SUCH is not set"),
        (("--url", "here", "--model", "m"),
         "the endpoint's address is no URL such as http://127.0.0.1:8000/v1"),
    ],
)  # fmt: skip
def test_options_that_do_not_fit_are_one_line(
    deployment: Deployment, options: tuple[str, ...], line: str
) -> None:
    done = deployment.call("babylon", "simulate", *options)
    assert (done.returncode, done.stderr) == (2, f"{line}\n")


def test_with_wait_the_newest_version_plays_the_next_hour(
    deployment: Deployment,
    make_context: Callable[..., Context],
    trainer: TrainerProcess,
    stub: Stub,
) -> None:
    worker, ended = make_context(), threading.Event()

    def version(body: dict[str, Any]) -> tuple[int, Any]:
        head = query(deployment.context, "SELECT published_step AS step FROM rl.heads")
        step = head[0]["step"] if head else 0
        return 200, completion('{"action":"SELL"}', system_fingerprint=f"step-{step}")

    def work() -> None:
        while not ended.wait(0.1):
            pipeline.score(worker)
            pipeline.train(worker, trainer)
            pipeline.publish(worker)

    stub.reply = version
    thread = threading.Thread(target=work)
    thread.start()
    try:
        options = ("--url", stub.url, "--model", "babylon-agent", "--policies", "1", "--wait")
        hours = simulate(deployment, "--hours", "3", *options, REDIS_URL="")["hours"]
    finally:
        ended.set()
        thread.join()
    assert [(hour["state"], hour["step"]) for hour in hours] == [
        ("trained", 1),
        ("trained", 2),
        ("trained", 3),
    ]
    assert [[*hour["versions"]] for hour in hours] == [[f"babylon-agent@{n}"] for n in range(3)]


def test_with_wait_windows_that_are_not_trained_are_an_error(
    deployment: Deployment, make_context: Callable[..., Context]
) -> None:
    worker, ended = make_context(), threading.Event()

    def skip() -> None:
        while not ended.wait(0.1):
            with worker.database.transaction() as tx:
                tx.execute(
                    """UPDATE rl.windows SET state = 'skipped', reason = 'no signal'
                        WHERE state = 'due'"""
                )

    thread = threading.Thread(target=skip)
    thread.start()
    try:
        done = deployment.call(
            *("babylon", "simulate", "--hours", "2", "--wait", "--json"), env={"REDIS_URL": ""}
        )
    finally:
        ended.set()
        thread.join()
    hours = json.loads(done.stdout)["hours"]
    assert [hour["state"] for hour in hours] == ["skipped", "skipped"]  # it goes on to the end
    assert done.returncode == 2
    assert done.stderr.splitlines()[1:] == [
        f"2 of 2 windows were not trained: `babylon windows show {hours[0]['window']}` says why"
    ]


@pytest.mark.slow
def test_our_own_server_plays_against_real_workers(
    deployment: Deployment, tiny_model: Path
) -> None:
    env = {"BASE_MODEL": str(tiny_model), "TRAINER": "torch"}
    for queue in ("cpu", "gpu"):
        worker = ("celery", "-A", "babylon_tasks", "worker", "-Q", queue, "-n", f"{queue}@%h")
        deployment.start(*worker, "--concurrency", "1", "--loglevel", "info", env=env)
    with ask.serving({**deployment.env, **env}) as url:
        options = ("--url", url, "--model", "babylon-agent", "--policies", "4", "--wait")
        hours = simulate(deployment, "--hours", "2", *options, **env)["hours"]
    assert [hour["state"] for hour in hours] == ["trained", "trained"]
    assert [[*hour["versions"]] for hour in hours] == [["babylon-agent@0"], ["babylon-agent@1"]]
    assert all(hour["failed"] <= hour["decisions"] / 4 for hour in hours)
    # The traces are as the app writes them: the endpoint remembers the rest, and it is found.
    recorded = """SELECT count(*) AS n FROM trajectories WHERE "stepsJson" LIKE '%%token_id:%%'"""
    assert one(deployment.context, recorded)["n"] == 0
    found = one(deployment.context, "SELECT sum((funnel ->> 'captured')::int) AS n FROM rl.windows")
    assert found["n"] == sum(hour["decisions"] for hour in hours)
