"""The records of `recipe.py`, chosen for a table; and tables in Markdown."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from intervals import interval, windows_until

Record = Mapping[str, Any]
HALF = 0.5  # of the gap


def by_name(records: Sequence[Record], part: str) -> dict[str, list[Record]]:
    """Return the runs of a part that have an end, by name in order of appearance, then by seed.

    Of runs with the same name and seed the newest counts.
    """
    newest = {
        (record["name"], record["seed"]): record
        for record in records
        if record["part"] == part and "error" not in record
    }
    names = dict.fromkeys(name for name, _ in newest)
    return {
        name: [newest[key] for key in sorted(newest) if key[0] == name] for name in names
    }  # fmt: skip


def failures(records: Sequence[Record], part: str) -> str:
    """Return a line about each run of a part that failed, also if it was made again; or nothing."""
    return "".join(
        f"\n- Failed: {one['name']}, seed {one['seed']}, after {one['seconds']:.0f} s: "
        f"`{one['error']}`"
        for one in records
        if one["part"] == part and "error" in one
    )


def gaps_at_end(runs: Sequence[Record]) -> list[float]:
    """Return how much of the gap each run has closed after its last window."""
    return [run["gap_closed"][-1] for run in runs]


def lowest_form(runs: Sequence[Record]) -> float:
    """Return the smallest well-formed share of any look of the runs."""
    return min(min(run["well_formed"]) for run in runs)


def halves(runs: Sequence[Record]) -> list[int | None]:
    """Return after how many windows each run first has half of the gap."""
    return [windows_until(run["gap_closed"], HALF) for run in runs]


def seconds_a_window(runs: Sequence[Record]) -> float:
    """Return the mean seconds of a window."""
    return fmean(run["seconds"] / run["windows"] for run in runs)


def with_reach(values: Sequence[float], form: str = ".2f") -> str:
    """Write a mean and its interval."""
    mean, reach = interval(values)
    return f"{mean:{form}}" if math.isinf(reach) else f"{mean:{form}} ± {reach:{form.lstrip('+')}}"


def mean_or_never(windows: Sequence[int | None]) -> str:
    """Write the mean of those that got there, and of how many, if not of all."""
    there = [float(number) for number in windows if number is not None]
    if not there:
        return "never"
    of = "" if len(there) == len(windows) else f" ({len(there)} of {len(windows)})"
    return f"{fmean(there):.1f}{of}"


def each(windows: Sequence[int | None]) -> str:
    """Write each number, or that it was never."""
    return ", ".join("never" if number is None else str(number) for number in windows)


def made_with(runs: Sequence[Record]) -> str:
    """Write what the runs were made with, as they recorded it; more lines if it changed between."""
    seeds: dict[str, list[int]] = {}
    for run in runs:
        values = run.get("hyperparameters", {})
        text = ", ".join(f"`{name}` {value}" for name, value in values.items())
        seeds.setdefault(text, []).append(run["seed"])
    return "\n".join(
        f"- Seeds {', '.join(map(str, some))} of `{runs[0]['name']}`: {text}."
        for text, some in seeds.items()
        if text
    )


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Write a table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def verdict(met: bool, text: str, runs: Sequence[object], wanted: int) -> str:
    """Write whether a goal is met, unless there are too few seeds to say."""
    if len(runs) < wanted:
        return f"- Not yet judged ({len(runs)} of {wanted} seeds): {text}"
    return f"- **{'Met' if met else 'Missed'}**: {text}"
