"""Every lineage of the database is served and counted under its own name."""

from __future__ import annotations

from pathlib import Path

from babylon_tasks import pipeline
from babylon_tasks.records.lineages import Lineage
from babylon_tasks.records.steps import Trainer
from babylon_tasks.store import lineages
from babylon_tasks.work.context import Context
from babylon_tasks.work.fleet import Fleet
from tests.rows import commit_steps
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
