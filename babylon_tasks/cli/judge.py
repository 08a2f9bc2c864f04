"""`babylon judge check`."""

from __future__ import annotations

from dataclasses import asdict

import click

from babylon_tasks.cli.common import as_json, of_lineage, print_json, ready_context
from babylon_tasks.cli.progress_line import progress
from babylon_tasks.cockpit.story import no_windows
from babylon_tasks.errors import UserError
from babylon_tasks.records.windows import parse_window_id
from babylon_tasks.scoring.judge.check import Check
from babylon_tasks.scoring.judge.check import check as check_judge
from babylon_tasks.scoring.judge.client import Judge
from babylon_tasks.scoring.judge.dialect import dialect_of
from babylon_tasks.scoring.judge.ruler_call import require_simple_key
from babylon_tasks.scoring.reading import read_window
from babylon_tasks.settings import load_settings
from babylon_tasks.store import windows as window_rows
from babylon_tasks.store.traces import open_reader
from babylon_tasks.work import aio
from babylon_tasks.work.context import Context

_ENDED = ("ready", "due", "scored", "trained", "failed")


@click.group()
def judge() -> None:
    """Check the judge that SCORING=ruler and SCORING=blend ask."""


@judge.command()
@click.argument("window_id", required=False)
@of_lineage
@as_json
def check(window_id: str | None, lineage: str | None, as_json: bool) -> None:
    """Ask the judge about a window twice, in two orders, and compare the answers.

    Without WINDOW_ID, it takes the newest window that has ended. It costs two questions, and
    changes no window and no score. `left_out` names the parameters that this judge does not take,
    so that no question has them.

    Example: babylon judge check 2025-01-15T10:00
    """
    context = ready_context(load_settings(), lineage)
    require_simple_key(context.settings)
    if window_id is None:
        window_id = _newest(context)
    parse_window_id(window_id)
    asked = f"asking {context.settings.judge_model} twice about {window_id}"
    with progress(asked, quiet=as_json):
        checked = aio.run(_check(context, window_id))
    figures = {
        "judge": context.settings.judge_model,
        **asdict(checked),
        "left_out": sorted(dialect_of(context.settings).left_out),
    }
    if as_json:
        print_json(figures)
        return
    for key, value in figures.items():
        text = "unknown" if value is None else f"{value:+.3f}" if key in _SIGNED else _plain(value)
        click.echo(f"{key:26} {text}")


def _plain(value: object) -> object:
    if isinstance(value, list):
        return ", ".join(value) or "nothing"
    return f"{value:.4g}" if isinstance(value, float) else value


_SIGNED = (
    "self_consistency",
    "position_bias",
    "agreement_with_heuristic",
    "agreement_with_pnl",
)


async def _check(context: Context, window_id: str) -> Check:
    async with open_reader(context.database, context.settings) as reader:
        read = await read_window(context, reader, window_id, sees_runs=True)
    if len(read.group.outcomes) < 3:
        raise UserError(
            f"window {window_id} has {len(read.group.outcomes)} trajectories to judge, needs 3"
        )
    return await check_judge(read.group, Judge(context))


def _newest(context: Context) -> str:
    with context.database.transaction() as tx:
        listed = window_rows.listing(tx, context.lineage.name, context.settings)
    ended = [window.window_id for window in listed if window.state in _ENDED]
    if not ended:
        raise no_windows(context, listed)
    return ended[0]
