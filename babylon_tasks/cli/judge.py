"""`babylon judge check`."""

from __future__ import annotations

from dataclasses import asdict

import click

from babylon_tasks.cli.common import as_json, print_json, ready_context
from babylon_tasks.cockpit.story import no_windows
from babylon_tasks.errors import UserError
from babylon_tasks.records.windows import parse_window_id
from babylon_tasks.scoring.judge.check import Check
from babylon_tasks.scoring.judge.check import check as check_judge
from babylon_tasks.scoring.judge.client import Judge
from babylon_tasks.scoring.reading import read_window
from babylon_tasks.settings import Settings, load_settings
from babylon_tasks.store import windows as window_rows
from babylon_tasks.store.traces import open_reader
from babylon_tasks.work import aio
from babylon_tasks.work.context import Context

_ENDED = ("ready", "due", "scored", "trained", "failed")


@click.group()
def judge() -> None:
    """Look at the judge of SCORING=ruler and blend."""


@judge.command()
@click.argument("window_id", required=False)
@as_json
def check(window_id: str | None, as_json: bool) -> None:
    """Ask the judge twice about a window, in two orders, and compare; nothing else changes.

    Without a window: the newest that has ended. It costs two questions.

    Example: babylon judge check 2025-01-15T10:00
    """
    settings = load_settings()
    context = ready_context(settings)
    if window_id is None:
        window_id = _newest(context, settings)
    parse_window_id(window_id)
    told = {"judge": settings.judge_model, **asdict(aio.run(_check(context, window_id)))}
    if as_json:
        print_json(told)
        return
    for key, value in told.items():
        shown = "unknown" if value is None else f"{value:+.3f}" if key in _SIGNED else _told(value)
        click.echo(f"{key:26} {shown}")


def _told(value: object) -> object:
    return f"{value:.4g}" if isinstance(value, float) else value


_SIGNED = (
    "self_consistency",
    "position_bias",
    "agreement_with_heuristic",
    "agreement_with_pnl",
)


async def _check(context: Context, window_id: str) -> Check:
    async with open_reader(context.settings) as reader:
        read = await read_window(context, reader, window_id, sees_runs=True)
    if len(read.group.outcomes) < 3:
        raise UserError(
            f"window {window_id} has {len(read.group.outcomes)} trajectories to judge, needs 3"
        )
    return await check_judge(read.group, Judge(context))


def _newest(context: Context, settings: Settings) -> str:
    with context.database.transaction() as tx:
        found = window_rows.listing(tx, settings.model_name, settings)
    ended = [window.window_id for window in found if window.state in _ENDED]
    if not ended:
        raise no_windows(context.database, settings, found)
    return ended[0]
