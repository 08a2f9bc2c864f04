"""What changed between two steps, or between the heads of two lineages."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from babylon_tasks.records.lineages import Lineage
from babylon_tasks.records.recipes import Recipe, Value, differences
from babylon_tasks.records.versions import parse_version
from babylon_tasks.store import heads, recipes, step_paths
from babylon_tasks.store.database import Connection
from babylon_tasks.store.step_paths import PathStep
from babylon_tasks.store.steps import Step
from babylon_tasks.work.fleet import Fleet, read_lineage, unknown_lineage
from babylon_tasks.work.step_names import find_step

Pairs = Mapping[str, tuple[Value, Value]]


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two: a lineage, a step on its tree, and the way to it.

    `step` is None for the base model. `recipe` is None for that, and for a step of release 0.1.0.
    `path` begins with the step and ends with the first one after the base model.
    """

    lineage: Lineage
    head: int
    step: Step | None
    recipe: Recipe | None
    path: Sequence[PathStep]


@dataclass(frozen=True, slots=True)
class Data:
    """What one side was trained on after the common step; `windows` in the order of training."""

    steps: int
    windows: Sequence[str]
    trajectories: int
    trainable_tokens: int


@dataclass(frozen=True, slots=True)
class Diff:
    """Two sides, the last step that they share (None: no step), and what changed since.

    `recipe` is None if one of the two has none. `overrides` has what the lineages' own settings
    differ in, by the name of the setting.
    """

    a: Side
    b: Side
    common: PathStep | None
    recipe: Pairs | None
    overrides: Pairs
    data: tuple[Data, Data]
    metrics: Pairs


def read_diff(fleet: Fleet, a: str, b: str) -> Diff:
    """Compare two steps; each is STEP or VERSION of MODEL_NAME, NAME@STEP, or NAME for its head.

    Raises:
        UserError: There is no such step or lineage.
        ServerUnavailable: Postgres does not answer.
    """
    with fleet.database.transaction() as tx:
        one, other = _side(tx, fleet, a), _side(tx, fleet, b)
    common = _common(one.path, other.path)
    return Diff(
        one,
        other,
        common,
        _recipes(one, other),
        differences(one.lineage.config, other.lineage.config),
        (_data(one.path, common), _data(other.path, common)),
        _metrics(one.step, other.step),
    )


def _side(tx: Connection, fleet: Fleet, text: str) -> Side:
    lineage, version_or_step = _parse(tx, fleet, text)
    name = lineage.name
    row = heads.read(tx, name)
    head = row.step if row else 0
    step = find_step(tx, name, version_or_step or str(head))
    return Side(
        lineage,
        head,
        step,
        recipes.read(tx, step) if step else None,
        step_paths.read(tx, name, step.step) if step else [],
    )


def _parse(tx: Connection, fleet: Fleet, text: str) -> tuple[Lineage, str]:
    """Return the lineage that a text names, and its step or version; "": its head."""
    own = fleet.settings.model_name
    name, at, version_or_step = text.rpartition("@")
    if not at:
        is_lineage = not _is_step(text) and (text == own or read_lineage(tx, text) is not None)
        name, version_or_step = (text, "") if is_lineage else (own, text)
    lineage = read_lineage(tx, name)
    if lineage is None and name == own:
        lineage = Lineage.of_deployment(fleet.settings)
    if lineage is None:
        raise unknown_lineage(name)
    return lineage, version_or_step


def _is_step(text: str) -> bool:
    return re.fullmatch("[0-9]+", text) is not None or parse_version(text) is not None


def _common(a: Sequence[PathStep], b: Sequence[PathStep]) -> PathStep | None:
    on_b = {(step.model_name, step.step) for step in b}
    return next((step for step in a if (step.model_name, step.step) in on_b), None)


def _data(path: Sequence[PathStep], common: PathStep | None) -> Data:
    after = [step for step in path if common is None or step.step > common.step]
    return Data(
        steps=len(after),
        windows=[window_id for step in reversed(after) for window_id in step.window_ids],
        trajectories=sum(step.trajectories for step in after),
        trainable_tokens=sum(step.trainable_tokens for step in after),
    )


def _recipes(a: Side, b: Side) -> Pairs | None:
    if a.recipe is None or b.recipe is None:
        return None
    return differences(a.recipe.to_compare(), b.recipe.to_compare())


def _metrics(a: Step | None, b: Step | None) -> dict[str, tuple[Value, Value]]:
    """Return the metrics of both steps side by side, those that only one has too."""
    one, other = _numbers(a), _numbers(b)
    return {name: (one.get(name), other.get(name)) for name in sorted(one.keys() | other.keys())}


def _numbers(step: Step | None) -> dict[str, Any]:
    if step is None:
        return {}
    numbers = {k: v for k, v in step.metrics.items() if isinstance(v, int | float)}
    return {**numbers, "trainable_tokens": step.trainable_tokens}
