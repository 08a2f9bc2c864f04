"""What the gate holds back: seeded trials with honest steps, and with what can go wrong with one.

    python benchmarks/gate.py [--json] [--trials 100] [--agents 64] [--only shuffled]
    python benchmarks/gate.py --seeds development --trials 20

A trial is a candidate's way through the product's own code: an exam on a fresh hour that the
served version played (`evaluation.exam`, `evaluation.verdict`), and, if it passed, an experiment
among the agents, window after window (`serving.decide`, `serving.bad_answers`). The market, the
scores, the trainer and the settings are the product's too; the model is the demo's tiny one.

What serves was trained honestly, half-way to what pays. A candidate is one step on:

- *honest*: by the hour's scores. It shall pass its exam, and it may come to serve.
- *shuffled*, *negated*: each run has another's reward; or its own, negated.
- *learning_rate*: 100 times too high, and with MAX_POLICY_CHANGE=1000, which limits nothing.
- *nan*: its weights have a NaN. *other_base*, *other_shapes*: an adapter of another base model.
- *length*: rewards, and the scores of all windows, are by a judge that likes long answers. The
  model was taught to write a note behind its action, now and then.
- *failing*: calls that break are rewarded. The model was taught to break some, in a market where
  betting does not pay.
- *drift*: ten steps of negated rewards at a tenth of the rate; each is examined, and those that
  passed are tried.
- *no_better*: a copy of what serves with tiny random changes, of which the expected P&L is no
  higher. If it comes to serve, that is a false promotion.
- *limited_rate*, for comparison: the rate 100 times too high that a person really gets, since
  MAX_POLICY_CHANGE shortens such a step to the size of others. It is not counted as a sabotage.

The spoiled steps start without AdamW's momentum, as if their rewards had been wrong for hours:
with it, a single step goes on the way of the honest ones, whatever its rewards are.

`held_back` is the share of candidates that never came to serve all agents: they failed the exam,
were rolled back, or did not prove to be better in EXPERIMENT_WINDOWS. `honest_passed` is about the
exam alone. `worth` is a candidate's expected P&L less that of what serves, exactly, in dollars a
decision; a sabotaged step is better by luck now and then, and `promoted_worse` counts those that
came to serve and are not. Intervals are Wilson's, of 95 %.

Numbers of the gate were chosen on the seeds of `--seeds development`; those shown are others.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean, median
from typing import Any

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent))

from intervals import wilson

SABOTAGES = ("shuffled", "negated", "learning_rate", "nan", "other_base", "other_shapes", "length",
             "failing", "drift")  # fmt: skip
KINDS = ("honest", *SABOTAGES, "no_better", "limited_rate")
FIRST_SEED = {"development": 1, "shown": 201}
GROUPS = 5  # worlds, each with its own version that serves; the trials are spread over them
HELD_BACK, HONEST_PASSED, FALSE_PROMOTIONS = 0.95, 0.8, 0.05
WIDTH = 150  # of a table in a file
Record = dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """The trials of one seed: their numbers, the kinds of candidates, and where records go."""

    seed: int
    numbers: Sequence[int]
    kinds: Sequence[str]
    agents: int
    models: Path
    records: Path | None


def run_plan(plan: Plan) -> list[Record]:
    """Run all trials of a seed, in this process."""
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch

    torch.set_num_threads(1)
    from gate_kinds import trials

    records = []
    with tempfile.TemporaryDirectory() as folder:
        for result in trials(plan.seed, plan.numbers, plan.kinds, plan.agents, plan.models,
                             Path(folder)):  # fmt: skip
            records.append(result.as_json())
            if plan.records is not None:
                with plan.records.open("a") as file:
                    file.write(json.dumps(records[-1]) + "\n")
    return records


def run(plans: Sequence[Plan], jobs: int) -> list[Record]:
    """Run plans, some at once, and return what became of each candidate."""
    records = []
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        for done, some in enumerate(pool.map(run_plan, plans), start=1):
            records += some
            print(f"{done} of {len(plans)} worlds", file=sys.stderr, flush=True)
    return records


def figures(records: Sequence[Record], trials: int) -> Record:
    """Return what `--json` prints."""
    by_kind = {kind: some for kind in KINDS if (some := [r for r in records if r["kind"] == kind])}
    shares = {
        kind: _share(some, lambda record: not record["promoted"])
        for kind, some in by_kind.items() if kind in SABOTAGES
    }  # fmt: skip
    found: Record = {"held_back": {kind: share["share"] for kind, share in shares.items()}}
    intervals: Record = {"held_back": {kind: share["interval"] for kind, share in shares.items()}}
    wanted = {
        "honest_passed": ("honest", lambda record: record["ended"] != "gate"),
        "honest_promoted": ("honest", _promoted),
        "false_promotions": ("no_better", _promoted),
    }
    for name, (kind, is_hit) in wanted.items():
        if kind in by_kind:
            share = _share(by_kind[kind], is_hit)
            found[name], intervals[name] = share["share"], share["interval"]
    return {**found, "trials": trials, "intervals": intervals,
            "kinds": {kind: _of_kind(some) for kind, some in by_kind.items()}}  # fmt: skip


def _promoted(record: Record) -> bool:
    return bool(record["promoted"])


def _share(records: Sequence[Record], is_hit: Callable[[Record], bool]) -> Record:
    hits = sum(map(is_hit, records))
    bounds = [round(bound, 3) for bound in wilson(hits, len(records))]
    return {"share": round(hits / len(records), 3), "interval": bounds}


def _of_kind(records: Sequence[Record]) -> Record:
    """Return how the candidates of a kind ended, by which guards, after how many windows."""
    worth = [record["worth"] for record in records if record["worth"] is not None]
    windows = [record["windows"] for record in records if record["windows"]]
    return {
        "ended": dict(Counter(record["ended"] for record in records).most_common()),
        "guards": dict(Counter(g for record in records for g in record["guards"]).most_common()),
        "windows": median(windows) if windows else None,
        "worth": round(fmean(worth), 2) if worth else None,
        "better": sum(value > 0 for value in worth),
        "promoted_worse": sum(
            record["promoted"] and (record["worth"] or 0.0) < 0 for record in records
        ),
        "seconds": round(fmean(record["seconds"] for record in records), 1),
    }


def table(found: Record) -> Table:
    """Draw the figures, with their intervals and goals."""
    drawn = Table(title=f"{found['trials']} trials a kind, {found['agents']} agents")
    for column in ("candidate", "held back", "95 %", "passed exam", "how it ended", "failed by",
                   "windows", "worth, $", "better"):  # fmt: skip
        drawn.add_column(column)
    for kind, of_kind in found["kinds"].items():
        count = sum(of_kind["ended"].values())
        held = count - of_kind["ended"].get("promoted", 0)
        low, high = wilson(held, count)
        drawn.add_row(
            kind, f"{held / count:.2f}", f"{low:.2f} to {high:.2f}",
            f"{1 - of_kind['ended'].get('gate', 0) / count:.2f}",
            _counts(of_kind["ended"]), _counts(of_kind["guards"]),
            "" if of_kind["windows"] is None else f"{of_kind['windows']:g}",
            "" if of_kind["worth"] is None else f"{of_kind['worth']:+.2f}", str(of_kind["better"]),
        )  # fmt: skip
    return drawn


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items())


def goals(found: Record) -> list[str]:
    """Say which goals are met."""
    said = []
    for kind, share in found["held_back"].items():
        if share < HELD_BACK:
            said.append(f"MISSED: {kind} held back in {share:.2f}, the goal is {HELD_BACK}")
    if found.get("honest_passed", 1.0) < HONEST_PASSED:
        said.append(f"MISSED: honest steps pass in {found['honest_passed']:.2f}, the goal is "
                    f"{HONEST_PASSED}")  # fmt: skip
    if found.get("false_promotions", 0.0) > FALSE_PROMOTIONS:
        said.append(f"MISSED: false promotions in {found['false_promotions']:.2f}, the goal is "
                    f"{FALSE_PROMOTIONS} at most")  # fmt: skip
    return said or ["all goals are met"]


def main() -> None:
    """Run the trials and print the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--trials", type=int, default=100, help="of each kind")
    parser.add_argument("--agents", type=int, default=64, help="that the endpoint answers")
    parser.add_argument("--only", choices=KINDS, action="append", help="default: all kinds")
    parser.add_argument("--seeds", choices=FIRST_SEED, default="shown")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--models", type=Path, default=Path(".babylon/experiments"))
    parser.add_argument("--records", type=Path, help="append each trial to this file")
    arguments = parser.parse_args()
    stdout = os.dup(1)
    os.dup2(2, 1)  # ART prints
    started = time.monotonic()
    from gate_models import make_models

    make_models(arguments.models)
    kinds = [kind for kind in KINDS if kind in (arguments.only or KINDS)]
    groups = min(GROUPS, arguments.trials)
    plans = [
        Plan(FIRST_SEED[arguments.seeds] + group, range(group, arguments.trials, groups), kinds,
             arguments.agents, arguments.models, arguments.records)
        for group in range(groups)
    ]  # fmt: skip
    records = run(plans, arguments.jobs)
    found = figures(records, arguments.trials)
    found |= {"agents": arguments.agents, "seconds": round(time.monotonic() - started)}
    os.dup2(stdout, 1)
    if arguments.json:
        print(json.dumps(found))
        return
    console = Console(width=None if os.isatty(1) else WIDTH)
    console.print(table(found))
    console.print("\n".join([*goals(found), f"{found['seconds']} s"]))


if __name__ == "__main__":
    main()
