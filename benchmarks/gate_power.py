"""How sure an experiment is: how often it promotes versions that are better, no better, or worse.

    python benchmarks/gate_power.py [--runs 400] [--json]

Experiments of agents that do not exist: a run's score is what its window was worth, plus the
difference if the candidate answered, plus skewed noise, in [0, 1]. What decides is the product's
own, with its settings as shipped: the share of the agents and how it grows, a look after each
window, the interval, the harm bound and the last window. Printed are shares of the experiments, by
the number of agents that the endpoint answers and by the true difference, in standard deviations of
a score.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rich.console import Console
from rich.table import Table

from babylon_tasks.records.experiments import Arm, Experiment, ExperimentState, WindowEvidence
from babylon_tasks.serving.decide import decide
from babylon_tasks.settings import Settings

AGENTS = (6, 12, 24, 48, 200)
EFFECTS = (-1.0, -0.5, -0.2, 0.0, 0.2, 0.3, 0.5, 1.0)  # standard deviations of a score
SHAPE = (2.0, 5.0)  # of the beta distribution of the noise: skewed
DEVIATION = (SHAPE[0] * SHAPE[1] / (sum(SHAPE) ** 2 * (sum(SHAPE) + 1))) ** 0.5
WINDOW_DEVIATION = 0.1  # of what a window is worth to all its agents


def experiment(rng: random.Random, agents: int, effect: float) -> tuple[ExperimentState, int]:
    """Play one experiment; return how it ended, and after how many windows."""
    settings = Settings()
    running = Experiment(
        1, 2, 1, ExperimentState.RUNNING, "", settings.experiment_percent, "",
        datetime.now(UTC), None,
    )  # fmt: skip
    windows: list[WindowEvidence] = []
    while True:
        windows.append(_window(rng, agents, effect, running.percent))
        told = decide(running, windows, settings.experiment_windows)
        if told.end is not None:
            return told.end, len(windows)
        running = replace(running, percent=told.percent)


def _window(rng: random.Random, agents: int, effect: float, percent: float) -> WindowEvidence:
    worth = rng.gauss(0.0, WINDOW_DEVIATION)
    arms: tuple[list[float], list[float]] = ([], [])
    for _ in range(agents):
        is_candidate = rng.random() * 100 < percent
        score = worth + rng.betavariate(*SHAPE) + is_candidate * effect * DEVIATION
        arms[is_candidate].append(score)
    return WindowEvidence(*map(_arm, arms))


def _arm(scores: list[float]) -> Arm:
    mean = statistics.fmean(scores) if scores else 0.0
    return Arm(len(scores), mean, sum((score - mean) ** 2 for score in scores))


def cell(of: tuple[int, float], runs: int) -> dict[str, Any]:
    """Play the experiments of one number of agents and one effect."""
    agents, effect = of
    rng = random.Random(f"{agents} {effect}")
    ended = [experiment(rng, agents, effect) for _ in range(runs)]
    states = Counter(str(state) for state, _ in ended)
    decided = [windows for state, windows in ended if state != ExperimentState.UNDECIDED]
    return {
        "agents": agents,
        "effect": effect,
        "promoted": states["promoted"] / runs,
        "rolled_back": states["rolled_back"] / runs,
        "windows": statistics.median(decided) if decided else None,
    }


def main() -> None:
    """Play all cells and print them."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=400, help="experiments of a cell")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    cells = [(agents, effect) for agents in AGENTS for effect in EFFECTS]
    with ProcessPoolExecutor() as pool:
        found = list(pool.map(partial(cell, runs=options.runs), cells))
    if options.json:
        print(json.dumps(found, indent=1))
        return
    table = Table("agents", *(f"{effect:+g} sd" for effect in EFFECTS))
    for agents in AGENTS:
        row = [each for each in found if each["agents"] == agents]
        table.add_row(str(agents), *map(_written, row))
    console = Console(width=120)
    console.print(table)
    console.print("promoted / rolled back, in percent; median windows of those decided")


def _written(found: dict[str, Any]) -> str:
    shares = f"{found['promoted'] * 100:.0f} / {found['rolled_back'] * 100:.0f}"
    return shares if found["windows"] is None else f"{shares}; {found['windows']:g}"


if __name__ == "__main__":
    main()
