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

from babylon_tasks import pipeline
from babylon_tasks.checkpoints import files as checkpoint_files
from babylon_tasks.errors import CheckpointRemoved
from babylon_tasks.records.steps import Trainer
from babylon_tasks.serving import promote
from babylon_tasks.store import heads
from babylon_tasks.store import steps as step_rows
from babylon_tasks.store.leases import Claim, Lease
from babylon_tasks.work.context import Context
from tests.clock import wait_until_blocked
from tests.conftest import with_database
from tests.integration.conftest import Died
from tests.rows import commit_steps, hours_ago, one, query, scored_windows


def on_disk(context: Context) -> list[int]:
    """The steps whose folders are there, whole."""
    folders = Path(context.settings.checkpoint_store).glob("*/*")
    return sorted(int(checkpoint_files.open_local(str(f)).name.split("-")[0]) for f in folders)


def by_rows(context: Context) -> list[int]:
    """The steps that the rows say have files."""
    found = query(context, "SELECT step FROM rl.steps WHERE removed_at IS NULL ORDER BY step")
    return [row["step"] for row in found]


def test_old_steps_go_and_the_app_is_told(make_context: Any, trainer: Trainer) -> None:
    context = make_context(keep_checkpoints=3)
    commit_steps(context, trainer, 6)
    # Before the sixth step, 5 was the head: 3, 4 and 5 stayed.
    assert on_disk(context) == by_rows(context) == [3, 4, 5, 6]
    found = query(context, 'SELECT version, status, "archivedAt" FROM trained_models ORDER BY 1')
    assert [row["status"] for row in found] == ["archived"] * 2 + ["ready"] * 3 + ["deployed"]
    assert [row["archivedAt"] is None for row in found] == [False] * 2 + [True] * 4
    assert query(context, "SELECT * FROM rl.unfinished_checkpoints") == []
    with context.database.transaction() as tx:
        gone = step_rows.read(tx, "babylon-agent", 1)
    assert gone
    with pytest.raises(CheckpointRemoved, match=r"step 1 \(v1\.0\.0\) were removed"):
        gone.files()


def test_every_kth_stays(make_context: Any, trainer: Trainer) -> None:
    context = make_context(keep_checkpoints=1, keep_every=3)
    commit_steps(context, trainer, 8)
    assert on_disk(context) == by_rows(context) == [3, 6, 7, 8]


def test_what_is_newer_than_the_served_step_stays(make_context: Any, trainer: Trainer) -> None:
    context = make_context(keep_checkpoints=1)
    commit_steps(context, trainer, 4, publish=False)
    assert on_disk(context) == [1, 2, 3, 4]
    query(context, "UPDATE rl.heads SET published_step = 3 RETURNING 1")
    commit_steps(context, trainer, 2, publish=False)
    assert on_disk(context) == by_rows(context) == [2, 3, 4, 5, 6]


def test_what_the_app_has_deployed_or_holds_stays(
    make_context: Any, trainer: Trainer, settings: Any
) -> None:
    context = make_context(keep_checkpoints=1)
    commit_steps(context, trainer, 3)
    query(
        context,
        """UPDATE trained_models SET status = 'deployed', "agentsUsing" = 3
            WHERE version = 'v1.0.1' RETURNING 1""",
    )  # a rollback, so nothing else is promoted
    with psycopg.connect(settings.postgres()) as app:
        # Nobody waits for the app, and the step waits.
        app.execute("UPDATE trained_models SET \"agentsUsing\" = 4 WHERE version = 'v1.0.0'")
        commit_steps(context, trainer, 3)
        assert on_disk(context) == [1, 2, 3, 4, 5, 6]
        promote.resume(context, "it was no worse")
        pipeline.publish(context)
        commit_steps(context, trainer, 1)
        assert on_disk(context) == [1, 2, 5, 6, 7]
        app.rollback()
    commit_steps(context, trainer, 1)
    assert on_disk(context) == by_rows(context) == [6, 7, 8]


def test_what_a_rollback_or_a_share_needs_stays(make_context: Any, trainer: Trainer) -> None:
    context = make_context(keep_checkpoints=1)
    commit_steps(context, trainer, 2)
    promote.pause(context, "an experiment")
    commit_steps(context, trainer, 3)
    promote.share(context, "3", 10, "is it better?")
    promote.promote(context, "5", "it is the newest")
    commit_steps(context, trainer, 1)
    # 2 served before, 4 is the newest one before 5, and 3 is to have a share.
    assert on_disk(context) == by_rows(context) == [2, 3, 4, 5, 6]
    promote.share(context, "3", 0, "no")
    promote.promote(context, "6", "it is the newest")
    commit_steps(context, trainer, 1)
    assert on_disk(context) == by_rows(context) == [5, 6, 7]


def test_a_model_that_the_app_does_not_know(make_context: Any, trainer: Trainer) -> None:
    context = make_context(keep_checkpoints=1, primary=False)
    commit_steps(context, trainer, 4)
    assert on_disk(context) == by_rows(context) == [2, 3, 4]


def test_a_death_between_the_note_and_the_removal(
    make_context: Any, trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = make_context(keep_checkpoints=1)
    commit_steps(context, trainer, 4)
    scored_windows(context, 20)

    def die(*_: Any) -> bool:
        raise Died

    with monkeypatch.context() as patch:
        patch.setattr("babylon_tasks.checkpoints.files.remove_unfinished", die)
        with pytest.raises(Died):
            pipeline.train(context, trainer)
    assert by_rows(context) == [3, 4]
    assert on_disk(context) == [2, 3, 4]
    (left,) = query(context, "SELECT checkpoint FROM rl.unfinished_checkpoints")
    assert Path(left["checkpoint"]).name.startswith("2-")
    assert pipeline.train(context, trainer)
    assert on_disk(context) == by_rows(context) == [3, 4, 5]
    assert query(context, "SELECT * FROM rl.unfinished_checkpoints") == []


def test_a_death_before_the_note_changes_nothing(
    make_context: Any, trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = make_context(keep_checkpoints=1)
    commit_steps(context, trainer, 4)
    scored_windows(context, 20)
    real = step_rows.give_up

    def die(*arguments: Any) -> list[int]:
        real(*arguments)
        raise Died

    with monkeypatch.context() as patch:
        patch.setattr("babylon_tasks.store.steps.give_up", die)
        with pytest.raises(Died):
            pipeline.train(context, trainer)
    assert on_disk(context) == by_rows(context) == [2, 3, 4]
    assert query(context, "SELECT * FROM rl.unfinished_checkpoints") == []
    statuses = query(context, "SELECT status FROM trained_models ORDER BY version")
    assert [row["status"] for row in statuses] == ["archived", "ready", "ready", "deployed"]


def test_a_folder_that_the_store_refuses_to_remove_holds_nothing_up(
    make_context: Any, trainer: Trainer, caplog: pytest.LogCaptureFixture
) -> None:
    context = make_context(keep_checkpoints=1)
    commit_steps(context, trainer, 3, publish=False)
    first = one(context, "SELECT checkpoint FROM rl.steps WHERE step = 1")["checkpoint"]
    nonce = Path(first) / "nonce.txt"
    kept = nonce.read_text()
    nonce.unlink()
    nonce.mkdir()  # cannot be read: the store's own error
    pipeline.publish(context)
    with caplog.at_level(logging.WARNING):
        commit_steps(context, trainer, 2)
    assert [r.message for r in caplog.records if first in r.message] != []
    assert by_rows(context) == on_disk(context)[1:] == [3, 4, 5]
    (left,) = query(context, "SELECT checkpoint FROM rl.unfinished_checkpoints")
    assert left["checkpoint"] == first
    nonce.rmdir()
    nonce.write_text(kept)
    commit_steps(context, trainer, 1)
    assert on_disk(context) == by_rows(context) == [4, 5, 6]


def test_many_old_steps_go_a_few_at_a_time(make_context: Any, trainer: Trainer) -> None:
    """A setting that was a mistake is noticed before everything is gone."""
    context = make_context(keep_checkpoints=100)
    commit_steps(context, trainer, 22)
    eager = make_context(keep_checkpoints=1)
    commit_steps(eager, trainer, 1)
    assert on_disk(context) == by_rows(context) == [*range(17, 24)]
    commit_steps(eager, trainer, 1)
    assert on_disk(context) == by_rows(context) == [22, 23, 24]


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
    make_context: Any, trainer: Trainer, clone: str
) -> None:
    context = make_context(keep_checkpoints=100)
    commit_steps(context, trainer, 4)
    url = context.settings.postgres()
    context.database.close()
    with psycopg.connect(with_database(url, "postgres"), autocommit=True) as admin:
        source = sql.Identifier(urlsplit(url).path.removeprefix("/"))
        admin.execute(
            sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(clone), source)
        )
    other = make_context(database_url=with_database(url, clone), keep_checkpoints=1)
    # As docs/reliability.md says.
    with other.database.transaction() as tx:
        tx.execute("TRUNCATE rl.unfinished_checkpoints")
        tx.execute("UPDATE rl.steps SET nonce = NULL")
    commit_steps(other, trainer, 4)
    assert on_disk(context) == [1, 2, 3, 4, 6, 7, 8]
    assert by_rows(other) == [1, 2, 3, 4, 6, 7, 8]
    assert by_rows(context) == [1, 2, 3, 4]


def test_a_folder_of_the_same_name_that_another_database_made_stays(
    make_context: Any, trainer: Trainer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    context = make_context(keep_checkpoints=1)
    commit_steps(context, trainer, 3)
    first = one(context, "SELECT checkpoint FROM rl.steps WHERE step = 1")["checkpoint"]
    checkpoint_files.remove(first)
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "weights").write_text("theirs")
    checkpoint_files.save(tmp_path / "theirs", first, str(uuid.uuid4()))
    commit_steps(context, trainer, 1)
    assert by_rows(context) == [2, 3, 4]
    assert (checkpoint_files.open_local(first) / "weights").read_text() == "theirs"
    assert query(context, "SELECT * FROM rl.unfinished_checkpoints") == []


def test_who_moves_the_served_step_waits_for_the_decision(
    make_context: Any, trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rollback at the same moment sees the note, so it cannot choose what is about to go."""
    context, operator = make_context(keep_checkpoints=1), make_context()
    commit_steps(context, trainer, 4)
    scored_windows(context, 20)
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
        wait_until_blocked(context.settings.postgres())  # for the head's row
        assert rolled_back == []
        return real(*arguments)

    monkeypatch.setattr("babylon_tasks.store.steps.give_up", meanwhile)
    assert pipeline.train(context, trainer)
    thread.join()
    assert rolled_back == [3]
    assert on_disk(context) == by_rows(context) == [3, 4, 5]


def test_who_lost_the_lease_gives_up_nothing(make_context: Any, trainer: Trainer) -> None:
    context = make_context(keep_checkpoints=1)
    commit_steps(context, trainer, 4)
    with context.database.transaction() as tx:
        assert (
            heads.lock(tx, Claim("babylon-agent", "test:1", Lease("model/babylon-agent", 1)))
            is None
        )


@pytest.mark.parametrize("seed", range(4))
def test_random_histories(
    make_context: Callable[..., Context], trainer: Trainer, seed: int
) -> None:
    """Steps, publishing, rollbacks, the app's deployments and settings, in any order."""
    rng = random.Random(seed)
    context = make_context()
    for _ in range(25):
        event = rng.choice(["step", "step", "step", "publish", "roll back", "deploy"])
        if event == "step":
            settings = {
                "keep_checkpoints": rng.randint(1, 4),
                "keep_every": rng.choice([None, 2, 5]),
            }
            commit_steps(make_context(**settings), trainer, 1, publish=False)
        elif event == "publish":
            pipeline.publish(context)
        elif there := by_rows(context):
            step = rng.choice(there)
            if event == "roll back":
                query(context, "UPDATE rl.heads SET published_step = %s RETURNING 1", step)
            else:
                query(
                    context,
                    "UPDATE trained_models SET status = 'deployed' WHERE version ="
                    " (SELECT version FROM rl.steps WHERE step = %s) RETURNING 1",
                    step,
                )
        assert on_disk(context) == by_rows(context)
        wanted = query(
            context,
            "SELECT unnest(ARRAY[step, published_step]) AS step FROM rl.heads UNION"
            " SELECT step FROM rl.steps s JOIN trained_models m USING (version)"
            " WHERE m.status = 'deployed'",
        )
        assert {row["step"] for row in wanted} - {0} <= set(on_disk(context))


def test_a_window_of_a_removed_step_is_still_trained(make_context: Any, trainer: Trainer) -> None:
    context = make_context(keep_checkpoints=1)
    commit_steps(context, trainer, 4)
    assert pipeline.enqueue(context, hours_ago(2)).trained_step == 1
    assert pipeline.train(context, trainer) is None
