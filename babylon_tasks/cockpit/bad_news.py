"""What a person must see to, decided in one place for the terminal and for Flower."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

from babylon_tasks.cockpit.status import late_seconds
from babylon_tasks.records.movement import LEAST_POLICY_CHANGE
from babylon_tasks.settings import Settings
from babylon_tasks.text import one_line
from babylon_tasks.words import counted, duration

Figures = Mapping[str, Any]

_DOES = {"cpu": "scores windows", "gpu": "trains"}
_WAITED_LONG_SECONDS = 3600.0
_MOST_NAMED = 3
_MOST_LETTERS = 200  # of an error


def bad_news(now: Figures, settings: Settings) -> dict[str, str]:
    """Return sentences, from the figures of `overview`, each by what it is about.

    The names are `no worker QUEUE`, `worker NAME`, `more workers`, `at fault MACHINE`,
    `queue QUEUE`, `failed`, `promotion`, `due`, `scored`, `last step`, `judge`, `lineage NAME`.
    """
    found = [_of_workers(now), _of_queues(now, settings), _of_windows(now), _of_others(now)]
    return {name: sentence for each in found for name, sentence in each}


def _of_workers(now: Figures) -> Iterator[tuple[str, str]]:
    lost = [each for each in now["workers"] if each["lost"]]
    for queue, does in _DOES.items():
        if not _alive(now, queue):
            start = f"start one with `celery -A babylon_tasks worker -Q {queue}`."
            yield f"no worker {queue}", f"No worker {does}: {start}"
    for each in lost[:_MOST_NAMED]:
        silent = duration(each["seen_seconds"])
        yield f"worker {each['name']}", f"Worker {each['name']} has said nothing for {silent}."
    more = len(lost) - _MOST_NAMED
    if more > 0:
        verb = "has" if more == 1 else "have"
        yield "more workers", f"Nor {verb} {counted(more, 'more worker')} said anything."
    for machine, error in now["at_fault"].items():
        stopped = f"{machine} stopped, since every window failed there"
        yield f"at fault {machine}", f"{stopped}: {one_line(error, _MOST_LETTERS)}"


def _alive(now: Figures, queue: str) -> list[Figures]:
    return [each for each in now["workers"] if not each["lost"] and queue in each["queues"]]


def _of_queues(now: Figures, settings: Settings) -> Iterator[tuple[str, str]]:
    for queue in now["late_queues"]:
        if queue in now["busy_queues"]:
            continue
        age, allowed = now["canary_age_seconds"][queue], late_seconds(settings, queue)
        started = [datetime.fromisoformat(each["started_at"]) for each in _alive(now, queue)]
        up = [(now["at"] - at).total_seconds() for at in started]
        through = f"through queue {queue}"
        if age is not None:
            yield f"queue {queue}", f"No message has come {through} for {duration(age)}."
        elif max(up, default=0.0) > allowed:  # where nobody works, that is said
            beat = "does `celery -A babylon_tasks beat` run?"
            yield f"queue {queue}", f"No message ever came {through}: {beat}"


def _of_windows(now: Figures) -> Iterator[tuple[str, str]]:
    if failed := now["windows"]["failed"]:
        said = f"{counted(failed, 'window')} failed: `babylon windows list` says why."
        yield "failed", said
    if paused := now["promotion_paused"]:
        since = f"since {paused['since']}, by {paused['by']}"
        why = f"{paused['why']} (`babylon models resume`)"
        yield "promotion", f"No step is promoted by itself {since}: {why}"
    for state in ("due", "scored"):
        oldest = now[f"oldest_{state}"]
        if oldest is None:
            continue
        waited = f"Window {oldest['window_id']} has waited {duration(oldest['seconds'])}"
        long = oldest["seconds"] > _WAITED_LONG_SECONDS and not now["running"]
        if oldest["last_error"]:
            error = one_line(oldest["last_error"], _MOST_LETTERS)
            yield state, f"{waited} after an error: {error}."
        elif state == "due" and long:
            yield state, f"{waited}."
    if now["last_step"] and now["last_step"]["stands_still"]:
        yield (
            "last step",
            "The last step stood still: it moved the log-probability of an answer by less than "
            f"{LEAST_POLICY_CHANGE:g} nats; `babylon doctor` says which setting to change.",
        )


def _of_others(now: Figures) -> Iterator[tuple[str, str]]:
    limit = now["judge_today"]["daily_limit_usd"]
    if limit is not None and now["judge_today"]["usd"] >= limit:
        yield (
            "judge",
            "The judge's daily limit is spent: judging goes on tomorrow, or when JUDGE_DAILY_USD "
            "is raised.",
        )
    for each in now["lineages"]:
        if each["name"] == now["model"] or each["state"] == "retired":
            continue
        failed = [f"{counted(each['failed'], 'window')} failed"] if each["failed"] else []
        paused = ["its promotion is paused"] if each["promotion_paused_at"] else []
        if failed or paused:
            yield (
                f"lineage {each['name']}",
                f"Lineage {each['name']}: {'; '.join(failed + paused)}.",
            )
