"""Makes a committed step again from its recipe; nothing is written into database or store."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from babylon_tasks.checkpoints import files as checkpoint_files
from babylon_tasks.errors import CheckpointRemoved, UserError
from babylon_tasks.records.recipes import Recipe, Value, WindowRecipe, differences
from babylon_tasks.records.steps import Hyperparameters, StepRequest, StepResult, Trainer
from babylon_tasks.records.versions import Distances, Versions
from babylon_tasks.records.windows import Window
from babylon_tasks.settings import changed
from babylon_tasks.store import recipes, steps
from babylon_tasks.store import windows as window_rows
from babylon_tasks.store.database import Connection
from babylon_tasks.store.steps import Step
from babylon_tasks.training.recipe import digest_of, this_machine, with_result
from babylon_tasks.work import aio
from babylon_tasks.work.context import Context
from babylon_tasks.work.fleet import Fleet
from babylon_tasks.work.samples import Staleness, StepSamples, collect
from babylon_tasks.work.step_names import find_step

_NOT_AGAIN = {
    "serverless": "it was trained by W&B, which has no way to make a step again",
    "noop": "it was made with TRAINER=noop, which makes no weights",
}
_NAMED = 3  # windows that one line of error names


@dataclass(frozen=True, slots=True)
class ReplayOrder:
    """A step to make again; `parent` is None if it started from the base model.

    `context` is that of the lineage which has the step's row, with the settings of the recipe and
    its trainer.
    """

    context: Context
    step: Step
    recipe: Recipe
    parent: Step | None

    @property
    def name(self) -> str:
        """Name the step in a message."""
        return f"step {self.step.step} ({self.step.version}) of {self.step.model_name}"


@dataclass(frozen=True, slots=True)
class Replayed:
    """A step that was made again: the folders of its files, then and now.

    `surroundings` has what is other than then, by name: the values then and now.
    """

    result: StepResult
    files_then: Path
    files_now: Path
    surroundings: Mapping[str, tuple[Value, Value]]


def order_replay(fleet: Fleet, lineage: str | None, version_or_step: str) -> ReplayOrder:
    """Return the order to make a step again; without a lineage, one of MODEL_NAME's.

    Raises:
        UserError: There is no such step, or it cannot be made again: W&B or nobody trained it, it
            has no recipe, or its files or those of its parent are removed.
        ServerUnavailable: Postgres does not answer.
    """
    name = fleet.context(lineage).lineage.name
    with fleet.database.transaction() as tx:
        step = find_step(tx, name, version_or_step)
        if step is None:
            raise UserError("step 0 is the base model, which no recipe of ours made")
        recipe = recipes.read(tx, step)
        parent = _parent(tx, recipe)
    context = fleet.context(step.model_name)
    if recipe is None:
        raise UserError(
            f"step {step.step} ({step.version}) of {step.model_name} has no recipe: a worker of "
            "release 0.1.0 made it"
        )
    settings = {key.lower(): value for key, value in recipe.settings.items()}
    settings["trainer"] = recipe.trainer
    context = replace(context, settings=changed(context.settings, **settings))
    order = ReplayOrder(context, step, recipe, parent)
    if recipe.trainer in _NOT_AGAIN:
        raise UserError(f"{order.name} cannot be made again: {_NOT_AGAIN[recipe.trainer]}")
    step.files()
    if parent is not None:
        try:
            parent.files()
        except CheckpointRemoved as error:
            raise CheckpointRemoved(f"{order.name} cannot be made again: {error}") from None
    return order


def replay(order: ReplayOrder, trainer: Trainer, scratch: Path) -> Replayed:
    """Make a step again; the new files are in `scratch`.

    Raises:
        UserError: Its samples cannot be had again, the message says what of them changed; or this
            machine cannot train, or has another revision of the base model.
        Retryable, Final: The trainer failed, or a trace cannot be read.
        ServerUnavailable: Postgres does not answer.
    """
    recipe, parent = order.recipe, order.parent
    samples_path = scratch / "samples.jsonl"
    _require_same_samples(order, samples_path)
    files_then = checkpoint_files.open_local(order.step.files())
    request = StepRequest(
        model_name=recipe.lineage,
        base_model=recipe.base_model,
        parent=str(checkpoint_files.open_local(parent.files())) if parent else None,
        samples_path=str(samples_path),
        scratch_dir=str(scratch / "trainer"),
        output_dir=str(scratch / "checkpoint"),
        seed=recipe.seed,
        base_revision=recipe.base_revision,
        hyperparameters=recorded_hyperparameters(recipe, order.name),
    )
    result = trainer.step(request, lambda progress: None)
    now = with_result(msgspec.structs.replace(recipe, machine=this_machine()), result)
    return Replayed(
        result=result,
        files_then=files_then,
        files_now=Path(request.output_dir),
        surroundings=differences(recipe.surroundings(), now.surroundings()),
    )


def _parent(tx: Connection, recipe: Recipe | None) -> Step | None:
    if recipe is None or recipe.parent is None:
        return None
    parent = steps.read(tx, recipe.parent.lineage, recipe.parent.step)
    assert parent is not None  # no row is ever deleted
    return parent


def recorded_hyperparameters(recipe: Recipe, step: str) -> Hyperparameters:
    """Return what the trainer was told when the step of this name was made.

    Raises:
        UserError: This release does not know a value, or lacks one.
    """
    settings = recipe.settings
    # What a recipe of an earlier release lacks is as it was then: the struct's own default.
    names = [name for name in Hyperparameters.__struct_fields__ if name.upper() in settings]
    values = {name: settings[name.upper()] for name in names}
    try:
        return msgspec.convert(values, Hyperparameters)
    except msgspec.ValidationError as error:
        raise UserError(
            f"{step} cannot be made again by this release: in its recipe, {error}"
        ) from None


def _require_same_samples(order: ReplayOrder, path: Path) -> None:
    """Write the step's samples to `path`, as far as they can be had again.

    Raises:
        UserError: They are not those that the step was trained on.
    """
    recipe = order.recipe
    windows = _windows(order)
    samples = aio.run(collect(order.context, list(windows.values()), _staleness(order), path))
    digest = digest_of(path)
    if digest.sha256 == recipe.samples.sha256:
        return
    changes = [
        f"window {each.window_id} {_change(each, windows, samples)}"
        for each in recipe.windows
        if digest.windows.get(each.window_id) != each.samples
    ]
    if len(changes) > _NAMED:
        changes[_NAMED:] = [f"and {len(changes) - _NAMED} windows more"]
    if recipe.samples.attached:
        changes.append(
            f"{recipe.samples.attached} calls had log-probabilities from a server, which are not "
            "kept after a commit"
        )
    raise UserError(
        f"{order.name} cannot be made again, since its samples are not those of then: "
        + "; ".join(changes)
    )


def _windows(order: ReplayOrder) -> dict[str, Window]:
    """Return the rows of the step's windows in the step's order, with the scorers of then."""
    recipe, name = order.recipe, order.context.lineage.name
    with order.context.database.transaction() as tx:
        rows = window_rows.read(tx, name, [each.window_id for each in recipe.windows])
    by_id = {row.window_id: row for row in rows}
    return {
        each.window_id: replace(by_id[each.window_id], scorer=each.scorer)
        for each in recipe.windows
        if each.window_id in by_id
    }


def _staleness(order: ReplayOrder) -> Staleness:
    """Return the ages of calls as they were: versions that came later were not known."""
    name, head = order.context.lineage.name, order.parent.step if order.parent else 0
    with order.context.database.transaction() as tx:
        known = steps.steps_of_versions(tx, name)
        distances = Distances(steps.parents(tx, name), head)
    known = {version: step for version, step in known.items() if step < order.step.step}
    return Staleness(order.context.settings, Versions(name, known), distances)


def _change(then: WindowRecipe, windows: Mapping[str, Window], samples: StepSamples) -> str:
    """Complete the sentence "window … " by what is other than then."""
    window_id = then.window_id
    if window_id not in windows:
        return "has no row any more"
    for left_out in samples.left_out:
        if left_out.window.window_id == window_id:
            return left_out.no_signal or "has a trace that was rewritten after it was scored"
    if windows[window_id].score_rev != then.score_rev:
        return "was scored again"
    calls = samples.funnels[window_id]["sent"]
    if calls != then.calls:
        return f"has {calls} calls to train on, and had {then.calls}"
    return "has other scores or log-probabilities"
