"""A table, and what became of its goal, for each part of `recipe.py`'s experiment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean, median

from intervals import paired, windows_until
from records import (
    HALF,
    Record,
    by_name,
    each,
    gaps_at_end,
    halves,
    lowest_form,
    made_with,
    mean_or_never,
    seconds_a_window,
    table,
    verdict,
    with_reach,
)

GOAL_GAP, GOAL_SEEDS, GOAL_FORM = 0.7, 4, 0.9
RECOVERY_WINDOWS = 6
SEEDS, REAL_SEEDS = 5, 2
FORM = "well-formed, at least"
AT_ONCE = 2
LAST_FAILED = 5  # windows whose failed calls are averaged


def screen(records: Sequence[Record]) -> str:
    """A line for each recipe, and what `shipped` was."""
    recipes = by_name(records, "screen")
    rows = [
        [
            name,
            str(len(runs)),
            with_reach(gaps_at_end(runs)),
            f"{min(gaps_at_end(runs)):.2f}",
            f"{lowest_form(runs):.3f}",
            mean_or_never(halves(runs)),
            f"{seconds_a_window(runs):.1f}",
        ]
        for name, runs in recipes.items()
    ]
    head = ["recipe", "seeds", "gap closed at the end", "lowest seed", FORM,
            "windows until half of the gap", "seconds a window"]  # fmt: skip
    return f"{table(head, rows)}\n\n{made_with(recipes.get('shipped', []))}" if rows else ""


def goals(records: Sequence[Record]) -> str:
    """A line for each seed of both arms, and the first goal."""
    arms = by_name(records, "goals")
    rows = [
        [
            name,
            str(run["seed"]),
            f"{run['gap_closed'][0]:.2f}",
            f"{run['gap_closed'][-1]:.2f}",
            f"{run['policy'][0]:.1f} → {run['policy'][-1]:.1f}",
            f"{run['oracle']:.1f}",
            each(halves([run])),
            f"{min(run['well_formed']):.3f}",
        ]
        for name, runs in arms.items()
        for run in runs
    ]
    head = ["the model's answers", "seed", "gap closed at the start", "at the end",
            "expected P&L, $", "oracle, $", "windows until half", FORM]  # fmt: skip
    if not rows:
        return ""
    lines = [_first_goal(*arm) for arm in arms.items()]
    return "\n".join([table(head, rows), "", *lines, made_with(arms.get("shipped", []))])


def _first_goal(name: str, runs: Sequence[Record]) -> str:
    ends = gaps_at_end(runs)
    reached = sum(end >= GOAL_GAP for end in ends)
    form = lowest_form(runs)
    under = sum(run["gap_closed"][-1] < run["gap_closed"][0] for run in runs)
    met = reached >= GOAL_SEEDS and form >= GOAL_FORM and under == 0
    text = (
        f"{name}: {with_reach(ends)} of the gap; {reached} of {len(runs)} seeds at {GOAL_GAP} or "
        f"more (goal: {GOAL_SEEDS}); well-formed never under {form:.3f} (goal: {GOAL_FORM}); "
        f"{under} seeds end under their start (goal: none)."
    )
    return verdict(met, text, runs, SEEDS)


def compare(records: Sequence[Record]) -> str:
    """A line for each lineage that learned from the same hours, and the goal against the others."""
    arms = by_name(records, "compare")
    rows = [
        [
            name,
            with_reach(gaps_at_end(runs)),
            f"{min(gaps_at_end(runs)):.2f}",
            each(halves(runs)),
            f"{lowest_form(runs):.3f}",
        ]
        for name, runs in arms.items()
    ]
    if "shipped" not in arms or len(arms) == 1:
        return ""
    head = ["lineage", "gap closed at the end", "lowest seed",
            "windows until half of the gap, by seed", FORM]  # fmt: skip
    ours = arms.pop("shipped")
    rate = [name for name in arms if name.endswith("our rate")]
    theirs = {name: runs for name, runs in arms.items() if name not in rate}
    lines = [_against(ours, theirs, "upstream's recipes and ART's steps at its own rate")]
    lines += [_against(ours, {name: arms[name]}, f"{name} (beyond the goal)") for name in rate]
    return "\n".join([table(head, rows), "", *lines])


def _against(ours: Sequence[Record], others: dict[str, list[Record]], whom: str) -> str:
    """Judge by medians over the seeds; who never gets there counts as a window after the last."""
    mine = median(_windows(ours))
    best, theirs = min(
        ((median(_windows(runs)), name) for name, runs in others.items()), default=(0.0, "")
    )
    last = max(run["windows"] for run in ours)
    told = "none gets there" if best > last else f"{best:g} windows ({theirs})"
    text = (
        f"half of the gap after {_number(mine, last)} windows, the median of the seeds; the best "
        f"of {whom}: {told}. Goal: at most half as many."
    )
    return verdict(mine <= best / 2, text, ours, SEEDS)


def _windows(runs: Sequence[Record]) -> list[int]:
    found = zip(halves(runs), runs, strict=True)
    return [run["windows"] + 1 if number is None else number for number, run in found]


def _number(windows: float, last: int) -> str:
    return f"more than {last}" if windows > last else f"{windows:g}"


def regimes(records: Sequence[Record]) -> str:
    """A flip of the market; answers of old versions; answers of others only."""
    arms = by_name(records, "regimes")
    loop = {run["seed"]: run for run in by_name(records, "goals").get("shipped", [])}
    offline = {
        name: [(run, loop[run["seed"]]) for run in runs if run["seed"] in loop]
        for name, runs in arms.items()
        if name != "flip"
    }
    kept = {name: pairs for name, pairs in offline.items() if pairs}
    parts = (_flip(arms.get("flip", [])), _offline(kept))
    return "\n\n".join(part for part in parts if part)


def _flip(runs: Sequence[Record]) -> str:
    rows, found = [], []
    for run in runs:
        gaps, flip = run["gap_closed"], run["flip_hour"]
        if len(gaps) <= flip:
            continue
        found.append(windows_until(gaps, HALF, flip))
        form = min(run["well_formed"])
        curve = _hundredths(gaps[flip - 1], gaps[flip], gaps[-1])
        rows.append([str(run["seed"]), *curve, each(found[-1:]), f"{form:.3f}"])
    if not rows:
        return ""
    head = ["seed", "gap closed before the flip", "at the flip", "at the end",
            "windows until half of the gap again", FORM]  # fmt: skip
    soon = [number for number in found if number is not None and number <= RECOVERY_WINDOWS]
    text = (
        f"{len(soon)} of {len(found)} seeds are at half of the gap again within "
        f"{RECOVERY_WINDOWS} windows of the flip (goal: all)."
    )
    return f"{table(head, rows)}\n\n{verdict(len(soon) == len(found), text, runs, SEEDS)}"


def _offline(arms: Mapping[str, Sequence[tuple[Record, Record]]]) -> str:
    """What each arm gains over its start, as a share of what the loop gains on the same seeds."""
    rows, lines = [], []
    for name, pairs in arms.items():
        gained = fmean(_gain(run) for run, _ in pairs)
        by_loop = fmean(_gain(loop) for _, loop in pairs)
        share = gained / by_loop
        text = (
            f"{name}: {gained:.2f} of the gap gained, where the loop gains {by_loop:.2f}: "
            f"{share:.0%} (goal: half)."
        )
        lines.append(verdict(share >= HALF, text, pairs, SEEDS))
        for run, loop in pairs:
            gaps, loops_end = run["gap_closed"], loop["gap_closed"][-1]
            form = min(run["well_formed"])
            seed = str(run["seed"])
            rows.append([name, seed, *_hundredths(gaps[0], gaps[-1], loops_end), f"{form:.3f}"])
    head = ("data", "seed", "gap closed at the start", "at the end", "the loop's end", FORM)
    return "\n".join([table(head, rows), "", *lines]) if rows else ""


def _gain(run: Record) -> float:
    return float(run["gap_closed"][-1] - run["gap_closed"][0])


def _hundredths(*values: float) -> list[str]:
    return [f"{value:.2f}" for value in values]


def absence(records: Sequence[Record]) -> str:
    """Both rules about calls that failed, by seed."""
    arms = by_name(records, "absence")
    rows = []
    for name, runs in arms.items():
        for run in runs:
            start, end = fails(run)[0], fails(run)[-1]
            last = fmean(run["failed"][-LAST_FAILED:])
            rows.append([name, str(run["seed"]), f"{start:.2f}", f"{end:.2f}", f"{last:.2f}",
                         f"{run['gap_closed'][-1]:.2f}"])  # fmt: skip
    if not rows:
        return ""
    head = ["a failed call is", "seed", "fails at the start", "at the end",
            f"of the last {LAST_FAILED} windows' calls", "gap closed at the end"]  # fmt: skip
    lines = []
    for name, better in (("left out", False), ("lowest score", True)):
        runs = arms.get(name, [])
        if runs:
            moved = [fails(run)[-1] - fails(run)[0] for run in runs]
            there = sum((move < 0) == better for move in moved)
            does = "fails less than at its start" if better else "learns to fail more"
            text = (
                f"{name}: {does} in {there} of {len(runs)} seeds; the share that fails changes by "
                f"{with_reach(moved, '+.2f')}."
            )
            lines.append(verdict(there == len(runs), text, runs, SEEDS))
    return "\n".join([table(head, rows), "", *lines])


def fails(run: Record) -> list[float]:
    """Return the probability of an answer that is no action, by look."""
    return [1 - share for share in run["well_formed"]]


def real(records: Sequence[Record]) -> str:
    """A line for each seed of the real model, with the interval of its gain over the markets."""
    runs = by_name(records, "real").get("real", [])
    rows, sure = [], []
    for run in runs:
        gain, base, last = "not stored", run["policy"][0], run["policy"][-1]
        if "base_by_market" in run:
            after, before = run["policy_by_market"], run["base_by_market"]
            base, last = fmean(before), fmean(after)
            mean, reach = paired(after, before)
            gain = f"{mean:.2f} ± {reach:.2f}"
            sure.append(mean - reach > 0)
        rows.append([str(run["seed"]), str(run["windows"]), f"{base:.2f}",
                     f"{last:.2f}", gain, f"{run['gap_closed'][0]:.2f}",
                     f"{run['gap_closed'][-1]:.2f}", f"{min(run['well_formed']):.3f}",
                     f"{run['seconds'] / 60:.0f}"])  # fmt: skip
    if not rows:
        return ""
    head = ["seed", "windows", "base model, $", "last version, $", "gain, $",
            "gap closed at the start", "at the end", FORM, "minutes"]  # fmt: skip
    text = (
        f"expected P&L is above the base model's with 95 % confidence in {sum(sure)} of "
        f"{len(runs)} seeds (goal: all)."
    )
    return f"{table(head, rows)}\n\n{verdict(len(runs) == sum(sure), text, runs, REAL_SEEDS)}"


def cost(records: Sequence[Record]) -> str:
    """What each part took, if that many runs were made at once."""
    parts: dict[str, dict[tuple[str, int], float]] = {}
    for record in records:  # of one run are several lineages
        parts.setdefault(record["part"], {})[record["run"], record["seed"]] = record["seconds"]
    rows = [
        [f"`python benchmarks/recipe.py {part}`", str(len(runs)),
         f"{sum(runs.values()) / 60 / AT_ONCE:.0f}"]
        for part, runs in parts.items()
    ]  # fmt: skip
    return table(["command", "runs", f"minutes, {AT_ONCE} runs at once"], rows) if rows else ""
