"""The sentences of the page Now, from the figures of `cockpit.overview`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
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
_WAITED_LONG_SECONDS = 3600.0
_MOST_NAMED = 3


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
    return said + ([_waited(now[f"oldest_{state}"])] if now[f"oldest_{state}"] else [])


def _waited(window: Figures) -> str:
    after = f" after an error: {window['last_error']}" if window["last_error"] else ""
    return f"{window['window_id']} has waited {duration(window['seconds'])}{after}"


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
    return [*away, *(_complaints(now) if now else ())]


def _complaints(now: Figures) -> Iterator[str]:
    alive = [each for each in now["workers"] if not each["lost"]]
    for queue, stage in (("cpu", "scores windows"), ("gpu", "trains")):
        if not any(queue in each["queues"] for each in alive):
            yield (
                f"No worker {stage}: start one with `celery -A babylon_tasks worker -Q {queue}`."
            )
    lost = [each for each in now["workers"] if each["lost"]]
    for each in lost[:_MOST_NAMED]:
        yield f"Worker {each['name']} has said nothing for {duration(each['seen_seconds'])}."
    if len(lost) > _MOST_NAMED:
        more = counted(len(lost) - _MOST_NAMED, "more worker")
        yield f"Nor {'has' if len(lost) == _MOST_NAMED + 1 else 'have'} {more} said anything."
    for machine, error in now["at_fault"].items():
        yield f"{machine} stopped, since every window failed there: {error}"
    for queue in now["late_queues"]:
        age = now["canary_age_seconds"][queue]
        if age is not None and queue not in now["busy_queues"]:
            yield f"No message has come through queue {queue} for {duration(age)}."
    failed = now["windows"]["failed"]
    if failed:
        yield f"{counted(failed, 'window')} failed: `babylon windows list` says why."
    if now["promotion_paused"]:
        paused = now["promotion_paused"]
        yield f"No step is promoted by itself since {paused['since']}: {paused['why']}"
    for state in ("due", "scored"):
        waiting = now[f"oldest_{state}"]
        if waiting and (
            waiting["last_error"]
            or (state == "due" and waiting["seconds"] > _WAITED_LONG_SECONDS and not now["running"])
        ):
            yield f"Window {_waited(waiting)}."
