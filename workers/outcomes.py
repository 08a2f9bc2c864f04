"""What came of a piece of work, in one line for people; from Postgres, where a report lacks it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

from babylon_tasks.errors import BabylonError, Retryable
from babylon_tasks.records.doing import Doing
from babylon_tasks.records.windows import State, Window
from babylon_tasks.store import exams
from babylon_tasks.store import windows as window_rows
from babylon_tasks.store.database import Connection
from babylon_tasks.training.step import StepReport
from babylon_tasks.words import counted, duration, loss_text, named

_TYPE = re.compile(r"([A-Z]\w{1,40}): ")  # what an error in a window's row begins with


def of_step(lineage: str, report: StepReport) -> tuple[str, str]:
    """Return what a committed step was, and what came of it."""
    step, size = f"step {report.step} → {report.version}", _size(report)
    took = duration(report.seconds)
    return (
        f"{lineage}: {step}, {size}",
        f"{step}: loss {loss_text(report.result.loss)}, {size}, {took}",
    )


def summary(report: StepReport) -> dict[str, Any]:
    """Return what the result of a task keeps of a committed step."""
    return {
        "step": report.step,
        "version": report.version,
        "loss": report.result.loss,
        "windows": report.window_ids,
        "runs": report.trajectories,
        "seconds": round(report.seconds, 1),
    }


def due(window_ids: Sequence[str]) -> str:
    """Say that windows are due: `3 windows are due: 2026-11-28T01:00 …`."""
    ids = sorted(set(window_ids))
    return f"{counted(len(ids), 'window')} {'is' if len(ids) == 1 else 'are'} due: {named(ids)}"


class WindowsFailed(BabylonError):
    """Windows ended as `failed` in this work."""


def of_work(tx: Connection, done: Sequence[Doing]) -> tuple[str, str, BabylonError | None]:
    """Return what was done without a step, and what came of it, of one lineage or several.

    The last is how the work ends if it is not done: a WindowsFailed where windows failed, a
    Retryable where all that was tried will be tried again.
    """
    tried = {name: _tried(tx, name, done) for name in dict.fromkeys(each.lineage for each in done)}
    said = {
        name: "; ".join([*verdicts(tx, name, done), of_windows(each) or "no step follows yet"])
        for name, each in tried.items()
    }
    if len(said) == 1:
        title, (result,) = done[-1].title(), said.values()
    else:
        title = "; ".join({each.lineage: each.title() for each in done}.values())
        result = "; ".join(f"{name}: {text}" for name, text in said.items())
    windows = [window for each in tried.values() for window in each]
    if any(window.state == State.FAILED for window in windows):
        return title, result, WindowsFailed(result)
    if windows and all(map(_waits, windows)):
        return title, result, Retryable(result)
    return title, result, None


def verdicts(tx: Connection, lineage: str, done: Sequence[Doing]) -> list[str]:
    """Say how the exams among this work ended, one sentence each."""
    examined = {
        each.step for each in done if each.stage == "exam" and each.lineage == lineage and each.step
    }
    return [_verdict(tx, lineage, step) for step in sorted(examined)]


def _tried(tx: Connection, lineage: str, done: Sequence[Doing]) -> list[Window]:
    """Return the windows of this work as they are now, without those that were examined on."""
    works = [each for each in done if each.lineage == lineage and each.stage != "exam"]
    return window_rows.read(tx, lineage, sorted({id_ for each in works for id_ in each.windows}))


def _waits(window: Window) -> bool:
    """Tell whether it did not come further, for a reason that is in its row."""
    return window.last_error is not None and window.state in (State.DUE, State.SCORED)


def of_windows(windows: Sequence[Window]) -> str:
    """Count windows by what became of them, with the reason of those that are skipped.

    An error may quote a trace, so only its type is said here.
    """
    ended = Counter(_ending(window) for window in windows)
    return "; ".join(f"{counted(n, 'window')} {ending}" for ending, n in ended.most_common())


def _ending(window: Window) -> str:
    if window.state == State.SKIPPED:
        return f"skipped: {window.reason}"
    if window.state == State.FAILED:
        return "failed: `babylon windows show ID` says why"
    if _waits(window):
        kind = _TYPE.match(window.last_error or "")
        again = f"will be tried again ({kind[1]})" if kind else "will be tried again"
        return f"{again}: `babylon windows show ID` says why"
    return str(window.state)


def _verdict(tx: Connection, lineage: str, step: int) -> str:
    exam = next(iter(exams.read(tx, lineage, [step])), None)
    if exam is None or exam.decided_at is None:
        return f"the exam of step {step} is not decided"
    return f"step {step} {exam.state} its exam: {exam.reason}"


def _size(report: StepReport) -> str:
    return f"{counted(len(report.window_ids), 'window')}, {counted(report.trajectories, 'run')}"
