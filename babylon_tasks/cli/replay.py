"""`babylon models replay`."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from babylon_tasks.cli.common import as_json, of_lineage, print_json, ready_fleet
from babylon_tasks.cli.progress_line import progress
from babylon_tasks.records.recipes import Value
from babylon_tasks.scratch import scratch as scratch_folder
from babylon_tasks.settings import load_settings
from babylon_tasks.training.replay import Replayed, ReplayOrder, order_replay
from babylon_tasks.training.replay import replay as make_again
from babylon_tasks.work.signals import interrupt

if TYPE_CHECKING:
    from workers.trainer.torch.difference import WeightDifference


@click.command()
@click.argument("version_or_step")
@of_lineage
@as_json
def replay(version_or_step: str, lineage: str | None, as_json: bool) -> None:
    """Make a step again from its recipe, and say how far the weights differ.

    It reads the same windows, scores and traces, starts from the same parent, and trains as the
    recipe says, whatever the settings are now. If the traces or scores have changed since, it says
    which and makes nothing. Neither the database nor CHECKPOINT_STORE is written. On a GPU that
    workers use it waits for its turn. It needs the extra `train`, and TRAIN_RL_LOCAL=true.

    Example: babylon models replay v1.0.3
    """
    settings = load_settings()
    settings.require_training_allowed()
    signal.signal(signal.SIGTERM, interrupt)
    order = order_replay(ready_fleet(settings), lineage, version_or_step)
    from workers.gpu import slots
    from workers.lifecycle import check_trainer

    check_trainer(order.context.settings)
    from workers.trainer.torch.difference import compare_adapters

    with (
        scratch_folder("replays") as scratch,
        contextlib.closing(slots.make_trainer(0, order.context.settings)) as trainer,
        progress(f"making {order.name} again", quiet=as_json),
    ):
        done = make_again(order, trainer, scratch)
        difference = compare_adapters(done.files_then, done.files_now)
    if as_json:
        print_json(_as_json(order, done, difference))
    else:
        _print(order, done, difference)


def _as_json(order: ReplayOrder, done: Replayed, difference: WeightDifference) -> dict[str, object]:
    return {
        "lineage": order.step.model_name,
        "step": order.step.step,
        "version": order.step.version,
        "samples": order.recipe.samples.sha256,
        "loss": _losses(order, done),
        "weights": {"equal": not difference.differing, **asdict(difference)},
        "surroundings": _pairs(done.surroundings),
    }


def _print(order: ReplayOrder, done: Replayed, difference: WeightDifference) -> None:
    recipe = order.recipe
    parent = f"step {recipe.parent.step} of {recipe.parent.lineage}" if recipe.parent else None
    click.echo(f"{order.name}, made again from {parent or 'the base model'}")
    click.echo(
        f"samples: the same, {recipe.samples.trajectories} trajectories of {len(recipe.windows)} "
        f"windows, sha256 {recipe.samples.sha256}"
    )
    then, now = _losses(order, done).values()
    click.echo(f"loss: {then} then, {now} now")
    if difference.differing:
        click.echo(
            f"weights: {difference.differing} of {difference.tensors} tensors differ, by at most "
            f"{difference.largest:.3g}; by {difference.largest_share:.3g} of the largest weight in "
            f"{difference.where}"
        )
    else:
        click.echo(f"weights: equal, all {difference.tensors} tensors")
    for name, (a, b) in done.surroundings.items():
        click.echo(f"{name}: {_text(a)} then, {_text(b)} now")


def _losses(order: ReplayOrder, done: Replayed) -> dict[str, float | None]:
    return {"then": order.step.metrics.get("loss"), "now": done.result.loss}


def _pairs(values: Mapping[str, tuple[Value, Value]]) -> dict[str, dict[str, Value]]:
    return {name: {"then": a, "now": b} for name, (a, b) in values.items()}


def _text(value: Value) -> str:
    return "not set" if value is None else str(value)
