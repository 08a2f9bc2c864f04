"""Where each version of a lineage stands, and the story of one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import msgspec

from babylon_tasks.checkpoints.manifest import size_of
from babylon_tasks.errors import UserError
from babylon_tasks.evaluation.verdict import GUARDS
from babylon_tasks.records.exams import Exam, Figures
from babylon_tasks.records.experiments import Experiment, ExperimentLook
from babylon_tasks.records.recipes import Recipe, Value
from babylon_tasks.settings import Settings
from babylon_tasks.store import (
    exams,
    experiments,
    gates,
    heads,
    promotions,
    recipes,
    shares,
    steps,
)
from babylon_tasks.store.database import Connection
from babylon_tasks.store.promotions import Move
from babylon_tasks.store.shares import ShareListing
from babylon_tasks.store.steps import Step, StepListing
from babylon_tasks.work.context import Context
from babylon_tasks.work.step_names import find_step


@dataclass(frozen=True, slots=True)
class VersionStory:
    """All that the database knows about one step: what it was trained on, and whether it is better.

    `state` is as in `states`, or `inherited` for a step of the lineage that this one was forked
    from.
    """

    step: Step
    state: str
    exam: Exam | None
    experiments: Sequence[tuple[Experiment, Sequence[ExperimentLook]]]
    recipe: Recipe | None  # None: release 0.1.0 made the step
    size_bytes: int | None  # of its files; None if this machine does not have them
    serves_since: Move | None  # by what it came to serve, if it serves now
    share: ShareListing | None  # that it has now, or is to have


def states(tx: Connection, model_name: str, listed: Sequence[StepListing]) -> dict[int, str]:
    """Say in a word or two where each step stands: at the gate, and for those that serve or did."""
    head = heads.read(tx, model_name)
    at_the_gate = gates.step_states(tx, model_name)
    special = dict.fromkeys(shares.shared_steps(tx, model_name), "shared")
    special |= {step: state for step, state in at_the_gate.items() if state == "experiment"}
    special[promotions.previous_step(tx, model_name) or 0] = "previous"
    if head:
        newest = at_the_gate.get(head.step)
        special[head.step] = f"head, {newest}" if newest else "head"
        special[head.published_step] = "served"
    return {
        each.step: special.get(each.step) or _plain(each, at_the_gate.get(each.step))
        for each in listed
    }


def read_version_story(context: Context, version_or_step: str) -> VersionStory:
    """Read one step's story.

    Raises:
        UserError: There is no such step, or it is step 0.
        ServerUnavailable: Postgres does not answer.
    """
    name = context.lineage.name
    with context.database.transaction() as tx:
        step = find_step(tx, name, version_or_step)
        if step is None:
            raise UserError("step 0 is the base model, which was neither trained nor examined")
        exam = next(iter(exams.read(tx, step.model_name, [step.step])), None)
        state = state_of(tx, name, step)
        moved = promotions.last_move(tx, name)
        serves = state == "served" and moved is not None and moved.step == step.step
        return VersionStory(
            step=step,
            state=state,
            exam=replace(exam, figures=_in_order(exam.figures)) if exam else None,
            experiments=experiments.listing(tx, step.model_name, step.step),
            recipe=recipes.read(tx, step),
            size_bytes=None if step.removed_at else size_of(step.checkpoint),
            serves_since=moved if serves else None,
            share=next(
                (each for each in shares.in_force(tx, name) if each.step == step.step), None
            ),
        )


def state_of(tx: Connection, model_name: str, step: Step) -> str:
    """Say where a step of the lineage, or of one that it was forked from, stands."""
    if step.model_name != model_name:
        return "inherited"
    listed = [each for each in steps.listing(tx, model_name) if each.step == step.step]
    return states(tx, model_name, listed)[step.step]


def not_default(recipe: Recipe) -> dict[str, Value]:
    """Return the settings of a recipe whose values are not the defaults, by name."""
    defaults = {name.upper(): field.default for name, field in Settings.model_fields.items()}
    return {
        name: value
        for name, value in sorted(recipe.settings.items())
        if name not in defaults or value != defaults[name]
    }


def figures(story: VersionStory) -> dict[str, Any]:
    """Return the story for a program."""
    return {
        **asdict(story.step),
        "state": story.state,
        "exam": _exam(story.exam) if story.exam else None,
        "not_default": not_default(story.recipe) if story.recipe else None,
        "size_bytes": story.size_bytes,
        "serves_since": asdict(story.serves_since) if story.serves_since else None,
        "share": asdict(story.share) if story.share else None,
        "experiments": [
            {**asdict(experiment), "looks": [_look(look) for look in looks]}
            for experiment, looks in story.experiments
        ],
    }


def _plain(step: StepListing, at_the_gate: str | None) -> str:
    if step.removed_at:
        return "removed"
    if step.given_up_at:
        return at_the_gate if at_the_gate in ("failed", "rolled back") else "given up"
    return at_the_gate or "kept"


def _in_order(figures: Figures) -> Figures:
    """Return the figures as the guards come, then the others; Postgres keeps no order."""
    names = [*GUARDS, *figures]
    return {name: figures[name] for name in names if name in figures}


def _exam(exam: Exam) -> dict[str, Any]:
    figures = {name: msgspec.structs.asdict(each) for name, each in exam.figures.items()}
    return {**asdict(exam), "figures": figures}


def _look(look: ExperimentLook) -> dict[str, Any]:
    return {
        "window_id": look.window_id,
        "decision": look.decision,
        "at": look.at,
        "evidence": msgspec.to_builtins(look.evidence),
        "standing": msgspec.to_builtins(look.standing),
    }
