"""`babylon models show`."""

from __future__ import annotations

from collections.abc import Iterator

import click

from babylon_tasks.cli.common import as_json, of_lineage, print_json, ready_context, wide_console
from babylon_tasks.cli.exam_table import exam_table, looks_table
from babylon_tasks.cli.lines import tokens_line
from babylon_tasks.cli.screen import Line, Section, colour_wanted, dollars, moment, under, write
from babylon_tasks.cockpit.versions import (
    VersionStory,
    figures,
    not_default,
    read_version_story,
)
from babylon_tasks.records.exams import Exam, ExamState
from babylon_tasks.records.experiments import Experiment
from babylon_tasks.records.recipes import Recipe
from babylon_tasks.settings import load_settings
from babylon_tasks.store.steps import Step
from babylon_tasks.words import counted, size


@click.command()
@click.argument("version_or_step")
@of_lineage
@as_json
def show(version_or_step: str, lineage: str | None, as_json: bool) -> None:
    """Show one version: what made it and how, its files, whom it serves, its exam, its experiment.

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
    click.echo(write(_sections(story), colour_wanted()))
    console = wide_console()
    if story.exam and story.exam.figures:
        console.print(exam_table(story.exam.figures))
    for experiment, looks in story.experiments:
        lines = [Line("", _experiment(experiment))]
        click.echo(write([Section("Experiment", lines)], colour_wanted()))
        if looks:
            console.print(looks_table(looks))


def _sections(story: VersionStory) -> list[Section]:
    step = story.step
    title = f"step {step.step} ({step.version}) of {step.model_name}: {story.state}"
    exam = _exam(story.exam) if story.exam else "none"
    parts = [
        ("Made", _made(story)),
        ("Recipe", _recipe(story.recipe)),
        ("What came of it", _outcome(step)),
        ("Serving", _serving(story)),
        ("Exam", [Line("", exam)]),
    ]
    return under(title, parts)


def _made(story: VersionStory) -> Iterator[Line]:
    step = story.step
    yield Line("after", f"step {step.parent_step}" if step.parent_step else "the base model")
    yield Line("by", f"the trainer {step.trainer}, committed {moment(step.committed_at)}")
    first, last = min(step.window_ids), max(step.window_ids)
    which = first if first == last else f"{first} to {last}"
    yield Line(
        "on",
        f"{counted(len(step.window_ids), 'window')} ({which}), {counted(step.trajectories, 'run')}",
    )
    if step.removed_at is not None:
        yield Line("files", f"removed {moment(step.removed_at)}")
    else:
        yield Line("files", step.checkpoint, whole=True)
        if story.size_bytes is not None:
            yield Line("", size(story.size_bytes))
    if step.given_up_at is not None:
        yield Line("given up", moment(step.given_up_at), bad=True)


def _recipe(recipe: Recipe | None) -> Iterator[Line]:
    if recipe is None:
        yield Line("", "not known: an earlier release made this step")
        return
    revision = f" at {recipe.base_revision}" if recipe.base_revision else ""
    yield Line("base model", recipe.base_model + revision)
    yield Line("seed", f"{recipe.seed}, on {recipe.device}")
    scorers = sorted({window.scorer for window in recipe.windows})
    yield Line("scored by", ", ".join(scorers))
    own = set(recipe.overrides)
    pairs = [
        f"{name}={value}{' (its own)' if name in own else ''}"
        for name, value in not_default(recipe).items()
    ]
    yield Line("settings", ", ".join(pairs) or "all are the defaults")


def _outcome(step: Step) -> Iterator[Line]:
    phases = sorted(step.seconds.items(), key=lambda each: -each[1])
    said = ", ".join(f"{name.replace('_', ' ')} {seconds:.1f}" for name, seconds in phases)
    yield Line("seconds", f"{sum(step.seconds.values()):.1f} s in all: {said}")
    yield tokens_line(
        step.metrics.get("context_tokens"),
        step.trainable_tokens,
        step.tokens_per_second,
        step.mfu,
        step.gpu_seconds,
    )
    words = {"loss": "loss", "policy_change": "policy change in nats an answer",
             "reward_mean": "mean reward", "kl": "KL a token in nats"}  # fmt: skip
    known = [
        f"{text} {step.metrics[name]:.4g}"
        for name, text in words.items()
        if step.metrics.get(name) is not None
    ]
    yield Line("figures", "; ".join(known) or "none")
    if step.peak_memory_bytes:
        yield Line("memory", f"{size(step.peak_memory_bytes)} at the peak")
    cost = "price not known" if step.cost_usd is None else dollars(float(step.cost_usd))
    if step.gpu_seconds or step.cost_usd is not None:
        yield Line("GPU", f"{step.gpu_seconds:.0f} s, {cost}")


def _serving(story: VersionStory) -> Iterator[Line]:
    since, share = story.serves_since, story.share
    if since is not None:
        how = f"{since.kind}, {since.holder}: {since.why}"
        yield Line("serves", f"since {moment(since.at)}; {how}")
    elif story.state == "served":
        yield Line("serves", "the lineage's name answers with it")
    if share is not None:
        until = f" until {moment(share.ends_at)}" if share.ends_at else ""
        who = f"{share.holder}: {share.why}"
        yield Line(
            "shares",
            f"{share.percent:g} % of the agents from {moment(share.starts_at)}{until}; {who}",
        )
    if since is None and share is None and story.state != "served":
        yield Line("", "it does not serve now")


def _exam(exam: Exam) -> str:
    beside = f"beside step {exam.served_step}"
    if exam.state == ExamState.OPEN or exam.decided_at is None:
        return f"begun {moment(exam.opened_at)}, {beside}; attempt {exam.attempts}"
    took = "" if exam.seconds is None else f", in {exam.seconds:.0f} s"
    return (
        f"{exam.state} {moment(exam.decided_at)}, {beside}, over {exam.trajectories} runs of "
        f"{counted(len(exam.window_ids), 'window')}{took}: {exam.reason}"
    )


def _experiment(experiment: Experiment) -> str:
    how = experiment.state.replace("_", " ")
    until = f" until {moment(experiment.ended_at)}" if experiment.ended_at else ""
    return (
        f"{how}, {experiment.percent:g} % of the agents beside step {experiment.served_step}, from "
        f"window {experiment.first_window}{until}: {experiment.reason}"
    )
