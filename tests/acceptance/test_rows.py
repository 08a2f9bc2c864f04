"""Rows of Flower: what its receiver of events makes of what the workers tell."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import redis
from celery.result import AsyncResult

from babylon_tasks import pipeline
from babylon_tasks.local.ports import free_port
from tests.acceptance.conftest import Deployment
from tests.chaos.injection import Injection, injecting
from tests.flower_events import Watcher, watching
from tests.hostile import message
from tests.outage import Outage
from tests.redis_server import redis_server
from tests.rows import add_window, hours_ago, query, scored_windows, states, steps

pytestmark = pytest.mark.slow

CPU = ("celery", "-A", "babylon_tasks", "worker", "-Q", "cpu", "-n", "cpu@%h", "-c", "1")
GPU = ("celery", "-A", "babylon_tasks", "worker", "-Q", "gpu", "-n", "gpu@%h")
ENDINGS = ("SUCCESS", "FAILURE", "RETRY")
MARKER = "PROMPT-OF-AN-AGENT"


def send(deployment: Deployment, task: str, task_id: str, *args: Any, **headers: Any) -> None:
    queue = "gpu" if task == "train" else "cpu"
    sent = message(f"babylon.{task}", list(args), task_id=task_id, headers=headers)
    with redis.Redis.from_url(deployment.redis_url) as client:
        client.lpush(deployment.key(queue), json.dumps(sent))


def ended(watcher: Watcher, *ids: str) -> Callable[[], bool]:
    def all_of_them() -> bool:
        rows = watcher.rows()
        return all(id_ in rows and rows[id_].state in ENDINGS for id_ in ids)

    return all_of_them


def test_work_makes_rows_and_housekeeping_none(deployment: Deployment) -> None:
    """From hours that have ended to a version that serves; among messages that find nothing."""
    windows = [hours_ago(hours) for hours in (4, 3, 2)]
    for window in windows:
        add_window(deployment.context, window)
    name = deployment.context.lineage.name
    with watching(deployment.redis_url, deployment.key("")) as watcher:
        deployment.start(*CPU)
        deployment.start(*GPU)
        for number in range(2):
            send(deployment, "sweep", f"nothing-{number}")
            send(deployment, "canary", f"canary-{number}", "cpu")
            send(deployment, "train", f"idle-{number}")
        send(deployment, "produce", "found")
        deployment.wait(lambda: states(deployment.context) == dict.fromkeys(windows, "trained"))
        deployment.wait(lambda: len(watcher.rows()) == 4)
        deployment.wait(ended(watcher, *watcher.rows()))
        rows = watcher.rows()
    by_name = {row.name.removeprefix("babylon."): row for row in rows.values()}
    assert {row.state for row in rows.values()} == {"SUCCESS"}
    assert all(row.received and row.started and row.runtime is not None for row in rows.values())
    named = " ".join(windows)
    assert by_name["produce"].uuid == "found"
    assert by_name["produce"].args == f"3 windows are due: {named}"
    assert by_name["score"].args == f"{name}: 3 windows: {named}"
    assert by_name["score"].result == "3 windows scored"
    assert by_name["train"].args == f"{name}: step 1 → v1.0.0, 3 windows, 9 runs"
    told = by_name["train"].result
    assert told.startswith("step 1 → v1.0.0: loss ")
    assert ", 3 windows, 9 runs, " in told
    publish = by_name["publish"]
    told = (publish.args, publish.result)
    assert told == (f"{name}: v1.0.0 serves", "it is the newest step")
    kept = AsyncResult(by_name["train"].uuid, app=watcher.app)
    assert (kept.state, kept.result["version"]) == ("SUCCESS", "v1.0.0")
    assert kept.result["windows"] == windows


def test_a_step_shows_how_far_it_is_and_a_killed_one_has_failed(deployment: Deployment) -> None:
    windows = scored_windows(deployment.context, 3, 2)
    name, hung = deployment.context.lineage.name, deployment.folder / "hung"
    harm = injecting(Injection("babylon_tasks.checkpoints.files.save", "hang", once=hung))
    with watching(deployment.redis_url, deployment.key("")) as watcher:
        worker = deployment.start(*GPU, env={**harm, "LEASE_SECONDS": "20"})
        send(deployment, "train", "killed")
        deployment.wait(lambda: "killed" in watcher.rows())
        row = watcher.rows()["killed"]
        deployment.wait(lambda: (row.result or "").startswith("save 97 %"))
        assert (row.state, row.args) == ("STARTED", f"{name}: step 1, 2 windows, 6 runs")
        kept = AsyncResult("killed", app=watcher.app)
        deployment.wait(lambda: kept.state == "PROGRESS" and kept.info["phase"] == "save")
        assert kept.info["windows"] == windows
        (at_work,) = psutil.Process(worker.pid).children()
        at_work.kill()
        deployment.wait(ended(watcher, "killed"))
        deployment.wait(lambda: kept.state == "FAILURE")
        query(deployment.context, "DELETE FROM rl.leases RETURNING 1")  # as if it had run out
        send(deployment, "train", "again")
        deployment.wait(ended(watcher, "again"))
    assert (row.state, row.args) == ("FAILURE", f"{name}: step 1, 2 windows, 6 runs")
    assert row.result == row.exception
    assert row.result.startswith("its process died: Worker exited prematurely: signal 9 (SIGKILL)")
    told = watcher.types("killed")
    assert told == ["task-received", "task-started", "task-STARTED", "task-failed"]
    again = watcher.rows()["again"]
    assert (again.state, watcher.types("again")[-1]) == ("SUCCESS", "task-succeeded")
    assert again.started < again.succeeded


def test_work_that_is_given_back_has_not_failed(deployment: Deployment) -> None:
    """Its lease went to another worker, or its own worker is stopped."""
    scored_windows(deployment.context, 3, 2)
    lost, hung = deployment.folder / "lost", deployment.folder / "hung"
    harm = injecting(
        Injection("babylon_tasks.checkpoints.files.save", "hang", once=hung),
        Injection("babylon_tasks.training.step.StepAttempt._read", "raise", once=lost,
                  error="babylon_tasks.errors.LeaseLost", arguments=("the lease went",)),
    )  # fmt: skip
    with watching(deployment.redis_url, deployment.key("")) as watcher:
        # As `worker_soft_shutdown_timeout`, for which it waits for its tasks.
        worker = deployment.start(*GPU, "--", "worker.soft_shutdown_timeout=0.5", env=harm)
        send(deployment, "train", "lost")
        deployment.wait(ended(watcher, "lost"))
        query(deployment.context, "DELETE FROM rl.leases RETURNING 1")  # of the other worker
        send(deployment, "train", "stopped")
        deployment.wait(hung.exists)
        worker.terminate()
        assert worker.wait(timeout=20) == 0
        deployment.wait(ended(watcher, "stopped"))
        rows = watcher.rows()
        results = {id_: AsyncResult(id_, app=watcher.app) for id_ in rows}
        assert {id_: kept.state for id_, kept in results.items()} == dict.fromkeys(rows, "RETRY")
    assert (rows["lost"].state, rows["lost"].result) == ("RETRY", "the lease went")
    assert rows["stopped"].state == "RETRY"
    assert rows["stopped"].result.startswith("the worker was stopped")
    assert "task-failed" not in watcher.types("lost") + watcher.types("stopped")
    leases = query(deployment.context, "SELECT FROM rl.leases WHERE expires_at > now()")
    assert leases == []


def test_nothing_of_a_trace_is_told(deployment: Deployment) -> None:
    """Each failure is told once, in one line that quotes nothing; a limit is no stop."""
    add_window(deployment.context, hours_ago(2), stepsJson=steps(1, response=MARKER))
    raised, hung = deployment.folder / "raised", deployment.folder / "hung"
    harm = injecting(
        Injection("babylon_tasks.store.attempts.reap_scores", "raise", once=raised,
                  error="builtins.ValueError", arguments=(f"not a number: {MARKER}",)),
        Injection("babylon_tasks.scoring.verdict.verdict_on", "raise", text=hours_ago(2),
                  error="builtins.KeyError", arguments=(MARKER,)),
        Injection("babylon_tasks.store.windows.wait_for_judge", "hang", once=hung),
        Injection("babylon_tasks.store.canaries.note", "raise", text="gpu",
                  error="babylon_tasks.errors.ServerUnavailable", arguments=("Postgres is away",)),
    )  # fmt: skip
    pipeline.produce(deployment.context)
    with watching(deployment.redis_url, deployment.key("")) as watcher:
        deployment.start(*CPU, env=harm)
        send(deployment, "score", "raised")
        send(deployment, "score", "hung", timelimit=[1, None])
        send(deployment, "score", "scored")
        send(deployment, "canary", "away", "gpu")
        send(deployment, "enqueue", "refused", ["2025-01-15T10:00"])
        deployment.wait(ended(watcher, "raised", "hung", "scored", "away", "refused"))
        rows = watcher.rows()
    assert {id_: row.state for id_, row in rows.items()} == {
        "raised": "FAILURE",
        "hung": "FAILURE",
        "scored": "RETRY",
        "away": "RETRY",
        "refused": "FAILURE",
    }
    assert rows["raised"].exception.startswith("ValueError at ")
    assert rows["hung"].exception == "it took longer than its limit of 1 s and was stopped"
    again = "1 window will be tried again (KeyError): `babylon windows show ID` says why"
    assert rows["scored"].result == again
    assert rows["away"].result == "Postgres is away"
    assert rows["refused"].exception.startswith("no trajectories in window 2025-01-15T10:00")
    for id_ in ("raised", "hung", "refused"):
        assert sum(e.get("uuid") == id_ and e["type"] == "task-failed" for e in watcher.events) == 1
        assert rows[id_].result == rows[id_].exception
    assert MARKER not in repr(watcher.events)
    assert MARKER in deployment.logs()


def test_a_step_does_not_wait_for_a_frozen_redis(deployment: Deployment) -> None:
    """What could not be told meanwhile is told later, with the times at which it happened."""
    windows = scored_windows(deployment.context, 2)
    begun = deployment.folder / "begun"
    harm = injecting(
        Injection("babylon_tasks.checkpoints.files.save", "sleep", seconds=1.5, once=begun)
    )
    with (
        watching(deployment.redis_url, deployment.key("")) as watcher,
        redis.Redis.from_url(deployment.redis_url) as client,
    ):
        server = psutil.Process(client.info("server")["process_id"])
        deployment.start(*GPU, env={**harm, "LEASE_SECONDS": "20"})
        send(deployment, "train", "step")
        deployment.wait(begun.exists)
        server.suspend()
        try:
            deployment.wait(
                lambda: states(deployment.context) == dict.fromkeys(windows, "trained"), 10
            )
        finally:
            server.resume()
        deployment.wait(ended(watcher, "step"))
    row = watcher.rows()["step"]
    assert row.state == "SUCCESS"
    assert row.result.startswith("step 1 → v1.0.0: ")


def test_housekeeping_makes_one_row_an_outage_of_postgres(deployment: Deployment) -> None:
    """However many pool processes meet it."""
    worker = deployment.start(*CPU[:-1], "3", env={"LOG_LEVEL": "DEBUG"})
    outage = Outage(deployment.context, None)
    with watching(deployment.redis_url, deployment.key("")) as watcher:
        send(deployment, "sweep", "before")
        deployment.wait(lambda: "sweep[before] succeeded" in deployment.logs())
        outage.begin()
        try:
            for number in range(6):
                send(deployment, "sweep", f"away-{number}")
            deployment.wait(lambda: deployment.logs().count("ERROR workers.tasks: sweep: ") == 6)
        finally:
            outage.end()
        deployment.wait(ended(watcher, *watcher.rows()))
    assert worker.poll() is None
    (row,) = watcher.rows().values()
    assert row.state in ("RETRY", "FAILURE")  # FAILURE: the server refused


def test_how_work_ended_is_heard_by_who_comes_later(deployment: Deployment) -> None:
    """As by Flower after an outage of Redis: the workers are back before it."""
    windows = scored_windows(deployment.context, 2)
    deployment.start(*CPU)
    deployment.start(*GPU)
    send(deployment, "enqueue", "refused", ["2025-01-15T10:00"])
    send(deployment, "train", "step")
    deployment.wait(lambda: states(deployment.context) == dict.fromkeys(windows, "trained"))
    deployment.wait(lambda: "enqueue: no trajectories" in deployment.logs())
    with watching(deployment.redis_url, deployment.key("")) as watcher:
        deployment.wait(ended(watcher, "step", "refused"))
        rows = watcher.rows()
    assert rows["step"].state == "SUCCESS"
    assert rows["step"].result.startswith("step 1 → v1.0.0: ")
    assert rows["step"].received < rows["step"].timestamp
    assert rows["refused"].state == "FAILURE"
    assert rows["refused"].result.startswith("no trajectories in window 2025-01-15T10:00")


def in_flower(site: str) -> dict[str, tuple[str, str]]:
    """State and result of each row of its table, by the task's id."""
    form = {"draw": "1", "start": "0", "length": "15", "order[0][column]": "0"}
    page = httpx.post(f"{site}/tasks/datatable", data=form, headers={"Origin": site})
    return {row["uuid"]: (row["state"], row["result"]) for row in page.json()["data"]}


def test_a_step_that_ends_while_redis_is_dead_is_seen_by_flower(
    deployment: Deployment, tmp_path: Path
) -> None:
    """It comes back later than the worker, and Redis keeps no event for it."""
    windows = scored_windows(deployment.context, 2)
    begun, site = deployment.folder / "begun", f"http://127.0.0.1:{free_port()}"
    harm = injecting(
        Injection("babylon_tasks.checkpoints.files.save", "sleep", seconds=3, once=begun)
    )
    with redis_server(tmp_path) as server:
        deployment.redis_url = deployment.env["REDIS_URL"] = server.url()
        port = site.rpartition(":")[2]
        deployment.start("celery", "-A", "babylon_tasks", "flower", f"--port={port}")
        deployment.wait_for_page(f"{site}/healthcheck")
        deployment.start(*GPU, env={**harm, "LEASE_SECONDS": "20"})
        send(deployment, "train", "step")
        deployment.wait(begun.exists)
        deployment.wait(lambda: "step" in in_flower(site))
    deployment.wait(lambda: states(deployment.context) == dict.fromkeys(windows, "trained"))
    with redis_server(tmp_path, "--port", str(server.port)):
        deployment.wait(lambda: in_flower(site)["step"][0] == "SUCCESS")
        assert in_flower(site)["step"][1].startswith("step 1 → v1.0.0: ")
