"""Retention: which steps' files go, when, and what happens when something dies on the way."""

from __future__ import annotations

import logging
import random
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest
from psycopg import sql

from babylon_tasks import checkpoints, pipeline
from babylon_tasks.errors import CheckpointRemoved
from babylon_tasks.store import steps as step_rows
from babylon_tasks.training import Trainer
from babylon_tasks.worker import Worker
from tests.conftest import with_database
from tests.integration.conftest import Died
from tests.rows import commit_steps, hours_ago, one, query, scored_windows


def on_disk(worker: Worker) -> list[int]:
    """The steps whose folders are there, whole."""
    folders = Path(worker.settings.checkpoint_store).glob("*/*")
    return sorted(int(checkpoints.open_local(str(f)).name.split("-")[0]) for f in folders)


def by_rows(worker: Worker) -> list[int]:
    """The steps that the rows say have files."""
    found = query(worker, "SELECT step FROM rl.steps WHERE removed_at IS NULL ORDER BY step")
    return [row["step"] for row in found]


def test_old_steps_go_and_the_app_is_told(make_worker: Any, trainer: Trainer) -> None:
    worker = make_worker(keep_checkpoints=3)
    commit_steps(worker, trainer, 6)
    # Before the sixth step, 5 was the head: 3, 4 and 5 stayed.
    assert on_disk(worker) == by_rows(worker) == [3, 4, 5, 6]
    found = query(worker, 'SELECT version, status, "archivedAt" FROM trained_models ORDER BY 1')
    assert [row["status"] for row in found] == ["archived"] * 2 + ["ready"] * 4
    assert [row["archivedAt"] is None for row in found] == [False] * 2 + [True] * 4
    assert query(worker, "SELECT * FROM rl.unfinished_checkpoints") == []
    with worker.database.transaction() as tx:
        gone = step_rows.read(tx, "babylon-agent", 1)
    assert gone
    with pytest.raises(CheckpointRemoved, match=r"step 1 \(v1\.0\.0\) were removed"):
        gone.files()


def test_every_kth_stays(make_worker: Any, trainer: Trainer) -> None:
    worker = make_worker(keep_checkpoints=1, keep_every=3)
    commit_steps(worker, trainer, 8)
    assert on_disk(worker) == by_rows(worker) == [3, 6, 7, 8]


def test_what_is_newer_than_the_served_step_stays(make_worker: Any, trainer: Trainer) -> None:
    worker = make_worker(keep_checkpoints=1)
    commit_steps(worker, trainer, 4, publish=False)
    assert on_disk(worker) == [1, 2, 3, 4]
    query(worker, "UPDATE rl.heads SET published_step = 3 RETURNING 1")
    commit_steps(worker, trainer, 2, publish=False)
    assert on_disk(worker) == by_rows(worker) == [2, 3, 4, 5, 6]


def test_what_the_app_has_deployed_or_holds_stays(
    make_worker: Any, trainer: Trainer, settings: Any
) -> None:
    worker = make_worker(keep_checkpoints=1)
    commit_steps(worker, trainer, 3, publish=False)
    query(
        worker, "UPDATE trained_models SET status = 'deployed' WHERE version = 'v1.0.0' RETURNING 1"
    )
    pipeline.publish(worker)
    with psycopg.connect(settings.postgres()) as app:
        # In the middle of deploying it: nobody waits for the app, and the step waits.
        app.execute("UPDATE trained_models SET status = 'deployed' WHERE version = 'v1.0.1'")
        commit_steps(worker, trainer, 3)
        assert on_disk(worker) == [1, 2, 4, 5, 6]
        app.rollback()
    commit_steps(worker, trainer, 1)
    assert on_disk(worker) == by_rows(worker) == [1, 5, 6, 7]
    kept = one(worker, "SELECT status FROM trained_models WHERE version = 'v1.0.0'")
    assert kept["status"] == "deployed"


def test_a_model_that_the_app_does_not_know(make_worker: Any, trainer: Trainer) -> None:
    worker = make_worker(keep_checkpoints=1, primary=False)
    commit_steps(worker, trainer, 4)
    assert on_disk(worker) == by_rows(worker) == [2, 3, 4]


def test_a_death_between_the_note_and_the_removal(
    make_worker: Any, trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = make_worker(keep_checkpoints=1)
    commit_steps(worker, trainer, 4)
    scored_windows(worker, 20)

    def die(*_: Any) -> bool:
        raise Died

    with monkeypatch.context() as patch:
        patch.setattr("babylon_tasks.checkpoints.remove_unfinished", die)
        with pytest.raises(Died):
            pipeline.train(worker, trainer)
    assert by_rows(worker) == [3, 4]
    assert on_disk(worker) == [2, 3, 4]
    (left,) = query(worker, "SELECT checkpoint FROM rl.unfinished_checkpoints")
    assert Path(left["checkpoint"]).name.startswith("2-")
    assert pipeline.train(worker, trainer)
    assert on_disk(worker) == by_rows(worker) == [3, 4, 5]
    assert query(worker, "SELECT * FROM rl.unfinished_checkpoints") == []


def test_a_death_before_the_note_changes_nothing(
    make_worker: Any, trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = make_worker(keep_checkpoints=1)
    commit_steps(worker, trainer, 4)
    scored_windows(worker, 20)
    real = step_rows.give_up

    def die(*arguments: Any) -> list[int]:
        real(*arguments)
        raise Died

    with monkeypatch.context() as patch:
        patch.setattr("babylon_tasks.store.steps.give_up", die)
        with pytest.raises(Died):
            pipeline.train(worker, trainer)
    assert on_disk(worker) == by_rows(worker) == [2, 3, 4]
    assert query(worker, "SELECT * FROM rl.unfinished_checkpoints") == []
    statuses = query(worker, "SELECT status FROM trained_models ORDER BY version")
    assert [row["status"] for row in statuses] == ["archived", "ready", "ready", "ready"]


def test_a_folder_that_the_store_refuses_to_remove_holds_nothing_up(
    make_worker: Any, trainer: Trainer, caplog: pytest.LogCaptureFixture
) -> None:
    worker = make_worker(keep_checkpoints=1)
    commit_steps(worker, trainer, 3, publish=False)
    first = one(worker, "SELECT checkpoint FROM rl.steps WHERE step = 1")["checkpoint"]
    nonce = Path(first) / "nonce.txt"
    kept = nonce.read_text()
    nonce.unlink()
    nonce.mkdir()  # cannot be read: the store's own error
    pipeline.publish(worker)
    with caplog.at_level(logging.WARNING):
        commit_steps(worker, trainer, 2)
    assert [r.message for r in caplog.records if first in r.message] != []
    assert by_rows(worker) == on_disk(worker)[1:] == [3, 4, 5]
    (left,) = query(worker, "SELECT checkpoint FROM rl.unfinished_checkpoints")
    assert left["checkpoint"] == first
    nonce.rmdir()
    nonce.write_text(kept)
    commit_steps(worker, trainer, 1)
    assert on_disk(worker) == by_rows(worker) == [4, 5, 6]


def test_many_old_steps_go_a_few_at_a_time(make_worker: Any, trainer: Trainer) -> None:
    """A setting that was a mistake is noticed before everything is gone."""
    worker = make_worker(keep_checkpoints=100)
    commit_steps(worker, trainer, 22)
    eager = make_worker(keep_checkpoints=1)
    commit_steps(eager, trainer, 1)
    assert on_disk(worker) == by_rows(worker) == [*range(17, 24)]
    commit_steps(eager, trainer, 1)
    assert on_disk(worker) == by_rows(worker) == [22, 23, 24]


@pytest.fixture
def clone(settings: Any) -> Iterator[str]:
    """Makes a copy of the database, as a dump or a branch does; asked for when it is used."""
    name = f"clone_{uuid.uuid4().hex[:12]}"
    yield name
    with psycopg.connect(with_database(settings.postgres(), "postgres"), autocommit=True) as admin:
        admin.execute(
            sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name))
        )


def test_a_clone_with_the_same_store_removes_only_what_it_made(
    make_worker: Any, trainer: Trainer, clone: str
) -> None:
    worker = make_worker(keep_checkpoints=100)
    commit_steps(worker, trainer, 4)
    url = worker.settings.postgres()
    worker.database.close()
    with psycopg.connect(with_database(url, "postgres"), autocommit=True) as admin:
        source = sql.Identifier(urlsplit(url).path.removeprefix("/"))
        admin.execute(
            sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(clone), source)
        )
    other = make_worker(database_url=with_database(url, clone), keep_checkpoints=1)
    # As docs/reliability.md says.
    with other.database.transaction() as tx:
        tx.execute("TRUNCATE rl.unfinished_checkpoints")
        tx.execute("UPDATE rl.steps SET nonce = NULL")
    commit_steps(other, trainer, 4)
    assert on_disk(worker) == [1, 2, 3, 4, 6, 7, 8]
    assert by_rows(other) == [1, 2, 3, 4, 6, 7, 8]
    assert by_rows(worker) == [1, 2, 3, 4]


def test_a_folder_of_the_same_name_that_another_database_made_stays(
    make_worker: Any, trainer: Trainer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    worker = make_worker(keep_checkpoints=1)
    commit_steps(worker, trainer, 3)
    first = one(worker, "SELECT checkpoint FROM rl.steps WHERE step = 1")["checkpoint"]
    checkpoints.remove(first)
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "weights").write_text("theirs")
    checkpoints.save(tmp_path / "theirs", first, str(uuid.uuid4()))
    commit_steps(worker, trainer, 1)
    assert by_rows(worker) == [2, 3, 4]
    assert (checkpoints.open_local(first) / "weights").read_text() == "theirs"
    assert query(worker, "SELECT * FROM rl.unfinished_checkpoints") == []


def test_who_moves_the_served_step_waits_for_the_decision(
    make_worker: Any, trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rollback at the same moment sees the note, so it cannot choose what is about to go."""
    worker, operator = make_worker(keep_checkpoints=1), make_worker()
    commit_steps(worker, trainer, 4)
    scored_windows(worker, 20)
    rolled_back: list[int] = []

    def roll_back() -> None:
        with operator.database.transaction() as tx:
            tx.execute("SELECT FROM rl.heads FOR UPDATE")
            oldest = "SELECT min(step) AS step FROM rl.steps WHERE removed_at IS NULL"
            row = tx.execute(oldest).fetchone()
            assert row
            rolled_back.append(row["step"])
            tx.execute("UPDATE rl.heads SET published_step = %s", [row["step"]])

    thread = threading.Thread(target=roll_back)
    real = step_rows.give_up

    def meanwhile(*arguments: Any) -> list[int]:
        thread.start()
        thread.join(0.5)
        assert rolled_back == []  # it waits for the head's row
        return real(*arguments)

    monkeypatch.setattr("babylon_tasks.store.steps.give_up", meanwhile)
    assert pipeline.train(worker, trainer)
    thread.join()
    assert rolled_back == [3]
    assert on_disk(worker) == by_rows(worker) == [3, 4, 5]


def test_who_lost_the_lease_gives_up_nothing(make_worker: Any, trainer: Trainer) -> None:
    worker = make_worker(keep_checkpoints=1)
    commit_steps(worker, trainer, 4)
    with worker.database.transaction() as tx:
        assert step_rows.lock_head(tx, "babylon-agent", token=1) is None


@pytest.mark.parametrize("seed", range(4))
def test_random_histories(make_worker: Callable[..., Worker], trainer: Trainer, seed: int) -> None:
    """Steps, publishing, rollbacks, the app's deployments and settings, in any order."""
    rng = random.Random(seed)
    worker = make_worker()
    for _ in range(25):
        event = rng.choice(["step", "step", "step", "publish", "roll back", "deploy"])
        if event == "step":
            settings = {
                "keep_checkpoints": rng.randint(1, 4),
                "keep_every": rng.choice([None, 2, 5]),
            }
            commit_steps(make_worker(**settings), trainer, 1, publish=False)
        elif event == "publish":
            pipeline.publish(worker)
        elif there := by_rows(worker):
            step = rng.choice(there)
            if event == "roll back":
                query(worker, "UPDATE rl.heads SET published_step = %s RETURNING 1", step)
            else:
                query(
                    worker,
                    "UPDATE trained_models SET status = 'deployed' WHERE version ="
                    " (SELECT version FROM rl.steps WHERE step = %s) RETURNING 1",
                    step,
                )
        assert on_disk(worker) == by_rows(worker)
        wanted = query(
            worker,
            "SELECT unnest(ARRAY[step, published_step]) AS step FROM rl.heads UNION"
            " SELECT step FROM rl.steps s JOIN trained_models m USING (version)"
            " WHERE m.status = 'deployed'",
        )
        assert {row["step"] for row in wanted} - {0} <= set(on_disk(worker))


def test_a_model_server_names_what_is_gone(make_worker: Any, trainer: Trainer) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("peft")
    pytest.importorskip("starlette")
    from starlette.testclient import TestClient

    from workers.serve import make_app
    from workers.served_models import ServedModels

    worker = make_worker(keep_checkpoints=1)
    commit_steps(worker, trainer, 3, publish=False)
    served = ServedModels(worker.settings)
    client = TestClient(make_app(served.resolve, served.names), raise_server_exceptions=False)

    def ask(name: str) -> tuple[int, str]:
        messages = [{"role": "user", "content": "Buy or wait?"}]
        answer = client.post("/v1/chat/completions", json={"model": name, "messages": messages})
        return answer.status_code, answer.json()["error"]["message"]

    with_files = served.resolve("babylon-agent@1")
    assert with_files
    assert with_files.adapter
    pipeline.publish(worker)
    commit_steps(worker, trainer, 1)
    status, said = ask("babylon-agent@1")
    assert status == 404
    assert "the files of step 1 (v1.0.0) were removed on 20" in said
    assert ask("babylon-agent@9")[0] == 404
    published = served.resolve("babylon-agent")
    assert published
    assert published.step == 4
    # Files that went by another hand: the row names them, so it is no 404.
    checkpoints.remove(one(worker, "SELECT checkpoint FROM rl.steps WHERE step = 3")["checkpoint"])
    status, said = ask("babylon-agent@3")
    assert (status, said[:26]) == (503, "cannot read the checkpoint")


def test_a_window_of_a_removed_step_is_still_trained(make_worker: Any, trainer: Trainer) -> None:
    worker = make_worker(keep_checkpoints=1)
    commit_steps(worker, trainer, 4)
    assert pipeline.enqueue(worker, hours_ago(2)).trained_step == 1
    assert pipeline.train(worker, trainer) is None
