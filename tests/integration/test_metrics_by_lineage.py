"""Every lineage of the database is served and counted under its own name."""

from __future__ import annotations

from babylon_tasks.records.steps import Trainer
from babylon_tasks.work.context import Context
from tests.rows import commit_steps, fork
from workers.watch.metrics import PipelineCollector


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
