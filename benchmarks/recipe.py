"""Which recipe makes agents better, by experiment: closed loops in the simulated market.

    python benchmarks/recipe.py screen             which recipe, on seeds 1 to 5
    python benchmarks/recipe.py goals              the shipped one, on seeds 6 to 10
    python benchmarks/recipe.py compare            against upstream's and ART's, on the same traces
    python benchmarks/recipe.py regimes            a flip of the market; old data; others' data
    python benchmarks/recipe.py absence            an agent that can fail on purpose
    python benchmarks/recipe.py real               a real language model, SmolLM2-135M-Instruct
    python benchmarks/recipe.py report             a table and the plots of what was run

Each run is a line of RESULTS as soon as it ends, and one that has a line is not made again, unless
it failed (`--fresh` makes all again; the newest line counts). The parts are independent. A look is
the expected P&L of the policy, exactly, on 64 markets that nobody plays, as a share of the way from
the noise persona (0) to the oracle (1). The recipe was chosen on seeds 1 to 5; all other parts use
seeds 6 to 10.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

RESULTS = Path(__file__).resolve().parents[1] / "docs" / "learning.jsonl"
CHOSEN_ON, SHOWN_ON, REAL_ON = (1, 2, 3, 4, 5), (6, 7, 8, 9, 10), (6, 7)
WINDOWS, SCREEN_WINDOWS, REAL_WINDOWS, FLIP = 20, 16, 12, 12


@dataclass(frozen=True)
class Run:
    """A closed loop of one seed. `recipe` has what differs from the settings as shipped."""

    part: str
    name: str
    seed: int
    windows: int = WINDOWS
    recipe: dict[str, Any] = field(default_factory=dict)
    world: dict[str, Any] = field(default_factory=dict)
    flip_hour: int | None = None
    lag: int = 0
    floor: bool = True
    model: str = "tiny"

    @property
    def key(self) -> tuple[str, str, int]:
        """What names a run."""
        return self.part, self.name, self.seed


# One factor at a time around the recipe as shipped.
FACTORS: dict[str, Sequence[Any]] = {
    "learning_rate": (3e-4, 1e-3, 4e-3),
    "passes": (1, 4),
    "max_policy_change": (None, 0.1, 0.5),
    "negative_scale": (0.0, 1.0),
    "unrecorded_ratio": ("one", "parent"),
    "ratio_cap": (2.0, 5.0),
    "kl_penalty": (0.1,),
    "warmup_steps": (0, 20),
    "lora_rank": (2, 32),
}
# What was shipped before, and combinations of which one factor alone says little. A window is a
# step here, so `windows_per_update` and `group_deviation` change nothing (see docs/learning.md).
_BEFORE = {
    "passes": 1, "windows_per_update": 0, "kl_penalty": 0.1, "negative_scale": 0.3,
    "ratio_cap": 5.0, "unrecorded_ratio": "one", "max_policy_change": None,
}  # fmt: skip
COMBINATIONS: dict[str, dict[str, Any]] = {
    "as before": {**_BEFORE, "learning_rate": 1e-5},
    "as before, rate 1e-3": {**_BEFORE, "learning_rate": 1e-3},
    "plain GRPO": {"negative_scale": 1.0, "ratio_cap": 5.0, "unrecorded_ratio": "one",
                   "max_policy_change": None},
    "KL 0.1 to the parent": {"kl_penalty": 0.1, "kl_reference": "parent"},
    "rate 1e-3, 4 passes": {"passes": 4, "learning_rate": 1e-3},
}  # fmt: skip


# What is run first, with all seeds: each takes the place of one thing in the recipe.
FIRST = (
    "shipped", "as before", "as before, rate 1e-3", "plain GRPO", "unrecorded_ratio one",
    "negative_scale 1", "max_policy_change None", "kl_penalty 0.1", "passes 4",
    "learning_rate 0.004",
)  # fmt: skip


def runs_of(part: str) -> list[Run]:
    """Return the runs of a part, those that tell most first."""
    if part == "screen":
        recipes = _screened()
        later = [name for name in recipes if name not in FIRST]
        return [
            Run(part, name, seed, SCREEN_WINDOWS, recipes[name])
            for names in (FIRST, later)
            for seed in CHOSEN_ON
            for name in names
        ]
    if part == "goals":
        arms: dict[str, dict[str, Any]] = {
            "shipped": {},
            "without log-probabilities": {"recorded": False},
        }
        return [Run(part, name, s, world=world) for name, world in arms.items() for s in SHOWN_ON]
    if part == "compare":
        return [Run(part, "compare", seed) for seed in SHOWN_ON]
    if part == "regimes":
        return [
            *(Run(part, "flip", seed, flip_hour=FLIP) for seed in SHOWN_ON),
            *(Run(part, "six versions old", seed, lag=6) for seed in SHOWN_ON),
            *(Run(part, "others only", seed, world={"policies": 0}) for seed in SHOWN_ON),
        ]
    if part == "absence":
        return [
            Run(
                part,
                name,
                seed,
                SCREEN_WINDOWS,
                {"negative_scale": 1.0},
                {"hostile": True},
                floor=floor,
                model="breaker",
            )
            for seed in SHOWN_ON
            for name, floor in (("left out", False), ("lowest score", True))
        ]
    return [
        Run(part, "real", s, REAL_WINDOWS, model="real", world={"small": True}) for s in REAL_ON
    ]


def _screened() -> dict[str, dict[str, Any]]:
    one = {f"{f} {v:g}" if isinstance(v, float) else f"{f} {v}": {f: v}
           for f, values in FACTORS.items() for v in values}  # fmt: skip
    return {"shipped": {}, **COMBINATIONS, **one}


def execute(run: Run, models: Path) -> list[dict[str, Any]]:
    """Make a run, and return a record of each lineage in it; of a run that failed, its error."""
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch
    from experiment import play

    torch.set_num_threads(1)
    started = time.monotonic()
    try:
        with tempfile.TemporaryDirectory() as folder:
            records = play(run, models, Path(folder))
    except Exception as error:  # noqa: BLE001  (one run must not end the others)
        line = " ".join(f"{type(error).__name__}: {error}".split())
        records = [{"run": run.name, "error": line}]
    seconds = round(time.monotonic() - started, 1)
    return [{**asdict(run), "seconds": seconds, **record} for record in records]


def make(runs: Sequence[Run], models: Path, jobs: int, results: Path) -> None:
    """Make the runs, some at once, and append each to the results when it ends."""
    if jobs == 1:
        for run in runs:
            _append(execute(run, models), results)
        return
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        for records in pool.map(execute, runs, [models] * len(runs)):
            _append(records, results)


def _append(records: Sequence[dict[str, Any]], results: Path) -> None:
    with results.open("a") as file:
        for record in records:
            file.write(json.dumps(record) + "\n")
            print(f"{record['name']:28} seed {record['seed']:2}  {_curve(record)}", flush=True)


def _curve(record: dict[str, Any]) -> str:
    if "error" in record:
        return str(record["error"])
    gaps = " ".join(f"{gap:.2f}" for gap in record["gap_closed"][::4])
    return f"{gaps}  form {min(record['well_formed']):.2f}  {record['seconds']:.0f} s"


def read(results: Path) -> list[dict[str, Any]]:
    """Read the results."""
    return (
        [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    )


def main() -> None:
    """Make the runs of a part that were not made before, or report on all."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parts = ("screen", "goals", "compare", "regimes", "absence", "real")
    parser.add_argument("part", choices=(*parts, "report"))
    parser.add_argument("--models", type=Path, default=Path(".babylon/experiments"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--fresh", action="store_true", help="make runs again that were made")
    arguments = parser.parse_args()
    if arguments.part == "report":
        from report import report

        print(report(read(arguments.results), arguments.results.parent))
        return
    from experiment import make_models

    make_models(arguments.models, arguments.part)
    runs = runs_of(arguments.part)
    if not arguments.fresh:
        made = {(r["part"], r["run"], r["seed"]) for r in read(arguments.results)
                if "error" not in r}  # fmt: skip
        runs = [run for run in runs if run.key not in made]
    make(runs, arguments.models, arguments.jobs, arguments.results)


if __name__ == "__main__":
    main()
