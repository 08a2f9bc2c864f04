"""`babylon models reset`."""

from __future__ import annotations

from collections.abc import Iterable

import click

from babylon_tasks.cli.common import of_lineage, ready_context
from babylon_tasks.settings import load_settings
from babylon_tasks.store import promotions
from babylon_tasks.training.reset import ResetReport
from babylon_tasks.training.reset import reset as move_head


@click.command()
@click.argument("version_or_step")
@click.option("--why", required=True, help="The reason, which is kept with the move.")
@of_lineage
def reset(version_or_step: str, why: str, lineage: str | None) -> None:
    """Let the next step start from another one: an older one, or one that was given up.

    Step 0 is the base model. The steps that do not come before it are given up, and their versions
    are archived. Their windows stay trained until `babylon windows retry --step`.

    Example: babylon models reset v1.0.12 --why "the last ten steps were trained on a broken feed"
    """
    context = ready_context(load_settings(), lineage)
    report = move_head(context, version_or_step, why)
    start = f"step {report.to_step} ({report.version})" if report.version else "the base model"
    click.echo(f"{context.lineage.name} goes on from {start}; it was at step {report.from_step}")
    served = report.moved.published_step
    with context.database.transaction() as tx:
        paused = promotions.current_pause(tx, context.lineage.name)
    until = "`babylon models resume`" if paused else f"step {report.to_step} is published"
    waits = f", until {until}" if served != report.to_step else ""
    click.echo(f"{f'step {served}' if served else 'the base model'} serves{waits}")
    _print_steps(report, lineage)


def _print_steps(report: ResetReport, lineage: str | None) -> None:
    given_up, taken_back = report.moved.given_up, report.moved.taken_back
    if taken_back:
        click.echo(f"on the way to the head again: {_steps(taken_back)}")
    if not given_up:
        return
    trained_again = {window for windows in taken_back.values() for window in windows}
    windows = {window for windows in given_up.values() for window in windows} - trained_again
    click.echo(f"given up: {_steps(given_up)}, with {len(windows)} windows")
    if windows:
        options = " ".join(f"--step {run}" for run in _runs(given_up, "-"))
        of = f" --lineage {lineage}" if lineage else ""
        click.echo(f"to train these windows again: babylon windows retry {options}{of}")


def _steps(numbers: Iterable[int]) -> str:
    """Write step numbers as a sentence does."""
    runs = _runs(numbers, " to ")
    many = len(runs) > 1 or not runs[0].isdigit()
    return f"step{'s' * many} {', '.join(runs)}"


def _runs(numbers: Iterable[int], between: str) -> list[str]:
    """Write each run of consecutive numbers as its ends."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return [str(run[0]) if len(run) == 1 else f"{run[0]}{between}{run[-1]}" for run in runs]
