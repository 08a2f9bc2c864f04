"""A recipe: everything with which a step was made, as its row keeps it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from babylon_tasks.errors import UserError

Value = bool | int | float | str | None


class ParentStep(msgspec.Struct, frozen=True):
    """The step whose weights a step started from, and the lineage that has its row."""

    lineage: str
    step: int


class WindowRecipe(msgspec.Struct, frozen=True, omit_defaults=True):
    """One window of a step: whose scores were its rewards, and what of it was sent.

    `samples` is the start of the SHA-256 of its lines in the samples file, `calls` their number of
    LLM calls. `judge_model` and `rubric_hash` are None if no judge was asked.
    """

    window_id: str
    score_rev: int
    scorer: str
    calls: int
    samples: str
    judge_model: str | None = None
    rubric_hash: str | None = None


class SamplesRecipe(msgspec.Struct, frozen=True):
    """The samples file as the trainer got it; `sha256` is that of its bytes, in hexadecimal.

    `attached` counts the calls whose log-probabilities were a server's (`rl.logprobs`).
    """

    sha256: str
    trajectories: int
    calls: int
    attached: int


class Recipe(msgspec.Struct, frozen=True):
    """The recipe of one step.

    `parent` is the head at that time, None for the base model. `settings` has every setting that a
    lineage may override, as it was in force; `overrides` names those that were the lineage's own.
    `windows` are in the order in which they were sent. `packages` has versions by package name,
    `machine` what else of the trainer's surroundings may move a last bit.
    """

    lineage: str
    overrides: list[str]
    base_model: str
    base_revision: str | None
    parent: ParentStep | None
    seed: int
    trainer: str
    settings: dict[str, Value]
    windows: list[WindowRecipe]
    samples: SamplesRecipe
    device: str
    packages: dict[str, str]
    machine: dict[str, Value]

    def surroundings(self) -> dict[str, Value]:
        """Return what does not belong to the request, but may change the weights all the same."""
        return {
            "base_revision": self.base_revision,
            "device": self.device,
            **self.packages,
            **self.machine,
        }

    def to_compare(self) -> dict[str, Value]:
        """Return what two steps may have in common, by name: all but their own data and place."""
        scorers = {
            " ".join(filter(None, (w.scorer, w.judge_model, w.rubric_hash))) for w in self.windows
        }
        return {
            "base_model": self.base_model,
            "trainer": self.trainer,
            "scored_by": ", ".join(sorted(scorers)),
            **self.settings,
            **self.surroundings(),
        }


def read_recipe(row: Mapping[str, Any]) -> Recipe | None:
    """Return the recipe of a row; None if it has none, as release 0.1.0 made it.

    Raises:
        UserError: It was written by a newer release.
    """
    if not row:
        return None
    try:
        return msgspec.convert(row, Recipe)
    except msgspec.ValidationError as error:
        raise UserError(
            f"a recipe of another release cannot be read ({error}): upgrade this one"
        ) from None


def differences(a: Mapping[str, Value], b: Mapping[str, Value]) -> dict[str, tuple[Value, Value]]:
    """Return the keys whose values differ, and both values; a missing one counts as None."""
    keys = dict.fromkeys([*a, *b])
    return {key: (a.get(key), b.get(key)) for key in keys if a.get(key) != b.get(key)}
