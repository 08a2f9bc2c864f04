"""`babylon models show`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import click

from babylon_tasks.cli.common import as_json, of_lineage, print_json, ready_context, wide_console
from babylon_tasks.cli.exam_table import exam_table, looks_table
from babylon_tasks.cli.story import cell
from babylon_tasks.cockpit.versions import VersionStory, figures, read_version_story
from babylon_tasks.records.exams import Exam, ExamState
from babylon_tasks.records.experiments import Experiment
from babylon_tasks.settings import load_settings


@click.command()
@click.argument("version_or_step")
@of_lineage
@as_json
def show(version_or_step: str, lineage: str | None, as_json: bool) -> None:
    """Show one version: what trained it, its exam, and its experiment window by window.

    The exam's table has each figure of the version that served and of this one, their difference,
    and where it is with 95 % confidence; `samples` counts sampled answers, or as how many runs
    weighted ones count. The last column says by which this one is worse, or why a figure is left
    out.

    Example: babylon models show v1.0.14
    """
    context = ready_context(load_settings(), lineage)
    story = read_version_story(context, version_or_step)
    if as_json:
        print_json(figures(story))
        return
    for label, value in _facts(story):
        click.echo(f"{label:12} {value}")
    console = wide_console()
    if story.exam and story.exam.figures:
        console.print(exam_table(story.exam.figures))
    for experiment, looks in story.experiments:
        click.echo(f"{'experiment':12} {_experiment(experiment)}")
        if looks:
            console.print(looks_table(looks))


def _facts(story: VersionStory) -> Iterator[tuple[str, str]]:
    step = story.step
    yield "step", f"{step.step} ({step.version}) of {step.model_name}, after {step.parent_step}"
    yield "state", story.state
    yield "committed", f"{cell(step.committed_at)}, by the trainer {step.trainer}"
    yield (
        "trained on",
        f"{_windows(step.window_ids)}, {step.trajectories} runs, {step.trainable_tokens:,} tokens",
    )
    moved = {name: step.metrics.get(name) for name in ("loss", "policy_change", "reward_mean")}
    if known := cell(moved):
        yield "figures", known
    removed = "" if step.removed_at is None else f" (removed {cell(step.removed_at)})"
    yield "files", step.checkpoint + removed
    yield "exam", _exam(story.exam) if story.exam else "none"


def _exam(exam: Exam) -> str:
    beside = f"beside step {exam.served_step}"
    if exam.state == ExamState.OPEN or exam.decided_at is None:
        return f"begun {cell(exam.opened_at)}, {beside}; attempt {exam.attempts}"
    took = "" if exam.seconds is None else f", in {exam.seconds:.0f} s"
    return (
        f"{exam.state} {cell(exam.decided_at)}, {beside}, over {exam.trajectories} runs of "
        f"{_windows(exam.window_ids)}{took}: {exam.reason}"
    )


def _windows(ids: Sequence[str]) -> str:
    return "1 window" if len(ids) == 1 else f"{len(ids)} windows"


def _experiment(experiment: Experiment) -> str:
    how = experiment.state.replace("_", " ")
    until = f" until {cell(experiment.ended_at)}" if experiment.ended_at else ""
    return (
        f"{how}, {experiment.percent:g} % of the agents beside step {experiment.served_step}, from "
        f"window {experiment.first_window}{until}: {experiment.reason}"
    )
