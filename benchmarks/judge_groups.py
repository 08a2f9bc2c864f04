"""Ways to bring a window's judged groups to one scale: how well each keeps the ranking, simulated.

    python benchmarks/judge_groups.py [--draws 20] [--seed 1] [--json]

Each draw has agents with a true worth in [0, 1], and a prior ranking whose correlation with it is
0.5 or 0 (on the normal scale). `groups.plan` makes the groups. The judge sees a group's worths with
noise (the given standard deviation; the worths' range is 1) and answers in one of three ways:

- *squeezed*: times 0.5 to 1.5, plus -0.25 to 0.25, drawn anew for each group; if numbers leave
  [0, 1], all numbers of the group are squeezed into it;
- *clipped*: the same, but cut off at 0 and 1;
- *min-max*: the group's least is 0 and its greatest 1.

A figure is the mean rank correlation (Spearman) with the truth, divided by that of one group with
all agents and the same noise. It may exceed 1, because ids that several groups share are judged
more than once. Rows are means over the judges and both priors. *Lowest* is the figure of the worst
setting; *lowest, even worths* leaves out two camps and halved groups. With 20 draws the lowest
figures are partly chance; 150 draws make them stable, in two minutes.

The methods; each takes the mean for shared ids:

- *none*: the numbers as the judge gave them;
- *offset*: each group shifted to agree on shared ids, by least squares;
- *line*: each group also stretched, with a ridge of 0.3 towards 1;
- *moments*: each group brought to one mean and spread; shared ids play no part;
- *ours*: `scale.on_one_scale`, spread by moments and shift by shared ids and means;
- *both*: moments, then a line with ridges of 4 and 2.

Worths are *even* over [0, 1], or of *two camps*: a sixth of the agents are far better, so groups
differ more. *Halved*: the judge failed on every third group, and `groups.halves` split it.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import random
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import NormalDist, fmean
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from babylon_tasks.scoring.agreement import spearman
from babylon_tasks.scoring.judge import groups
from babylon_tasks.scoring.judge.scale import match_spreads, on_one_scale

Numbers = Mapping[str, float]
Method = Callable[[Sequence[Numbers]], dict[str, float]]

NOISES = (0.05, 0.1, 0.2)
PRIORS = (0.5, 0.0)
JUDGES = ("squeezed", "clipped", "min-max")


@dataclass(frozen=True)
class Setting:
    """One setting to simulate; `noise` is a standard deviation, `prior` a correlation."""

    agents: int = 64
    size: int = 12
    noise: float = 0.1
    truth: str = "even"
    halved: bool = False
    prior: float = 0.5
    judge: str = "squeezed"


def means(judged: Sequence[Numbers]) -> dict[str, float]:
    """Return the mean of each id's numbers."""
    numbers: dict[str, list[float]] = defaultdict(list)
    for group in judged:
        for each, number in group.items():
            numbers[each].append(number)
    return {each: fmean(judgments) for each, judgments in numbers.items()}


def moments(judged: Sequence[Numbers]) -> dict[str, float]:
    """Return means, after each group was brought to mean 0 and the common spread."""
    return means(match_spreads(judged))


def lines(judged: Sequence[Numbers], slope_ridge: float, shift_ridge: float) -> dict[str, float]:
    """Return means of a·u + b, with a and b for each group such that shared ids agree.

    By turns, least Σ (a_g u_ig + b_g - s_i)² + slope_ridge Σ (a_g - 1)² + shift_ridge Σ b_g².
    """
    count = Counter(each for group in judged for each in group)
    shared = [{each: u for each, u in group.items() if count[each] > 1} for group in judged]
    fits = [(1.0, 0.0)] * len(judged)
    for _ in range(100):
        agreed: dict[str, float] = defaultdict(float)
        for group, (a, b) in zip(shared, fits, strict=True):
            for each, u in group.items():
                agreed[each] += (a * u + b) / count[each]
        before, fits = fits, []
        for group in shared:
            n = len(group) + shift_ridge
            u_sum, s_sum = sum(group.values()), sum(agreed[each] for each in group)
            over = sum(u * agreed[each] for each, u in group.items()) - u_sum * s_sum / n
            under = sum(u * u for u in group.values()) - u_sum * u_sum / n
            a = max(0.2, (over + slope_ridge) / (under + slope_ridge))
            fits.append((a, (s_sum - a * u_sum) / n))
        if all(math.dist(*pair) < 1e-6 for pair in zip(before, fits, strict=True)):
            break
    return means(
        [{each: a * u + b for each, u in g.items()} for g, (a, b) in zip(judged, fits, strict=True)]
    )


METHODS: dict[str, Method] = {
    "none": means,
    "offset": lambda judged: lines(judged, 1e9, 1e-3),
    "line": lambda judged: lines(judged, 0.3, 1e-3),
    "moments": moments,
    "ours": on_one_scale,
    "both": lambda judged: lines(_in_spreads(match_spreads(judged)), 4.0, 2.0),
}


def _in_spreads(judged: Sequence[Numbers]) -> list[Numbers]:
    """Divide by the common spread, because the ridges are meant for that unit."""
    spread = math.sqrt(fmean(u * u for group in judged for u in group.values())) or 1.0
    return [{each: u / spread for each, u in group.items()} for group in judged]


def draw(setting: Setting, rng: random.Random) -> tuple[dict[str, float], list[str]]:
    """Draw the agents' true worths, and rank the agents by the prior, best first."""
    worths, guesses = {}, {}
    for number in range(setting.agents):
        z = rng.gauss(0, 1)
        worth = NormalDist().cdf(z)
        if setting.truth == "two camps":
            worth = worth / 4 + (0.75 if z > 1 else 0.0)
        worths[f"agent-{number}"] = worth
        other = math.sqrt(1 - setting.prior**2)
        guesses[f"agent-{number}"] = setting.prior * z + other * rng.gauss(0, 1)
    return worths, sorted(guesses, key=guesses.__getitem__, reverse=True)


def answer(
    setting: Setting, worths: Numbers, group: Sequence[str], rng: random.Random
) -> dict[str, float]:
    """Draw the judge's numbers for one group."""
    seen = {each: worths[each] + rng.gauss(0, setting.noise) for each in group}
    if setting.judge == "min-max":
        lowest, highest = min(seen.values()), max(seen.values())
        return {each: (number - lowest) / (highest - lowest) for each, number in seen.items()}
    stretch, shift = rng.uniform(0.5, 1.5), rng.uniform(-0.25, 0.25)
    seen = {each: 0.5 + stretch * (number - 0.5) + shift for each, number in seen.items()}
    if setting.judge == "clipped":
        return {each: max(0.0, min(1.0, number)) for each, number in seen.items()}
    lowest, highest = min(0.0, *seen.values()), max(1.0, *seen.values())
    return {each: (number - lowest) / (highest - lowest) for each, number in seen.items()}


def planned(setting: Setting, ranked: Sequence[str], seed: str) -> list[list[str]]:
    """Plan the groups; if the setting says so, halve every third one."""
    plan = groups.plan(ranked, setting.size, seed)
    if not setting.halved:
        return plan
    return [
        part
        for number, group in enumerate(plan)
        for part in (groups.halves(group, ranked, seed) if number % 3 == 0 else [group])
    ]


def simulate(setting: Setting, names: Sequence[str], draws: int, seed: int) -> dict[str, float]:
    """Simulate one setting.

    `single` is the rank correlation of one group with all agents; a method has its share of that.
    """
    rng = random.Random(f"{seed} {setting}")
    sums = dict.fromkeys(("single", *names), 0.0)
    for number in range(draws):
        worths, ranked = draw(setting, rng)
        truth = list(worths.values())
        alone = answer(setting, worths, list(worths), rng)
        sums["single"] += spearman(truth, list(alone.values())) or 0.0
        judged = [
            answer(setting, worths, group, rng) for group in planned(setting, ranked, f"{number}")
        ]
        for name in names:
            numbers = METHODS[name](judged)
            sums[name] += spearman(truth, [numbers[each] for each in worths]) or 0.0
    shares = {name: sums[name] / sums["single"] for name in names}
    return {"single": sums["single"] / draws, **shares}


def measure(draws: int, seed: int) -> list[dict[str, Any]]:
    """Simulate each setting."""
    rows = [
        *(Setting(*sizes) for sizes in ((24, 8), (24, 12), (64, 8), (64, 12), (64, 16), (200, 12))),
        Setting(halved=True),
        Setting(truth="two camps"),
    ]
    settings = [
        replace(row, noise=noise, prior=prior, judge=judge)
        for row, noise, prior, judge in itertools.product(rows, NOISES, PRIORS, JUDGES)
    ]
    return [asdict(each) | simulate(each, list(METHODS), draws, seed) for each in settings]


def table(figures: Sequence[Mapping[str, Any]]) -> str:
    """Write the figures for people."""
    by_row = defaultdict(list)
    for each in figures:
        kind = "halved" if each["halved"] else each["truth"]
        by_row[each["agents"], each["size"], kind, each["noise"]].append(each)
    names = ("single", *METHODS)
    lines = ["agents  size  worths     noise" + "".join(f"{name:>9}" for name in names)]
    for (agents, size, kind, noise), settings in by_row.items():
        numbers = "".join(f"{fmean(each[name] for each in settings):9.3f}" for name in names)
        lines.append(f"{agents:6}{size:6}  {kind:<9}{noise:7.2f}{numbers}")
    even = [each for each in figures if each["truth"] == "even" and not each["halved"]]
    mean = [f"{fmean(each[name] for each in figures):9.3f}" for name in METHODS]
    lowest_even = [f"{min(each[name] for each in even):9.3f}" for name in METHODS]
    lowest = [f"{min(each[name] for each in figures):9.3f}" for name in METHODS]
    for title, cells in (("mean", mean), ("lowest, even worths", lowest_even), ("lowest", lowest)):
        lines.append(f"{title:<39}{''.join(cells)}")
    return "\n".join(lines)


def main() -> None:
    """Simulate and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--draws", type=int, default=20, help="draws of each setting")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    figures = measure(arguments.draws, arguments.seed)
    given = {"draws": arguments.draws, "seed": arguments.seed}
    print(json.dumps({**given, "settings": figures}) if arguments.json else table(figures))


if __name__ == "__main__":
    main()
