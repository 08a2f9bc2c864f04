"""Writes down with what a step is made: its recipe."""

from __future__ import annotations

import hashlib
import os
import platform
import re
from dataclasses import dataclass
from pathlib import Path

import msgspec

from babylon_tasks.records.recipes import (
    ParentStep,
    Recipe,
    SamplesRecipe,
    Value,
    WindowRecipe,
)
from babylon_tasks.records.recorded_steps import clean
from babylon_tasks.records.steps import Hyperparameters, StepRequest, StepResult
from babylon_tasks.settings import Settings
from babylon_tasks.settings.overrides import OVERRIDABLE
from babylon_tasks.store.steps import Step
from babylon_tasks.work.context import Context
from babylon_tasks.work.samples import StepSamples

_WINDOW_DIGITS = 16  # of a window's digest: they tell which window changed, and prove nothing

# What the address of a server may carry besides its place.
_SECRETS_OF_A_URL = re.compile(r"(?<=://)[^/?#]*@|[?#].*", re.DOTALL)


@dataclass(frozen=True, slots=True)
class SamplesDigest:
    """The SHA-256 of a samples file, and the first digits of that of each window's lines."""

    sha256: str
    windows: dict[str, str]


class _Line(msgspec.Struct):
    window_id: str


_line_decoder = msgspec.json.Decoder(_Line)


def hyperparameters_in_force(settings: Settings) -> Hyperparameters:
    """Return what of the settings a trainer is told."""
    return Hyperparameters(
        **{name: getattr(settings, name) for name in Hyperparameters.__struct_fields__}
    )


def recipe_of_request(
    context: Context, request: StepRequest, parent: Step | None, samples: StepSamples
) -> Recipe:
    """Return the recipe of a step that is about to be made; `with_result` completes it.

    Raises:
        OSError: The samples file cannot be read.
    """
    digest = digest_of(Path(request.samples_path))
    calls = {window_id: funnel["sent"] for window_id, funnel in samples.funnels.items()}
    windows = []
    for window in samples.windows:
        source = samples.sources[window.window_id]
        windows.append(
            WindowRecipe(
                window_id=window.window_id,
                score_rev=window.score_rev,
                scorer=source.scorer,
                calls=calls[window.window_id],
                samples=digest.windows[window.window_id],
                judge_model=source.judge_model,
                rubric_hash=source.rubric_hash,
            )
        )
    return Recipe(
        lineage=context.lineage.name,
        overrides=sorted(context.lineage.config),
        base_model=request.base_model,
        base_revision=request.base_revision,
        parent=ParentStep(parent.model_name, parent.step) if parent else None,
        seed=request.seed,
        trainer=context.settings.trainer,
        settings=settings_in_force(context.settings),
        windows=windows,
        samples=SamplesRecipe(
            sha256=digest.sha256,
            trajectories=len(samples.rewards),
            calls=sum(calls[window.window_id] for window in samples.windows),
            attached=sum(samples.attached[window.window_id] for window in samples.windows),
        ),
        device="",
        packages={},
        machine=this_machine(),
    )


def with_result(recipe: Recipe, result: StepResult) -> Recipe:
    """Complete a recipe by what only the trainer knows."""
    return msgspec.structs.replace(
        recipe,
        base_revision=result.base_revision or recipe.base_revision,
        device=result.device,
        packages=result.packages,
    )


def digest_of(path: Path) -> SamplesDigest:
    """Return the digest of a samples file, in which a window's lines stand together.

    Raises:
        OSError: It cannot be read.
    """
    whole = hashlib.sha256()
    windows: dict[str, hashlib._Hash] = {}
    with path.open("rb") as lines:
        for line in lines:
            whole.update(line)
            window_id = _line_decoder.decode(line).window_id
            windows.setdefault(window_id, hashlib.sha256()).update(line)
    return SamplesDigest(
        whole.hexdigest(),
        {window_id: each.hexdigest()[:_WINDOW_DIGITS] for window_id, each in windows.items()},
    )


def settings_in_force(settings: Settings) -> dict[str, Value]:
    """Return every setting that a lineage may override, by its name in capitals.

    The address of a server is kept without what may be a key in it.
    """
    values = settings.model_dump(mode="json", include=set(OVERRIDABLE))
    return {name.upper(): _without_secrets(values[name]) for name in sorted(values)}


def this_machine() -> dict[str, Value]:
    """Return what of this machine, which the trainer process shares, may move a last bit."""
    threads = os.environ.get("OMP_NUM_THREADS")
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "OMP_NUM_THREADS": clean(threads) if threads else None,
    }


def _without_secrets(value: Value) -> Value:
    if not isinstance(value, str) or not re.match(r"https?://", value):
        return value
    return _SECRETS_OF_A_URL.sub("", value)
