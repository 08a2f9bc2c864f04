"""The tables and plots of `recipe.py`'s records, and where docs/learning.md has them.

Of runs with the same name and seed the newest counts. A run that failed is named under its part's
table and is in no mean. Means are over seeds, with 95 % intervals by Student's t
(`intervals.interval`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import tables
from intervals import interval, mean_curve
from plots import COLOURS, Line, Panel, intervals_chart, line_charts
from records import Record, by_name, failures, gaps_at_end

from babylon_tasks.simulation.game.look import fresh_markets
from babylon_tasks.simulation.game.market import Rules
from babylon_tasks.simulation.game.personas import NOISE, ORACLE, Persona

PARTS = {
    "screen": tables.screen,
    "goals": tables.goals,
    "compare": tables.compare,
    "regimes": tables.regimes,
    "absence": tables.absence,
    "real": tables.real,
    "cost": tables.cost,
}
SCRIPTED = {"careful": Persona("careful", 0.5), "momentum": Persona("momentum", 0.8)}
LOOKED_AT, REAL_LOOK = 64, 20  # markets, as in `loop.py` and `experiment.py`


def report(records: Sequence[Record], folder: Path) -> str:
    """Write the plots into the folder, fill its learning.md, and return the tables."""
    made, drawn = blocks(records), plots(records)
    for name, chart in drawn.items():
        (folder / name).write_text(chart)
    document = folder / "learning.md"
    if document.exists():
        document.write_text(filled(document.read_text(), made))
    return "\n\n".join(f"## {part}\n\n{text}" for part, text in made.items() if text)


def blocks(records: Sequence[Record]) -> dict[str, str]:
    """Return the Markdown of each part, with its plot; empty where nothing was run."""
    drawn, made = plots(records), {}
    for part, write in PARTS.items():
        text = write(records) + failures(records, part)
        plot = f"learning_{part}.svg"
        made[part] = f"{text}\n\n![{CAPTIONS[part]}]({plot})" if plot in drawn else text
    return made


def filled(text: str, made: dict[str, str]) -> str:
    """Return a document with each part's block between its markers, `<!-- PART -->` and its end.

    Raises:
        ValueError: The document lacks a part's markers.
    """
    for part, block in made.items():
        marked = re.compile(f"(<!-- {part} -->\n).*?(<!-- /{part} -->)", re.DOTALL)
        if not marked.search(text):
            raise ValueError(f"no <!-- {part} --> … <!-- /{part} -->")
        inside = f"{block}\n" if block else ""
        text = marked.sub(lambda found, inside=inside: found[1] + inside + found[2], text)
    return text


CAPTIONS = {
    "screen": "Gap closed at the end by each recipe, with 95 % intervals",
    "goals": "Gap closed by window: each seed thin, the mean thick",
    "compare": "Gap closed by window, means over the seeds",
    "regimes": "Gap closed by window after a flip, on old data, and on others' data",
    "absence": "Share of calls that fail, by window",
    "real": "Gap closed by window by SmolLM2-135M-Instruct",
}


def plots(records: Sequence[Record]) -> dict[str, str]:
    """Return the SVG of each part that was run, by file name."""
    drawn = {}
    recipes = by_name(records, "screen")
    if recipes:
        rows = [(name, *interval(gaps_at_end(runs))) for name, runs in recipes.items()]
        drawn["screen"] = intervals_chart("Gap closed at the end, means of the seeds", rows)
    for part in ("goals", "regimes", "real"):
        panels = [_seeds(name, runs) for name, runs in by_name(records, part).items()]
        if panels:
            drawn[part] = line_charts(panels)
    arms = by_name(records, "compare")
    if arms:
        lines = _means(arms)
        low = _low([line.values for line in lines])
        drawn["compare"] = line_charts([Panel("Gap closed, the same hours", lines, low=low)])
    arms = by_name(records, "absence")
    if arms:
        curves = {name: [tables.fails(run) for run in runs] for name, runs in arms.items()}
        most = max(max(curve) for runs in curves.values() for curve in runs)
        lines = [line for at, (name, runs) in enumerate(curves.items())
                 for line in _bundle(runs, COLOURS[at], name)]  # fmt: skip
        drawn["absence"] = line_charts(
            [Panel("Share of calls that fail", lines, high=0.5 if most <= 0.5 else 1.0)]
        )
    return {f"learning_{part}.svg": chart for part, chart in drawn.items()}


def _seeds(name: str, runs: Sequence[Record]) -> Panel:
    """Draw a run's seeds and their mean, with what scripted agents would have of the gap."""
    curves = [run["gap_closed"] for run in runs]
    lines, low = _bundle(curves, COLOURS[0], "mean of the seeds"), _low(curves)
    levels = [("noise", 0.0), ("oracle", 1.0)]
    if low > -1:  # else there is no room between them
        levels += [
            (f"{rule} {persona.skill:g}", _level(persona, runs))
            for rule, persona in SCRIPTED.items()
        ]
    return Panel(name, lines, levels, runs[0]["flip_hour"], low=low)


def _low(curves: Sequence[Sequence[float]]) -> float:
    return -1.0 if min(min(curve) for curve in curves) < -0.25 else -0.25


def _bundle(curves: Sequence[Sequence[float]], colour: str, name: str) -> list[Line]:
    thin = [Line(curve, colour) for curve in curves]
    return [*thin, Line(mean_curve(curves), colour, name, thick=True)]


def _means(arms: dict[str, list[Record]]) -> list[Line]:
    return [
        Line(
            mean_curve([run["gap_closed"] for run in runs]), COLOURS[at % len(COLOURS)], name, True
        )
        for at, (name, runs) in enumerate(arms.items())
    ]


def _level(persona: Persona, runs: Sequence[Record]) -> float:
    """Return the share of the gap that a persona has, once the lure is over, in the seeds' mean."""
    rules = Rules()
    found = []
    for run in runs:
        count = REAL_LOOK if run["part"] == "real" else LOOKED_AT
        markets = fresh_markets(run["seed"], rules.lure_hours, rules, count)
        low, mine, high = (
            sum(one.value(market) for market in markets) for one in (NOISE, persona, ORACLE)
        )
        found.append((mine - low) / (high - low))
    return sum(found) / len(found)
