"""Model versions `vMAJOR.MINOR.PATCH`, given out at the commit of a step."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime

_NUMBER = r"(0|[1-9][0-9]{0,5})"
_VERSION = re.compile(rf"v{_NUMBER}\.{_NUMBER}\.{_NUMBER}")
_SERVED = re.compile(r"(.+)@(0|[1-9][0-9]{0,8})")  # how the endpoint names a step


@dataclass(frozen=True, slots=True)
class Head:
    """The step that the lineage's next one starts from, and the one that serves.

    0 is the base model. `next_step` is the number of the next step: one above the highest. Since
    `promotion_paused_at` no new step comes to serve by itself.
    """

    step: int
    published_step: int
    base_model: str
    base_revision: str | None
    next_step: int
    promotion_paused_at: datetime | None = None


def parse_version(text: str) -> tuple[int, int, int] | None:
    """Return a version's three numbers, each of at most six digits; None for any other text."""
    match = _VERSION.fullmatch(text)
    return (int(match[1]), int(match[2]), int(match[3])) if match else None


def choose_version(requested: str | None, taken: Collection[str]) -> str:
    """Return the requested version if it is well formed and free, else the one after the highest.

    The next one counts up the last number only, as the app itself does.
    """
    if requested is not None and requested not in taken and parse_version(requested):
        return requested
    highest = max((v for v in map(parse_version, taken) if v), default=None)
    if highest is None:
        return "v1.0.0"
    major, minor, patch = highest
    while True:
        patch += 1
        version = f"v{major}.{minor}.{patch}"
        if version not in taken:
            return version


class Versions:
    """Finds the step of a version that a trace names.

    A trace names it `v1.0.3`, `{model_name}-v1.0.3`, or as the endpoint does: `{model_name}@3`.
    Step 0 is the base model, as it answers under the lineage's name.

    `steps` has the versions of the lineage, and of its ancestors up to the fork, by the lineage
    that made them. A version without a name is the lineage's own, where it has one.
    """

    def __init__(self, model_name: str, steps: Mapping[tuple[str, str], int]) -> None:
        self._model_name = model_name
        # The endpoint has an ancestor's steps under the lineage's own name too.
        self._served = {model_name: {0, *steps.values()}}
        for (name, _), step in steps.items():
            self._served.setdefault(name, {0}).add(step)
        self._names = {
            step: version if name == model_name else f"{name}-{version}"
            for (name, version), step in steps.items()
        }
        self._steps = {version: step for (_, version), step in steps.items()}
        self._steps |= {
            version: step for (name, version), step in steps.items() if name == model_name
        }
        self._steps |= {f"{name}-{version}": step for (name, version), step in steps.items()}

    def step_of(self, version: str | None) -> int | None:
        """Return the step of a version, or None if it is not recorded or of another lineage."""
        if version is None:
            return None
        step = self._steps.get(version)
        if step is None and (served := _SERVED.fullmatch(version)):
            number = int(served[2])
            return number if number in self._served.get(served[1], ()) else None
        return step

    def name_of(self, step: int) -> str:
        """Return the one name of a step of these, by whatever name a trace has it."""
        return self._names.get(step, f"{self._model_name}@{step}")


class Distances:
    """Counts the steps between any step of a lineage and its head.

    Args:
        parents: The parent of each step, 0 for those that start from the base model.
        head: The step that trains next.
    """

    def __init__(self, parents: Mapping[int, int], head: int) -> None:
        self._parents = parents
        way = [head]
        while way[-1]:
            way.append(parents.get(way[-1], 0))
        self._to_head = {step: distance for distance, step in enumerate(way)}

    def of(self, step: int) -> int:
        """Count the steps back to where the ways part, and from there to the head."""
        back = 0
        while step not in self._to_head:
            step = self._parents.get(step, 0)
            back += 1
        return back + self._to_head[step]
