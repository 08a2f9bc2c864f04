"""The screen of `babylon windows show`: a window's way, from its rows to the version it trained."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from babylon_tasks.cli.screen import Line, Section, dollars, moment, under
from babylon_tasks.cockpit.story import Story
from babylon_tasks.scoring.filters import EVALUATIONS, FLOORED, REMEMBERED, STAGES
from babylon_tasks.store.attempts import Attempt, Ending
from babylon_tasks.words import counted, duration, loss_text

_BAR = 40  # columns of the longest bar
_WAYS = (("scored", "scored_at"), ("trained", "trained_at"), ("skipped", "skipped_at"),
         ("failed", "failed_at"))  # fmt: skip
_NEXT = {"due": "a worker that scores", "scored": "a step"}


def sections(story: Story) -> list[Section]:
    """Return all sections of a window."""
    row = story.row
    title = f"{row['window_id']} of {row['model_name']}: {row['state']}"
    parts = [
        ("Way", _way(story)),
        ("Attempts", map(_attempt, story.attempts)),
        ("From rows to trained tokens", funnel_lines(story.rows, row["funnel"])),
        ("What our own versions did in it", version_lines(row["by_version"])),
        (f"Scores by {row['scorer']}, from 0 to 1", _scores(row)),
        ("Step", _step(story)),
    ]
    return under(title, parts)


def _way(story: Story) -> Iterator[Line]:
    row = story.row
    yield Line("due", moment(row["due_at"]))
    before = row["due_at"]
    details = {
        "scored": f"by {row['scorer']}",
        "trained": f"by step {row['trained_step']} ({row['version']})",
        "skipped": row["reason"],
        "failed": row["reason"],
    }
    for state, column in _WAYS:
        if at := row[column]:
            waited = duration((at - before).total_seconds())
            yield Line(
                state, f"{moment(at)}, {waited} later, {details[state]}", bad=state == "failed"
            )
            before = at
    if row["state"] in ("due", "scored"):
        yield from _waits(row)
    counts = f"{counted(row['agents'], 'agent')}, {counted(row['trajectories'], 'trajectory')}"
    late = f", {row['late']:,} came too late" if row["late"] else ""
    yield Line("has", counts.replace("trajectorys", "trajectories") + late)
    for label, value in (("request", row["batch_id"]), ("scoring", row["scoring"])):
        if value:
            yield Line(label, str(value))


def _waits(row: Mapping[str, Any]) -> Iterator[Line]:
    if row["held_by"]:
        yield Line("now", f"{row['held_by']} works on it")
        return
    until = f" until {moment(row['waits_until'])}" if row["waits_until"] else ""
    why = f": {row['reason']}" if row["reason"] else ""
    tries = f", after {counted(row['attempts'], 'failed attempt')}" if row["attempts"] else ""
    share = f"; at most {row['may_share']} windows share its step" if row["may_share"] else ""
    yield Line("waits", f"for {_NEXT[row['state']]}{until}{tries}{why}{share}")


def _attempt(attempt: Attempt) -> Line:
    began, ended = attempt.started_at, attempt.ended_at
    how = (attempt.outcome or "under way").replace("_", " ")
    took = f", {(ended - began).total_seconds():.1f} s" if ended else ""
    error = f": {attempt.error}" if attempt.error else ""
    bad = attempt.outcome in (Ending.ERROR, Ending.LOST)
    text = f"{began:%m-%d %H:%M:%S}{took}, {how}, {attempt.holder}, token {attempt.token}{error}"
    return Line(attempt.stage, text, bad=bad)


def funnel_lines(rows: Mapping[str, int], funnel: Mapping[str, int]) -> Iterator[Line]:
    """Write the window's rows, as they are now, up to the tokens that were trained."""
    left_out = {reason: n for reason, n in rows.items() if reason != "trajectories"}
    yield Line("rows", f"{rows['trajectories']:,}{_left_out(left_out)}")
    for stage, reasons in STAGES.items():
        if stage not in funnel:
            yield Line(stage, "not yet")
            continue
        shown = f"{funnel[stage]:,}"
        if floored := funnel.get(FLOORED.get(stage, "")):
            shown += f" ({floored:,} done badly)"
        if stage == "scored" and (evaluations := funnel.get(EVALUATIONS)):
            shown += f" (and {evaluations:,} with isEvaluation, for exams)"
        if stage == "calls" and not funnel.keys().isdisjoint(REMEMBERED):
            remembered, not_remembered = (funnel.get(each, 0) for each in REMEMBERED)
            shown += f" (the endpoint remembers {remembered:,}, not {not_remembered:,})"
        yield Line(stage, shown + _left_out({each: funnel.get(each, 0) for each in reasons}))


def _left_out(counts: Mapping[str, int]) -> str:
    said = ", ".join(f"{n:,} {reason}" for reason, n in counts.items() if n)
    return f"; left out: {said}" if said else ""


def version_lines(by_version: Mapping[str, Mapping[str, int]]) -> Iterator[Line]:
    """Write what each of the lineage's own versions did in the window, and how badly."""
    for version, did in by_version.items():
        share = f"{did['badly'] / did['calls']:.0%}" if did["calls"] else "none"
        calls = f"{did['calls']:,} calls, {did['badly']:,} of them done badly ({share})"
        yield Line(version, f"{counted(did['runs'], 'run')}, {calls}")


def _scores(row: Mapping[str, Any]) -> Iterator[Line]:
    scores = row["scores"]
    if not scores:
        return
    spread = "" if scores["deviation"] is None else f", standard deviation {scores['deviation']:g}"
    yield Line(
        counted(scores["trajectories"], "run"),
        f"mean {scores['mean']:g}{spread}, least {scores['lowest']:.4g}, "
        f"most {scores['highest']:.4g}",
    )
    yield from _histogram(row["score_tenths"])
    if judge := row["judge"]:
        usd = "price not known" if judge["usd"] is None else dollars(float(judge["usd"]))
        refused = f", {judge['refused']} refused" if judge["refused"] else ""
        asked = f"{counted(judge['answers'], 'answer')}{refused}, {judge['tokens']:,} tokens, {usd}"
        yield Line("judge", asked)
    if row["set_aside"]:
        reasons = ", ".join(f"{n} {reason}" for reason, n in row["set_aside"].items())
        yield Line("set aside", reasons)


def _histogram(tenths: Sequence[int]) -> Iterator[Line]:
    """Draw how many scores are in each tenth, from the first to the last that has any."""
    most = max(tenths)
    used = [at for at, n in enumerate(tenths) if n]
    for at in range(used[0], used[-1] + 1):
        n = tenths[at]
        bar = "#" * max(round(_BAR * n / most), 1 if n else 0)
        yield Line(f"{at / 10:.1f} to {(at + 1) / 10:.1f}", f"{bar} {n}".lstrip())


def _step(story: Story) -> Iterator[Line]:
    step = story.step
    if step is not None:
        yield Line(
            f"step {step.step}",
            f"{step.version}: {counted(len(step.window_ids), 'window')}, "
            f"{counted(step.trajectories, 'run')}, loss {loss_text(step.metrics.get('loss'))}, "
            f"committed {moment(step.committed_at)}",
        )
        yield Line("files", "removed" if step.removed_at else step.checkpoint, whole=True)
        given_up = story.row["step_given_up_at"]
        gone = f"; it was given up {moment(given_up)}" if given_up else ""
        yield Line("it is", f"{story.step_state}{gone}", bad=bool(given_up))
    serves = story.serves
    what = "the base model" if serves is None else f"{serves.version} (step {serves.step})"
    yield Line("now serves", what)
