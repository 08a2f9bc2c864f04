"""The screen of `babylon lineages show`: where a lineage stands, and its last steps."""

from __future__ import annotations

from collections.abc import Iterator

from babylon_tasks.cli.lines import gate_lines
from babylon_tasks.cli.screen import Line, Section, moment, under
from babylon_tasks.cockpit.lineages import LineageStory
from babylon_tasks.records.lineages import Lineage
from babylon_tasks.records.windows import State
from babylon_tasks.store.steps import StepListing
from babylon_tasks.words import counted, loss_text

_MOST = 10  # resets, forks and pieces of work


def sections(story: LineageStory) -> list[Section]:
    """Return all sections of a lineage."""
    lineage = story.lineage
    primary = ", the primary one" if lineage.primary else ""
    title = f"{lineage.name}: {lineage.state}{primary}"
    parts = [
        ("Start", _start(lineage)),
        ("Now", _now(story)),
        ("Serving", _serving(story)),
        ("Last steps", (_step(story, each) for each in story.steps)),
        ("Forks", _forks(story)),
        ("Resets", _resets(story)),
    ]
    return under(title, parts)


def own_settings(lineage: Lineage) -> str:
    """Write the overrides of a lineage."""
    pairs = ", ".join(f"{key}={value}" for key, value in sorted(lineage.config.items()))
    return pairs or "no setting of its own"


def _start(lineage: Lineage) -> Iterator[Line]:
    revision = f" at {lineage.base_revision}" if lineage.base_revision else ""
    yield Line("base model", lineage.base_model + revision)
    if lineage.forked_from is not None:
        yield Line("forked from", f"step {lineage.forked_step} of {lineage.forked_from}")
    yield Line("overrides", own_settings(lineage))
    if lineage.own_settings:
        yield Line("", f"served by workers with MODEL_NAME={lineage.name} alone, by their settings")
    if lineage.created_at is not None:
        yield Line("created", f"{moment(lineage.created_at)} by {lineage.created_by}")
    if lineage.changed_at is not None:
        yield Line("changed", f"{moment(lineage.changed_at)} by {lineage.changed_by}")


def _now(story: LineageStory) -> Iterator[Line]:
    counts = story.windows
    said = ", ".join(f"{counts[state]:,} {state}" for state in State if counts[state])
    yield Line("windows", said or "none", bad=bool(counts[State.FAILED]))
    for work in story.running[:_MOST]:
        doing = work.doing
        yield Line(doing.stage, f"{doing.title()}; {doing.progress()}; {work.holder}")
    if not story.running:
        yield Line("works", "nobody, at this moment")


def _serving(story: LineageStory) -> Iterator[Line]:
    served, step = story.served, story.published_step
    what = f"step {step}" if step else "the base model"
    if served is not None and served.step == step:
        version = f" ({served.version})" if served.version else ""
        how = f"{served.kind}, {served.holder}: {served.why}"
        what += f"{version} since {moment(served.at)}; {how}"
    yield Line("serves", what)
    yield Line("head", f"step {story.step}, which the next one continues")
    yield from gate_lines(story.publish, story.gate)
    if story.paused:
        yield Line("paused", f"promotion, {story.paused} (`babylon models resume`)", bad=True)


def _step(story: LineageStory, step: StepListing) -> Line:
    change = "" if step.policy_change is None else f", policy change {step.policy_change:.3g} nats"
    gone = f"; given up {moment(step.given_up_at)}" if step.given_up_at else ""
    exam = story.exams.get(step.step)
    verdict = f"; exam {exam.state}" if exam else ""
    return Line(
        str(step.step),
        f"{step.version} after {step.parent_step}, {moment(step.committed_at)}, "
        f"{counted(step.trajectories, 'run')}, loss {loss_text(step.loss)}{change}{verdict}; "
        f"{story.states[step.step]}{gone}",
    )


def _forks(story: LineageStory) -> Iterator[Line]:
    for fork in story.forks[:_MOST]:
        yield Line(fork.name, f"from step {fork.forked_step}, {fork.state}")


def _resets(story: LineageStory) -> Iterator[Line]:
    for reset in story.resets[:_MOST]:
        yield Line(
            f"{reset.from_step} to {reset.to_step}",
            f"{moment(reset.at)}, {reset.holder}: {reset.why}",
        )
