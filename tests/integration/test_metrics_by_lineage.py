"""Every lineage of the database is served and counted under its own name."""

from __future__ import annotations

from babylon_tasks.records.lineages import Lineage
from babylon_tasks.records.steps import Trainer
from babylon_tasks.store import lineages
from babylon_tasks.work.context import Context
from babylon_tasks.work.fleet import Fleet
from tests.rows import commit_steps
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
