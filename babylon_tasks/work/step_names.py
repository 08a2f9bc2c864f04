"""The names of a step that a person types: its number, or its version."""

from __future__ import annotations

import re

from babylon_tasks.errors import UserError
from babylon_tasks.records.versions import Versions
from babylon_tasks.store import steps
from babylon_tasks.store.database import Connection
from babylon_tasks.store.steps import Step


def find_steps(tx: Connection, lineage_name: str, text: str) -> list[Step | None]:
    """Return the steps that a number, a version or a run of numbers such as 5-14 names.

    Raises:
        UserError: There is no such step.
    """
    run = re.fullmatch(r"([0-9]{1,9})-([0-9]{1,9})", text)
    if run is None:
        return [find_step(tx, lineage_name, text)]
    wanted = range(int(run[1]), int(run[2]) + 1)
    numbers = [each.step for each in steps.listing(tx, lineage_name) if each.step in wanted]
    if not numbers:
        raise UserError(f"{lineage_name} has no step from {run[1]} to {run[2]}")
    return [steps.read(tx, lineage_name, number) for number in numbers]


def find_step(tx: Connection, lineage_name: str, version_or_step: str) -> Step | None:
    """Return the step that a number or a version names; None for 0, the base model.

    A lineage has the steps of those that it was forked from, up to the fork.

    Raises:
        UserError: There is no such step.
    """
    if re.fullmatch(r"[0-9]{1,9}", version_or_step):  # what a column of steps can hold
        number: int | None = int(version_or_step)
    else:
        number = Versions(lineage_name, steps.steps_of_versions(tx, lineage_name)).step_of(
            version_or_step
        )
    if number == 0:
        return None
    step = steps.read(tx, lineage_name, number) if number is not None else None
    if step is None:
        raise UserError(
            f"{lineage_name} has no version or step {version_or_step!r}: "
            f"`babylon models list --lineage {lineage_name}` shows those there are"
        )
    return step
