"""What a person does to lineages: create, fork, override, pause, resume, retire."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from babylon_tasks.errors import UserError
from babylon_tasks.records.lineages import Lineage, LineageState
from babylon_tasks.records.windows import State
from babylon_tasks.settings import changed
from babylon_tasks.settings.lineage import LINEAGE_NAME
from babylon_tasks.settings.overrides import (
    FIXED_BY_FIRST_STEP,
    parse_overrides,
    with_overrides,
)
from babylon_tasks.store import heads, leases, lineages, steps
from babylon_tasks.store import windows as window_rows
from babylon_tasks.store.database import Connection
from babylon_tasks.store.steps import Step
from babylon_tasks.work.fleet import Fleet, read_lineage, unknown_lineage
from babylon_tasks.work.step_names import find_step


@dataclass(frozen=True, slots=True)
class Fork:
    """A new fork; `version` is None if it starts from the base model.

    `inherited_windows` trained the steps on the way to its first one, and do not train it again.
    """

    lineage: Lineage
    version: str | None
    inherited_windows: int


@dataclass(frozen=True, slots=True)
class Overridden:
    """A lineage with its new overrides; `taken_over`: from now on every worker serves it."""

    lineage: Lineage
    taken_over: bool


@dataclass(frozen=True, slots=True)
class StateChange:
    """A lineage in its new state, and who trains a step of it at this moment."""

    lineage: Lineage
    was: LineageState
    trained_by: str | None


def create(
    fleet: Fleet,
    name: str,
    base_model: str | None,
    base_revision: str | None,
    pairs: Sequence[str],
) -> Lineage:
    """Create a lineage; without a base model it starts from that of BASE_MODEL.

    Raises:
        UserError: The name is taken or malformed, or a value is out of range.
    """
    _require_free_name(fleet, name)
    if base_model is None:
        base_revision = base_revision or fleet.settings.base_model_revision
    settings = changed(
        fleet.settings,
        base_model=fleet.settings.base_model if base_model is None else base_model,
        base_model_revision=base_revision,
    )
    config = _merged({}, parse_overrides(pairs))
    with_overrides(fleet.settings, config)
    new = Lineage(
        name,
        settings.base_model,
        primary=False,
        base_revision=settings.base_model_revision,
        config=config,
        created_by=fleet.holder,
    )
    with fleet.database.transaction() as tx:
        _create(tx, new)
    return new


def fork(fleet: Fleet, origin: str, name: str, pairs: Sequence[str]) -> Fork:
    """Create a lineage that goes on from a step of another one; `origin` is NAME or NAME@STEP.

    It has the other one's base model and its overrides, with those of `pairs` in their place. The
    files of the step stay as long as the fork is not retired.

    Raises:
        UserError: There is no such step, its files are gone or at W&B, the name is taken or
            malformed, or a value is out of range.
    """
    _require_free_name(fleet, name)
    overrides = parse_overrides(pairs)
    parent_name, at, version_or_step = origin.partition("@")
    with fleet.database.transaction() as tx:
        parent = _read(tx, fleet, parent_name)
        step = _step_to_fork(tx, parent.name, version_or_step if at else None)
        config = _merged(parent.config, overrides)
        _require_may_override(parent.name, overrides, has_step=step is not None)
        with_overrides(fleet.settings, config)
        new = Lineage(
            name,
            parent.base_model,
            primary=False,
            base_revision=parent.base_revision,
            forked_from=parent.name,
            forked_step=step.step if step else 0,
            config=config,
            created_by=fleet.holder,
        )
        _create(tx, new)
        inherited = window_rows.count_states(tx, name)[State.TRAINED]
    return Fork(new, step.version if step else None, inherited)


def override(fleet: Fleet, name: str, pairs: Sequence[str]) -> Overridden:
    """Change the overrides of a lineage; an empty value removes one.

    Raises:
        UserError: There is no such lineage, it is retired, or a value is out of range.
    """
    overrides = parse_overrides(pairs)
    with fleet.database.transaction() as tx:
        row = _lock(tx, fleet, name)
        row.require_not_retired()
        has_step = bool(row.forked_step) or lineages.has_own_step(tx, name)
        _require_may_override(name, overrides, has_step)
        config = _merged(row.config, overrides)
        with_overrides(fleet.settings, config)
        new = replace(row, config=config)
        taken_over = row.own_settings and name != fleet.settings.model_name
        if taken_over:
            new = replace(new, own_settings=False, primary=False)
        lineages.change(tx, new, fleet.holder)
    return Overridden(new, taken_over)


def change_state(fleet: Fleet, name: str, state: LineageState) -> StateChange:
    """Pause, resume or retire a lineage; do nothing if it is in that state.

    A step that trains at this moment is committed. After it none begins, unless it is resumed.

    Raises:
        UserError: There is no such lineage, it is retired already, or it is that of MODEL_NAME,
            which cannot be retired.
    """
    with fleet.database.transaction() as tx:
        heads.hold(tx, name)  # before the lineage, as everybody does
        row = _lock(tx, fleet, name)
        if state == LineageState.RETIRED and name == fleet.settings.model_name:
            raise UserError(
                f"{name} is the lineage of MODEL_NAME, which cannot be retired: "
                f"`babylon lineages pause {name}`"
            )
        if state != row.state:
            row.require_not_retired()
            lineages.change(tx, replace(row, state=state), fleet.holder)
        # Whoever claims the lineage waits for this row, or had its lease before.
        trained_by = leases.holder(tx, f"model/{name}")
    return StateChange(replace(row, state=state), row.state, trained_by)


def _create(tx: Connection, new: Lineage) -> None:
    if not lineages.create(tx, new):
        raise UserError(f"the name {new.name} is taken: choose another one for the new lineage")


def _step_to_fork(tx: Connection, parent_name: str, version_or_step: str | None) -> Step | None:
    """Return the step to fork, whose files stay from now on; None for the base model.

    Raises:
        UserError: There is no such step, or its files are gone or at W&B.
    """
    if version_or_step is None:
        head = heads.read(tx, parent_name)
        version_or_step = str(head.step if head else 0)
    step = find_step(tx, parent_name, version_or_step)
    if step is None:
        return None
    heads.share(tx, step.model_name)
    step = steps.read(tx, parent_name, step.step)
    assert step is not None
    step.files()
    if step.trainer == "serverless":
        raise UserError(
            f"step {step.step} of {parent_name} is at W&B, where only its own model goes on from "
            f"it: fork {parent_name}@0, the base model, or a lineage that is trained here"
        )
    return step


def _read(tx: Connection, fleet: Fleet, name: str) -> Lineage:
    """Return a lineage's row; MODEL_NAME has one from now on.

    Raises:
        UserError: There is no such lineage.
    """
    row = read_lineage(tx, name)
    if row is None and name == fleet.settings.model_name:
        lineages.ensure(tx, fleet.settings, fleet.holder)
        row = read_lineage(tx, name)
    if row is None:
        raise unknown_lineage(name)
    return row


def _lock(tx: Connection, fleet: Fleet, name: str) -> Lineage:
    _read(tx, fleet, name)
    row = lineages.lock(tx, name)
    assert row is not None  # no row is ever deleted
    return row


def _merged(config: Mapping[str, str], overrides: Mapping[str, str]) -> dict[str, str]:
    """Return the overrides of a row after these changes."""
    return {key: value for key, value in {**config, **overrides}.items() if value}


def _require_free_name(fleet: Fleet, name: str) -> None:
    """Require a well-formed name that is not MODEL_NAME's."""
    if not re.fullmatch(LINEAGE_NAME, name):
        raise UserError(
            "a lineage's name has 1 to 64 letters, digits, dots, dashes and underscores, and "
            "begins with a letter or a digit"
        )
    if name == fleet.settings.model_name:
        raise UserError(f"{name} is the lineage of MODEL_NAME, which exists without being created")


def _require_may_override(name: str, overrides: Mapping[str, str], has_step: bool) -> None:
    fixed = sorted(FIXED_BY_FIRST_STEP & overrides.keys())
    if fixed and has_step:
        raise UserError(
            f"{fixed[0]} is the shape of the weights of {name}, and fixed by its first step: fork "
            f"{name}@0 to start again from the base model"
        )
