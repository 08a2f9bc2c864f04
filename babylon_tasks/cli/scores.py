"""`babylon scores compare`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict

import click
from rich.table import Table

from babylon_tasks.cli.common import as_json, of_lineage, print_json, ready_fleet, wide_console
from babylon_tasks.cli.progress_line import progress
from babylon_tasks.errors import UserError
from babylon_tasks.records.windows import State
from babylon_tasks.scoring.compare import Comparison, choose_windows
from babylon_tasks.scoring.compare import compare as compare_windows
from babylon_tasks.scoring.judge.bill import Bill
from babylon_tasks.scoring.registry import SCORERS
from babylon_tasks.scoring.window_comparison import Mean, Move, WindowComparison, largest
from babylon_tasks.settings import load_settings
from babylon_tasks.settings.overrides import parse_overrides

_LAST = 24
_MOST_MOVES = 5


@click.group()
def scores() -> None:
    """Compare the scores of past windows with those of another recipe."""


@scores.command()
@click.option("--scoring", type=click.Choice(SCORERS), help="Scorer to use, instead of SCORING.")
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Value of another setting, such as JUDGE_RUBRIC; an empty one is the deployment's. It may "
    "be given again.",
)
@click.option(
    "--windows",
    multiple=True,
    metavar="WINDOW_ID,…",
    help="Windows to compare, separated by commas; may be given again.",
)
@click.option(
    "--last",
    type=click.IntRange(1, 10_000),
    help="Number of windows to compare if none is named: the newest that are scored or trained, "
    f"{_LAST} without this.",
)
@of_lineage
@as_json
def compare(
    scoring: str | None,
    overrides: tuple[str, ...],
    windows: tuple[str, ...],
    last: int | None,
    lineage: str | None,
    as_json: bool,
) -> None:
    """Score past windows by another recipe, and compare that with their stored scores.

    It changes no window and no score. A judge's answers cost money, count towards JUDGE_DAILY_USD
    and are kept: a later scoring that asks the same has them for nothing.

    Example: babylon scores compare --scoring ruler --set JUDGE_RUBRIC=patience.md --last 48
    """
    if windows and last is not None:
        raise UserError("name the windows with --windows, or count them with --last, not both")
    window_ids = [each.strip() for text in windows for each in text.split(",")]
    recipe = parse_overrides(overrides)
    if scoring and recipe.setdefault("SCORING", scoring) != scoring:
        raise UserError("--scoring and --set SCORING name two scorers: name one")
    context = ready_fleet(load_settings()).context(lineage, recipe)
    chosen = choose_windows(context, window_ids, last or _LAST)
    with progress(f"reading {len(chosen)} windows", quiet=as_json) as shown:
        comparison = compare_windows(context, chosen, shown.say)
    if as_json:
        print_json(asdict(comparison))
    else:
        _print(comparison)


def _print(comparison: Comparison) -> None:
    console = wide_console()
    console.print(_windows_table(comparison))
    moves = largest([move for each in comparison.windows for move in each.moves], _MOST_MOVES)
    if moves:
        click.echo("largest moves")
        console.print(_moves_table(moves))
    for window_id, why in comparison.not_compared.items():
        click.echo(f"{window_id} is not compared: {why}")
    click.echo(f"Spearman       {_mean(comparison.spearman, _signed)}")
    click.echo(f"Kendall        {_mean(comparison.kendall, _signed)}")
    click.echo(f"pairs changed  {_mean(comparison.pairs_changed, _percent)}")
    click.echo(
        f"signal         {comparison.newly_skipped} scored windows would be skipped, "
        f"{comparison.newly_scored} skipped ones scored"
    )
    cost = comparison.judge
    if cost is None:
        click.echo(f"cost           none: {comparison.scorer} asks no judge")
        return
    click.echo(f"cost           {_bill(cost.bought)} of {cost.model}")
    if cost.found.answers:
        click.echo(f"bought before  {_bill(cost.found)}")
    click.echo(f"24 windows     {_bill(cost.day)} a day")


def _windows_table(comparison: Comparison) -> Table:
    table = Table(
        "window",
        "before",
        "after",
        "compared",
        "Spearman",
        "Kendall",
        "pairs changed",
        "notes",
    )
    for each in comparison.windows:
        table.add_row(
            each.window_id,
            _scored(each.scorer, each.before),
            _scored(comparison.scorer, each.after),
            str(each.compared),
            _signed(each.spearman),
            _signed(each.kendall),
            _percent(each.pairs_changed),
            _notes(each),
        )
    return table


def _moves_table(moves: Sequence[Move]) -> Table:
    table = Table("window", "agent", "trajectory", "rank", "score")
    for each in moves:
        table.add_row(
            each.window_id,
            each.agent_id,
            each.trajectory_id,
            f"{each.rank_before:g} → {each.rank_after:g}",
            f"{each.score_before:.3f} → {each.score_after:.3f}",
        )
    return table


def _scored(scorer: str, state: State | None) -> str:
    return f"{scorer}, skipped" if state is State.SKIPPED else scorer


def _notes(window: WindowComparison) -> str:
    counts = [
        f"{count} {name.replace('_', ' ')}"
        for name, count in asdict(window.differences).items()
        if count
    ]
    return "; ".join([*([window.why_skip] if window.why_skip else []), *counts])


def _mean(mean: Mean, write: Callable[[float | None], str]) -> str:
    return f"{write(mean.mean):7} mean of {mean.windows} windows"


def _signed(figure: float | None) -> str:
    return "-" if figure is None else f"{figure:+.3f}"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"


def _bill(bill: Bill) -> str:
    usd = "at a price that nobody knows" if bill.usd is None else f"${bill.usd:.4f}"
    return f"{bill.answers} answers, {bill.tokens:,} tokens, {usd}"
