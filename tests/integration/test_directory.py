"""What a name stands for, by the rows of a real database."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("starlette")

from babylon_tasks import pipeline
from babylon_tasks.errors import ServerUnavailable
from babylon_tasks.records.lineages import Lineage
from babylon_tasks.records.steps import Trainer
from babylon_tasks.store import serving, shares
from babylon_tasks.work.context import Context
from tests.clock import move_clock
from tests.outage import Outage
from tests.rows import commit_steps, fork, query
from workers.serve import directory
from workers.serve.backend import ApiError, Version
from workers.serve.directory import Directory


def read(context: Context, before: Directory | None = None) -> Directory:
    own = Lineage.of_deployment(context.settings)
    with context.database.transaction() as tx:
        return directory.read(tx, own, before or Directory())


def find(context: Context, name: str, agent: str | None = None) -> Version:
    return read(context).find(name, agent)


def test_before_its_first_step_a_lineage_answers_with_its_base_model(context: Context) -> None:
    found = find(context, "babylon-agent")
    assert (found.step, found.base_model) == (0, context.settings.base_model)
    assert found.checkpoint is None
    assert read(context).names() == ["babylon-agent", "babylon-agent@0"]


def test_each_version_has_two_names(context: Context, trainer: Trainer) -> None:
    commit_steps(context, trainer, 2)
    newest = find(context, "babylon-agent")
    assert newest == find(context, "babylon-agent@2") == find(context, "babylon-agent-v1.0.1")
    assert newest.checkpoint
    assert Path(newest.checkpoint).is_dir()
    assert find(context, "babylon-agent@0").step == 0
    assert read(context).names() == [
        "babylon-agent",
        "babylon-agent@2",
        "babylon-agent-v1.0.1",
        "babylon-agent@1",
        "babylon-agent-v1.0.0",
        "babylon-agent@0",
    ]


@pytest.mark.parametrize("name", ["nobody", "nobody@1", "babylon-agent@2", "babylon-agent-v1.0.1"])
def test_an_unknown_name_is_no_model(context: Context, trainer: Trainer, name: str) -> None:
    commit_steps(context, trainer, 1)
    with pytest.raises(ApiError) as caught:
        find(context, name)
    assert (caught.value.status, caught.value.param) == (404, "model")


def test_a_step_whose_files_were_removed_says_since_when(
    context: Context, trainer: Trainer
) -> None:
    commit_steps(context, trainer, 2)
    query(context, "UPDATE rl.steps SET removed_at = '2026-11-01Z' WHERE step = 1 RETURNING 1")
    with pytest.raises(ApiError, match=r"removed on 2026-11-01.*KEEP_CHECKPOINTS"):
        find(context, "babylon-agent@1")
    assert "babylon-agent@1" not in read(context).names()


def test_a_fork_answers_with_its_ancestors_steps_under_its_own_name(
    context: Context, trainer: Trainer
) -> None:
    """By their numbers alone: the fork gives out the same versions again."""
    commit_steps(context, trainer, 3)
    forked = fork(context, "fork", 2)
    assert find(context, "fork") == find(context, "fork@2")
    assert find(context, "fork@2").checkpoint == find(context, "babylon-agent@2").checkpoint
    with pytest.raises(ApiError):
        find(context, "fork@3")
    pipeline.produce(forked)
    pipeline.score(forked)
    report = pipeline.train(forked, trainer)
    assert report is not None
    pipeline.publish(forked)
    assert find(context, "fork").checkpoint == report.checkpoint
    assert find(context, f"fork-{report.version}").step == 3
    assert find(context, "babylon-agent@3").checkpoint != report.checkpoint
    names = [name for name in read(context).names() if name.startswith("fork")]
    of_its_own = ["fork", "fork@3", f"fork-{report.version}"]
    assert names == [*of_its_own, "fork@2", "fork@1", "fork@0"]  # each once


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The lineages whose steps were read."""
    names: list[str] = []
    original = serving.steps_to_serve

    def steps_to_serve(tx: object, name: str) -> object:
        names.append(name)
        return original(tx, name)  # type: ignore[arg-type]

    monkeypatch.setattr(serving, "steps_to_serve", steps_to_serve)
    return names


def test_steps_are_read_again_only_when_they_changed(
    context: Context, trainer: Trainer, counted: list[str]
) -> None:
    commit_steps(context, trainer, 2)
    fork(context, "fork", 1)
    seen = read(context)
    assert sorted(counted) == ["babylon-agent", "fork"]
    query(context, "UPDATE rl.heads SET published_step = 1 WHERE step = 2 RETURNING 1")
    seen = read(context, seen)
    assert seen.find("babylon-agent", None).step == 1
    assert len(counted) == 2
    commit_steps(context, trainer, 1)
    assert read(context, seen).find("babylon-agent", None).step == 3
    assert sorted(counted[2:]) == ["babylon-agent", "fork"]


def test_a_share_takes_its_agents(context: Context, trainer: Trainer) -> None:
    commit_steps(context, trainer, 3)
    query(
        context,
        """INSERT INTO rl.shares (model_name, starts_at, step, percent, holder, why, at)
           VALUES ('babylon-agent', rl.now() - interval '1 minute', 1, 30, 'me', 'x', rl.now()),
                  ('babylon-agent', rl.now() + interval '1 hour', 1, 100, 'me', 'x', rl.now())
           RETURNING 1""",
    )
    now = read(context)
    steps = [now.find("babylon-agent", f"agent-{number}").step for number in range(300)]
    assert set(steps) == {1, 3}
    assert 50 < steps.count(1) < 130
    assert now.find("babylon-agent", None).step == 3
    assert now.find("babylon-agent@3", "agent-1").step == 3


def test_a_drawn_share_takes_other_agents_in_each_window(
    context: Context, trainer: Trainer
) -> None:
    """Two replicas that read at different times agree."""
    commit_steps(context, trainer, 2)
    with context.database.transaction() as tx:
        shares.start(tx, "babylon-agent", 1, 40, ("me", "x"), "experiment-3")

    def taken(replica: Directory) -> set[int]:
        return {n for n in range(300) if replica.find("babylon-agent", f"agent-{n}").step == 1}

    assert taken(read(context)) == set()
    move_clock(context, 3600)
    first = read(context)
    chosen = taken(first)
    assert 80 < len(chosen) < 160
    assert chosen == taken(read(context, first))
    move_clock(context, 3600)
    later = taken(read(context))
    assert 80 < len(later) < 160
    assert 20 < len(chosen & later) < 90


def test_postgres_away_is_said(context: Context) -> None:
    outage = Outage(context, None)
    outage.begin()
    with pytest.raises(ServerUnavailable):
        read(context)
    outage.end()
