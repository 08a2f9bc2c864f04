"""`babylon models diff`."""

from __future__ import annotations

from collections.abc import Collection

import click
from rich.table import Table

from babylon_tasks.cli.common import as_json, print_json, ready_fleet, wide_console
from babylon_tasks.cockpit.diff import Diff, Pairs, Side, read_diff
from babylon_tasks.records.recipes import Value
from babylon_tasks.settings import load_settings

_MOST_WINDOWS = 8  # that one line names


@click.command()
@click.argument("a")
@click.argument("b")
@as_json
def diff(a: str, b: str, as_json: bool) -> None:
    """Show what changed between two steps: recipe, data and metrics.

    Each of the two is a step or version of MODEL_NAME, NAME@STEP for one of another lineage, or
    NAME for the head of a lineage. Windows, trajectories and tokens count from the last step that
    both have in common.

    Example: babylon models diff v1.0.3 bolder
    """
    found = read_diff(ready_fleet(load_settings()), a, b)
    if as_json:
        print_json(_as_json(found))
    else:
        _print(found)


def _as_json(found: Diff) -> dict[str, object]:
    a, b = found.data
    return {
        "a": _side(found.a),
        "b": _side(found.b),
        "common": {"lineage": found.common.model_name, "step": found.common.step}
        if found.common
        else None,
        "recipe": None if found.recipe is None else _pairs(found.recipe),
        "overrides": _pairs(found.overrides),
        "windows": {
            "only_a": _without(a.windows, b.windows),
            "only_b": _without(b.windows, a.windows),
            "both": _both(found),
        },
        "steps": {"a": a.steps, "b": b.steps},
        "trajectories": {"a": a.trajectories, "b": b.trajectories},
        "trainable_tokens": {"a": a.trainable_tokens, "b": b.trainable_tokens},
        "metrics": _pairs(found.metrics),
    }


def _side(side: Side) -> dict[str, object]:
    return {
        "lineage": side.lineage.name,
        "head": side.head,
        "step": side.step.step if side.step else 0,
        "version": side.step.version if side.step else None,
        "has_recipe": side.recipe is not None,
    }


def _pairs(pairs: Pairs) -> dict[str, dict[str, Value]]:
    return {name: {"a": a, "b": b} for name, (a, b) in pairs.items()}


def _without(windows: Collection[str], others: Collection[str]) -> list[str]:
    known = set(others)
    return [window_id for window_id in windows if window_id not in known]


def _both(found: Diff) -> list[str]:
    a, b = found.data
    known = set(b.windows)
    return [window_id for window_id in a.windows if window_id in known]


def _print(found: Diff) -> None:
    click.echo(f"a: {_name(found.a)}")
    click.echo(f"b: {_name(found.b)}")
    if found.common is None:
        click.echo("in common: no step")
    else:
        common = found.common
        click.echo(f"in common: up to step {common.step} ({common.version}) of {common.model_name}")
    _print_pairs("override", found.overrides)
    if found.recipe is None:
        click.echo("recipe: " + " and ".join(_without_recipe(found)))
    elif found.recipe:
        _print_pairs("recipe", found.recipe)
    else:
        click.echo("recipe: the same")
    _print_data(found)
    _print_pairs("metric", found.metrics)


def _name(side: Side) -> str:
    step = f"step {side.step.step} ({side.step.version})" if side.step else "the base model"
    return f"{step} of {side.lineage.name}, whose head is step {side.head}"


def _without_recipe(found: Diff) -> list[str]:
    reasons = []
    for letter, side in (("a", found.a), ("b", found.b)):
        if side.step is None:
            reasons.append(f"{letter} is the base model")
        elif side.recipe is None:
            reasons.append(f"{letter} has none, since a worker of release 0.1.0 made it")
    return reasons


def _print_data(found: Diff) -> None:
    a, b = found.data
    for title, windows in (
        ("windows only in a", _without(a.windows, b.windows)),
        ("windows only in b", _without(b.windows, a.windows)),
        ("windows in both", _both(found)),
    ):
        named = ", ".join(windows[:_MOST_WINDOWS])
        more = ", …" if len(windows) > _MOST_WINDOWS else ""
        click.echo(f"{title}: {len(windows)}" + (f" ({named}{more})" if windows else ""))
    _print_pairs(
        "data",
        {
            "steps": (a.steps, b.steps),
            "trajectories": (a.trajectories, b.trajectories),
            "trainable_tokens": (a.trainable_tokens, b.trainable_tokens),
        },
    )


def _print_pairs(title: str, pairs: Pairs) -> None:
    if not pairs:
        return
    table = Table(title, "a", "b")
    for name, (a, b) in pairs.items():
        table.add_row(name, _text(a), _text(b))
    wide_console().print(table)


def _text(value: Value) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return "" if value is None else str(value)
