"""Every lineage of the database is served and counted under its own name."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from babylon_tasks import pipeline
from babylon_tasks.errors import CheckpointUnreadable, ServerUnavailable
from babylon_tasks.records.lineages import Lineage
from babylon_tasks.records.steps import Trainer
from babylon_tasks.store import lineages
from babylon_tasks.work.context import Context
from babylon_tasks.work.fleet import Fleet
from tests.outage import Outage
from tests.rows import commit_steps
from workers.serve import versions
from workers.serve.versions import ServedModels
from workers.watch.metrics import PipelineCollector


def fleet_of(context: Context) -> Fleet:
    fleet = Fleet(context.database, context.settings, context.holder)
    fleet.active()
    return fleet


def fork(context: Context, name: str, step: int) -> Context:
    """A fork of MODEL_NAME's lineage at that step."""
    fleet = fleet_of(context)
    with context.database.transaction() as tx:
        assert lineages.create(
            tx,
            Lineage(
                name,
                context.lineage.base_model,
                primary=False,
                forked_from=context.lineage.name,
                forked_step=step,
                created_by="test",
            ),
        )
    return fleet.context(name)


def test_a_fork_serves_its_ancestors_steps_under_its_own_name(
    context: Context, trainer: Trainer
) -> None:
    commit_steps(context, trainer, 3)
    forked = fork(context, "fork", 2)
    models = ServedModels(context.settings)
    assert models.names() == ["babylon-agent", "babylon-agent@3", "fork", "fork@2"]
    parent = models.resolve("babylon-agent@2")
    assert parent is not None
    assert models.resolve("fork") == models.resolve("fork@2") == parent
    assert models.resolve("fork@3") is None

    # What the parent trained after the fork trains the fork as well.
    windows = pipeline.produce(forked)
    pipeline.score(forked)
    report = pipeline.train(forked, trainer)
    assert report is not None
    assert (report.step, report.window_ids) == (3, windows)
    assert len(windows) == 1
    pipeline.publish(forked)
    served, other = models.resolve("fork"), models.resolve("babylon-agent@3")
    assert served
    assert other
    assert (served.step, served.adapter) == (3, Path(report.checkpoint))
    assert served.adapter != other.adapter


def test_an_unknown_lineage_is_no_model(context: Context) -> None:
    models = ServedModels(context.settings)
    assert models.resolve("nobody") is None
    assert models.resolve("nobody@1") is None
    assert models.resolve("babylon-agent") is not None


def test_metrics_name_the_lineage(context: Context, trainer: Trainer) -> None:
    commit_steps(context, trainer, 2)
    fork(context, "fork", 1)
    values = {
        (metric.name, *sample.labels.values()): sample.value
        for metric in PipelineCollector(context.settings)._postgres()
        for sample in metric.samples
    }
    assert values["babylon_step", "babylon-agent", "newest"] == 2
    assert values["babylon_step", "fork", "published"] == 1
    assert values["babylon_windows", "babylon-agent", "trained"] == 2
    assert values["babylon_windows", "fork", "trained"] == 1


def test_what_was_served_is_served_while_postgres_is_away(
    context: Context,
    trainer: Trainer,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Every name that was asked for before; the log says how old the answer is."""
    commit_steps(context, trainer, 2)
    models = ServedModels(context.settings)
    names = ("babylon-agent", "babylon-agent@1")
    before = [models.resolve(name) for name in names]
    listed = models.names()
    outage = Outage(context, None)
    outage.begin()
    assert [models.resolve(name) for name in names] == before
    assert models.names() == listed
    with pytest.raises(ServerUnavailable):
        models.resolve("babylon-agent@2")
    assert re.search(r"babylon-agent is answered as it was \d+ s ago: \w", caplog.text)
    assert caplog.text.count("is answered as it was") == 1
    outage.end()
    commit_steps(context, trainer, 1)
    monkeypatch.setattr(models._memory, "_ask_at", 0.0)  # ten seconds later
    served = models.resolve("babylon-agent")
    assert served
    assert served.step == 3


def test_postgres_is_not_asked_at_each_request_while_it_is_away(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over a network that was cut each question costs seconds."""
    models = ServedModels(context.settings)
    models.resolve("babylon-agent")
    outage = Outage(context, None)
    outage.begin()
    models.resolve("babylon-agent")
    monkeypatch.setattr(models._memory, "_database", None)
    assert models.resolve("babylon-agent")
    outage.end()
    assert versions._AWAY_SECONDS >= 5


def test_a_model_in_memory_needs_no_store(context: Context, trainer: Trainer) -> None:
    """The folder that is given is the engine's name for what it holds."""
    commit_steps(context, trainer, 2)
    models = ServedModels(context.settings)
    served = models.resolve("babylon-agent@1")
    assert served
    shutil.rmtree(context.settings.checkpoint_store)
    assert models.resolve("babylon-agent@1") == served
    with pytest.raises(CheckpointUnreadable):
        models.resolve("babylon-agent@2")
