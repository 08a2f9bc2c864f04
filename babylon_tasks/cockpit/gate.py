"""How the gate of a lineage stands: as figures for a program, and in sentences for a person."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import msgspec

from babylon_tasks.records.experiments import Standing
from babylon_tasks.records.gates import FAILURES_IN_A_ROW, Gate, RunningExperiment
from babylon_tasks.settings import Settings


def figures(gate: Gate, settings: Settings) -> dict[str, Any]:
    """Return how a gate stands; names are those of Flower's metrics where there is one."""
    return {
        "publish": settings.publish,
        "awaits_exam": gate.awaits_exam if settings.publish != "always" else None,
        "passed": list(gate.passed),
        "failures_in_a_row": gate.failures,
        "paused_at": _iso(gate.paused_at) if gate.paused_at else None,
        "last_failed": _dated(asdict(gate.failed)) if gate.failed else None,
        "experiment": _experiment(gate.experiment, settings) if gate.experiment else None,
        "last_experiment": _dated(asdict(gate.ended)) if gate.ended else None,
    }


def sentences(gate: Gate, settings: Settings) -> list[str]:
    """Say in full what waits, and how the last exam and the last experiment ended."""
    said = list(waiting(gate, settings))
    if gate.failed:
        in_a_row = f"; {gate.failures} in a row" if gate.failures > 1 else ""
        said.append(
            f"step {gate.failed.step} failed its exam {_time(gate.failed.at)}{in_a_row}: "
            f"{gate.failed.reason}"
        )
    if gate.ended:
        how = gate.ended.state.replace("_", " ")
        said.append(
            f"the experiment with step {gate.ended.step} ended {_time(gate.ended.at)}, {how}: "
            f"{gate.ended.reason}"
        )
    return said


def waiting(gate: Gate, settings: Settings) -> Iterator[str]:
    """Say what waits now, and for what; nothing where nothing does."""
    if gate.paused_at:
        yield (
            f"paused {_time(gate.paused_at)}, since {FAILURES_IN_A_ROW} steps in a row failed "
            f"their exams (`babylon lineages resume {gate.lineage}`)"
        )
    if settings.publish == "always":
        return
    if gate.awaits_exam is not None:
        begun = f", which was begun {gate.attempts} times" if gate.attempts > 1 else ""
        yield f"step {gate.awaits_exam} awaits its exam{begun}"
    if gate.passed:
        yield _passed(gate, settings)
    if gate.experiment:
        yield _tried(gate.experiment, settings)


def difference(standing: Standing) -> str:
    """Write the estimate of an experiment with its interval."""
    if standing.difference is None:
        return "no difference known yet"
    if standing.low is None or standing.high is None:
        return f"{standing.difference:+.3g} a run, interval not known yet"
    return f"{standing.difference:+.3g} a run ({standing.low:+.3g} to {standing.high:+.3g})"


def _passed(gate: Gate, settings: Settings) -> str:
    steps = ", ".join(map(str, gate.passed))
    what = f"step {steps} passed its exam" if len(gate.passed) == 1 else f"steps {steps} passed"
    if settings.publish == "manual":
        return f"{what} and may be promoted (`babylon models promote {gate.passed[0]}`)"
    if gate.experiment:
        return f"{what}; the experiment with step {gate.experiment.step} ends first"
    return f"{what}; {gate.passed[0]} is the next to serve"


def _tried(experiment: RunningExperiment, settings: Settings) -> str:
    standing, most = experiment.standing, settings.experiment_windows
    seen = (
        f"no window of {most} seen yet"
        if standing is None
        else f"window {standing.windows} of {most}: {difference(standing)}, {_left(standing)}"
    )
    return (
        f"experiment: step {experiment.step} answers {experiment.percent:g} % of the agents beside "
        f"step {experiment.served_step}, {seen}"
    )


def _left(standing: Standing) -> str:
    if standing.windows_left is None:
        return "not decided in time at this rate"
    many = "window" if standing.windows_left == 1 else "windows"
    return f"about {standing.windows_left} {many} left at this rate"


def _experiment(experiment: RunningExperiment, settings: Settings) -> dict[str, Any]:
    standing = experiment.standing or Standing(0, 0, 0, None, None, None, None)
    return {
        "step": experiment.step,
        "served_step": experiment.served_step,
        "percent": experiment.percent,
        "first_window": experiment.first_window,
        "started_at": _iso(experiment.started_at),
        **msgspec.structs.asdict(standing),
        "most_windows": settings.experiment_windows,
        "reason": experiment.reason,
    }


def _dated(record: dict[str, Any]) -> dict[str, Any]:
    return {**record, "at": _iso(record["at"])}


def _iso(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(" ", "seconds")


def _time(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M} UTC"
