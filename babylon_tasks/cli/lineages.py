"""`babylon lineages list | show | create | fork | set | pause | resume | retire`."""

from __future__ import annotations

from dataclasses import asdict

import click
from rich.table import Table

from babylon_tasks.cli.common import as_json, print_json, ready_fleet, wide_console
from babylon_tasks.cli.lineage_screen import own_settings, sections
from babylon_tasks.cli.screen import colour_wanted, write
from babylon_tasks.cockpit.lineages import list_lineages, read_lineage_story
from babylon_tasks.records.lineages import LineageState
from babylon_tasks.settings import load_settings
from babylon_tasks.work import lineage_changes
from babylon_tasks.work.fleet import Fleet

_overrides = click.option(
    "--set",
    "pairs",
    metavar="KEY=VALUE",
    multiple=True,
    help="A setting of which the lineage has its own value; may be given several times.",
)


@click.group()
def lineages() -> None:
    """Create, fork, change and pause the lineages that the workers serve."""


@lineages.command("list")
@as_json
def list_all(as_json: bool) -> None:
    """List every lineage: its state, its steps, and how many windows wait or have trained.

    Example: babylon lineages list --json
    """
    fleet = _fleet()
    listed = list_lineages(fleet)
    if as_json:
        print_json([asdict(each) for each in listed])
        return
    table = Table(
        "lineage", "state", "base model", "head", "served", "due", "scored", "trained", "weight",
        "forked from", "primary",
    )  # fmt: skip
    for each in listed:
        table.add_row(
            each.name,
            each.state,
            each.base_model,
            str(each.step),
            f"{each.published_step}{' (paused)' if each.promotion_paused_at else ''}",
            str(each.due),
            str(each.scored),
            str(each.trained),
            each.weight or "",
            "" if each.forked_from is None else f"{each.forked_from}@{each.forked_step}",
            "yes" if each.primary else "",
        )
    wide_console().print(table)


@lineages.command()
@click.argument("name")
@as_json
def show(name: str, as_json: bool) -> None:
    """Show one lineage: what serves, who works for it, its last steps, its forks and resets.

    Example: babylon lineages show babylon-agent
    """
    story = read_lineage_story(_fleet(), name)
    if as_json:
        print_json(
            {
                **asdict(story.lineage),
                "step": story.step,
                "published_step": story.published_step,
                "promotion_paused": asdict(story.paused) if story.paused else None,
                "trained_by": story.trained_by,
                "forks": [asdict(fork) for fork in story.forks],
                "steps": [asdict(step) for step in story.steps],
                "resets": [asdict(reset) for reset in story.resets],
                "windows": story.windows,
                "running": [work.doing.title() for work in story.running],
                "gate": {"publish": story.publish, "says": list(story.gate)},
                "step_states": story.states,
            }
        )
        return
    click.echo(write(sections(story), colour_wanted()))


@lineages.command()
@click.argument("name")
@click.option("--base-model", metavar="MODEL", help="Hub id or folder; without it BASE_MODEL.")
@click.option("--revision", metavar="COMMIT", help="Commit of the hub's repository to start from.")
@_overrides
def create(name: str, base_model: str | None, revision: str | None, pairs: tuple[str, ...]) -> None:
    """Create a lineage that starts from a base model.

    Example: babylon lineages create judged --set SCORING=ruler --set LINEAGE_WEIGHT=2
    """
    new = lineage_changes.create(_fleet(), name, base_model, revision, pairs)
    click.echo(f"{new.name} starts from {new.base_model}, with {own_settings(new)}")
    click.echo("workers serve it from now on")


@lineages.command()
@click.argument("origin", metavar="NAME[@STEP]")
@click.argument("name", metavar="NEW")
@_overrides
def fork(origin: str, name: str, pairs: tuple[str, ...]) -> None:
    """Create a lineage that goes on from a step or version of another; without one, its head.

    It has the other's base model and overrides. The windows that trained the steps before it do not
    train it again. Step 0 is the base model.

    Example: babylon lineages fork babylon-agent@v1.0.12 bolder --set KL_PENALTY=0.05
    """
    made = lineage_changes.fork(_fleet(), origin, name, pairs)
    new = made.lineage
    start = f"step {new.forked_step} ({made.version})" if made.version else "the base model"
    click.echo(f"{new.name} starts from {start} of {new.forked_from}, with {own_settings(new)}")
    if made.inherited_windows:
        click.echo(f"{made.inherited_windows} windows trained it already")
    click.echo("workers serve it from now on")


@lineages.command("set")
@click.argument("name")
@click.argument("pairs", nargs=-1, required=True, metavar="KEY=VALUE...")
def set_overrides(name: str, pairs: tuple[str, ...]) -> None:
    """Give a lineage its own values of settings; an empty value takes one back.

    A step that trains now ends with the values that it began with.

    Example: babylon lineages set bolder LEARNING_RATE=0.0002 KL_PENALTY=
    """
    done = lineage_changes.override(_fleet(), name, pairs)
    click.echo(f"{name} has {own_settings(done.lineage)}")
    if done.taken_over:
        click.echo(
            f"only workers with MODEL_NAME={name} served it, by their own settings; from now on "
            "every worker of this database serves it, by that worker's settings and these overrides"
        )


@lineages.command()
@click.argument("name")
def pause(name: str) -> None:
    """Let a lineage rest: nothing of it is scored, trained or published until it is resumed.

    Example: babylon lineages pause bolder
    """
    _change_state(name, LineageState.PAUSED)


@lineages.command()
@click.argument("name")
def resume(name: str) -> None:
    """Let workers serve a paused lineage again.

    Example: babylon lineages resume bolder
    """
    _change_state(name, LineageState.ACTIVE)


@lineages.command()
@click.argument("name")
def retire(name: str) -> None:
    """End a lineage for good; its rows and files stay, and it can be forked.

    Example: babylon lineages retire bolder
    """
    _change_state(name, LineageState.RETIRED)


def _change_state(name: str, state: LineageState) -> None:
    done = lineage_changes.change_state(_fleet(), name, state)
    click.echo(f"{name} is {state}{' already' if done.was == state else ''}")
    if done.trained_by and state != LineageState.ACTIVE:
        click.echo(f"{done.trained_by} trains a step of it now, which is committed; none follows")


def _fleet() -> Fleet:
    return ready_fleet(load_settings())
