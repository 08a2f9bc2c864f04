"""The sentences of the page Now, from the figures of `cockpit.overview`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from babylon_tasks import words
from babylon_tasks.words import counted, duration, loss_text

Figures = Mapping[str, Any]

_DOES = {
    "score": "Scoring",
    "judge": "Asking the judge",
    "train": "Training",
    "exam": "Examining",
}


def does(work: Figures) -> str:
    """Name the stage of a piece of work: `Training`."""
    return _DOES[work["stage"]]


def percent(work: Figures) -> int | None:
    """Return how much of a piece of work is done, from 0 to 100; None if that is not known."""
    return None if work["share"] is None else min(100, max(0, round(100 * work["share"])))


def detail(work: Figures) -> list[tuple[str, str]]:
    """Return the figures of a piece of work, each with its name."""
    shown = []
    if work["phase"]:
        units = f", {work['done']:,} of {work['total']:,}" if work["total"] else ""
        shown.append(("Phase", work["phase"] + units))
    if work["loss"] is not None:
        shown.append(("Loss", loss_text(work["loss"])))
    if work["tokens_per_second"] is not None:
        shown.append(("Speed", f"{work['tokens_per_second']:,.0f} tokens/s"))
    if work["seconds_left"] is not None:
        shown.append(("Time left", f"about {duration(work['seconds_left'])}"))
    shown.append(("Running for", duration(work["seconds"])))
    shown.append(("On", work["worker"] or work["holder"].rpartition(":")[0] or work["holder"]))
    return shown


def nothing(now: Figures) -> str:
    """Say why nothing runs."""
    waiting = [f"{now['windows'][state]:,} {state}" for state in ("due", "scored")]
    if not any(now["windows"][state] for state in ("due", "scored")):
        return "Nothing runs now, and no window waits: an hour is scored ten minutes after its end."
    return f"Nothing runs now. Windows that wait: {' and '.join(waiting)}."


def notes(now: Figures, state: str) -> list[str]:
    """Say of windows that wait how many are in work now, and how long the oldest has waited."""
    stages = {"due": ("score", "judge"), "scored": ("train",)}.get(state, ())
    if not stages:
        return []
    works = [work for work in now["running"] if work["lineage"] == now["model"]]
    number = sum(len(work["windows"]) for work in works if work["stage"] in stages)
    number = min(number, now["windows"][state])
    said = [f"{number:,} of them in work now"] if number else []
    oldest = now[f"oldest_{state}"]
    if oldest:
        said.append(f"{oldest['window_id']} has waited {duration(oldest['seconds'])}")
    return said


def last_step(now: Figures) -> list[str]:
    """Say in a sentence what came of the last step, and when; none if there is none."""
    step = now["last_step"]
    if not step:
        return []
    of = f"{counted(step['windows'], 'window')}, {counted(step['trajectories'], 'run')}"
    loss = "" if step["loss"] is None else f", loss {loss_text(step['loss'])}"
    when = ago((now["at"] - step["committed_at"]).total_seconds())
    return [f"Last step: {step['step']}, {step['version']}, of {of}{loss}, {when}"]


def ago(seconds: float) -> str:
    """Write an age: `12 s ago`."""
    return f"{duration(seconds)} ago"


def memory(gpu: Figures) -> str:
    """Say how much of a GPU's memory is used."""
    return words.memory(gpu["memory_used_bytes"], gpu["memory_bytes"])


def memory_percent(gpu: Figures) -> int | None:
    """Return the used percent of a GPU's memory; None if the driver does not say."""
    total, used = gpu["memory_bytes"], gpu["memory_used_bytes"]
    return None if not total or used is None else min(100, round(100 * float(used / total)))


def works_of(worker: Figures, now: Figures) -> list[str]:
    """Say what a worker does now."""
    works = [work for work in now["running"] if work["worker"] == worker["name"]]
    return [f"{does(work)} {work['title']}" for work in works]


def complaints(now: Figures | None, away: Sequence[str]) -> list[str]:
    """Say what a person must see to; nothing if all is well."""
    return [*away, *(now["bad_news"].values() if now else ())]
