"""`babylon simulate`."""

from __future__ import annotations

import contextlib
import os
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import click
import psycopg
from pydantic import SecretStr

from babylon_tasks.cli.common import as_json, of_lineage, print_json, ready_context
from babylon_tasks.cli.progress_line import Progress, progress
from babylon_tasks.cli.windows import wake_scorers
from babylon_tasks.errors import ServerUnavailable, UserError
from babylon_tasks.local.ask import wait_until_served
from babylon_tasks.records.windows import State, Window, parse_window_id
from babylon_tasks.settings import load_settings
from babylon_tasks.simulation.game.endpoint import Endpoint
from babylon_tasks.simulation.game.hour import Ask, Player, play_hour
from babylon_tasks.simulation.game.market import Rules
from babylon_tasks.simulation.game.memory import without_remembered
from babylon_tasks.simulation.game.population import POLICIES, POPULATION, players
from babylon_tasks.simulation.game.record import record
from babylon_tasks.simulation.game.schedule import (
    MOST_AGENTS,
    Schedule,
    hold,
    next_at,
    read_schedule,
    require_ours,
    why_not,
)
from babylon_tasks.simulation.game.standing import Standing, standing
from babylon_tasks.simulation.write import write
from babylon_tasks.store import heads
from babylon_tasks.store import windows as window_rows
from babylon_tasks.text import one_line
from babylon_tasks.work.context import Context
from babylon_tasks.work.fleet import require_still_active

_POLL_SECONDS = 0.5
_LOOK_SECONDS = 30.0
_ENDED = (State.TRAINED, State.SKIPPED, State.FAILED)


@dataclass(frozen=True, slots=True)
class _Game:
    """Who plays, and where. `ours_only`: not in a database that has agents or users of the app."""

    context: Context
    seed: int
    ask: Ask
    everyone: Sequence[Player]
    ours_only: bool


@click.command()
@click.option(
    "--hours",
    type=click.IntRange(1, 1000),
    default=1,
    show_default=True,
    help="How many of the past hours; the newest one has ended, and settled (SETTLE_SECONDS).",
)
@click.option("--seed", default=1, show_default=True, help="Seed of all that is drawn.")
@click.option("--url", help="Base URL of an OpenAI-compatible endpoint: http://host:8000/v1.")
@click.option("--model", metavar="NAME", help="The model's name there.")
@click.option("--key-env", metavar="VARIABLE", help="Environment variable that has its key.")
@click.option(
    "--policies",
    type=click.IntRange(1, MOST_AGENTS - len(POPULATION)),
    help=f"How many agents the model plays.  [default: {POLICIES}]",
)
@click.option(
    "--wait", is_flag=True, help="Play an hour once the one before is trained, and serves."
)
@click.option("--into-app-data", is_flag=True, help="Also where the app has users or traces.")
@of_lineage
@as_json
def simulate(
    hours: int, seed: int, lineage: str | None, as_json: bool, wait: bool, **options: Any
) -> None:
    """Play hours of the past in a market of our own, and write them as the app records them.

    Scripted agents play in the database of DATABASE_URL, or of `babylon up` in this folder. With
    --url, agents that a model plays join them. An hour is played once in a database. For each, it
    says what the model's decisions are worth in dollars, between those of noise and of an oracle.

    Example: babylon simulate --hours 24 --url http://127.0.0.1:8000/v1 --model babylon-agent --wait
    """
    ask, everyone = _players(seed, options)
    context = ready_context(load_settings(), lineage)
    if wait:
        context.lineage.require_active()
    game = _Game(context, seed, ask, everyone, not options["into_app_data"])
    schedule = _schedule(game, hours, say=not as_json)
    shown: list[dict[str, Any]] = []
    try:
        with progress("playing", quiet=as_json) as now:
            for number, window_id in schedule.hours.items():
                now.say(f"{window_id}: the agents play", len(shown), len(schedule.hours))
                stands = _play(game, number, window_id)
                if isinstance(stands, str):
                    schedule.passed_over[window_id] = stands
                    if not as_json:
                        click.echo(f"{window_id}  passed over: {stands}")
                    continue
                shown.append({"window": window_id, "hour": number, **asdict(stands)})
                ended = _wait(context, window_id, now) if wait else None
                if ended and options["url"]:
                    _let_follow(options["url"], context)
                if ended:
                    shown[-1] |= {"state": ended.state, "step": ended.trained_step}
                if not as_json:
                    click.echo(_line(window_id, stands, ended))
    finally:  # also what was written before a fault
        if as_json:
            print_json({"hours": shown, "passed_over": schedule.passed_over})
    untrained = [hour["window"] for hour in shown if wait and hour["state"] != State.TRAINED]
    if untrained:
        raise UserError(
            f"{len(untrained)} of {len(shown)} windows were not trained: "
            f"`babylon windows show {untrained[0]}` says why"
        )


def _players(seed: int, options: dict[str, Any]) -> tuple[Ask, Sequence[Player]]:
    """Return how to ask the model, and who plays.

    Raises:
        UserError: The options do not fit together, or the key's variable is not set.
    """
    url, model, variable = options["url"], options["model"], options["key_env"]
    if url is None:
        if model or variable or options["policies"]:
            raise UserError("--model, --key-env and --policies go with --url")
        return _nobody, players(POPULATION, 0)
    if not model:
        raise UserError("name the model that --url serves with --model")
    if variable and not os.environ.get(variable):
        raise UserError(f"--key-env: the environment variable {variable} is not set")
    key = SecretStr(os.environ[variable]) if variable else None
    policies = options["policies"] or POLICIES
    return Endpoint(url, model, key, seed), players(POPULATION, policies)


def _nobody(prompts: Sequence[object]) -> list[Any]:
    raise AssertionError("no agent is played by a model")


def _schedule(game: _Game, hours: int, *, say: bool) -> Schedule:
    """Return the hours to play, and name the database that they will be written into.

    With `say`, also tell how many hours are passed over, and when there will be one to play.

    Raises:
        UserError: The database has agents or users of the app, and they are not meant.
        ServerUnavailable: Postgres does not answer.
    """
    context = game.context
    settle_seconds = context.settings.settle_seconds
    with context.database.transaction() as tx:
        if game.ours_only:
            require_ours(tx)
        schedule = read_schedule(tx, context.lineage.name, hours, settle_seconds)
        later = next_at(tx, settle_seconds)
    if say:
        for why, count in Counter(schedule.passed_over.values()).items():
            click.echo(f"passed over {count} hour{'s' * (count > 1)}: {why}")
        if not schedule.hours:
            click.echo(f"nothing to play: the next hour settles at {later:%Y-%m-%d %H:%M} UTC")
    if schedule.hours:
        click.echo(f"writing into {context.database.name}", err=True)
    return schedule


def _play(game: _Game, number: int, window_id: str) -> Standing | str:
    """Play an hour and write it in one transaction; return how it went, or why it is passed over.

    Another command may have written the hour, or a worker scored it, since the schedule was read.

    Raises:
        UserError: The app's tables take no such rows, the app's agents or users have come, or the
            endpoint gives no answer.
        ServerUnavailable: Postgres does not answer.
    """
    database, name = game.context.database, game.context.lineage.name
    with database.transaction() as tx:
        reason = why_not(tx, name, number, window_id)
    if reason:
        return reason
    hour = play_hour(game.seed, number, Rules(), game.everyone, game.ask)
    recorded = hour
    if game.context.settings.capture_calls:
        recorded = without_remembered(database, hour, game.seed)
    rows = record(recorded, parse_window_id(window_id).replace(tzinfo=None), game.seed)
    try:
        with database.transaction() as tx:
            hold(tx)
            if game.ours_only:
                require_ours(tx)
            reason = why_not(tx, name, number, window_id)
            if reason is None:
                write(tx, [rows])
    except psycopg.Error as error:
        raise UserError(
            f"the app's tables take no simulated rows: {one_line(str(error))}"
        ) from error
    return reason or standing(hour)


def _wait(context: Context, window_id: str, now: Progress) -> Window:
    """Make a window due, wait until it has ended and what it trained serves; return its row.

    Raises:
        UserError: It cannot become due; the message says why.
        ServerUnavailable: Postgres does not answer.
    """
    from babylon_tasks import pipeline  # late: without --wait no stage is needed

    window = pipeline.enqueue(context, window_id)
    if context.settings.redis_url:
        wake_scorers([window_id])
    looked_at = time.monotonic()
    while True:
        with context.database.transaction() as tx:
            (window,) = window_rows.read(tx, context.lineage.name, [window_id])
        if window.state in _ENDED and not pipeline.sweep(context, 1).publish:
            return window
        now.say(f"{window_id} is {window.state}: waiting for the workers")
        if time.monotonic() - looked_at > _LOOK_SECONDS:
            looked_at = time.monotonic()
            require_still_active(context)  # three steps that fail their exam pause it
        time.sleep(_POLL_SECONDS)


def _let_follow(url: str, context: Context) -> None:
    """Wait until our own endpoint answers with what serves; another one does not say."""
    name = context.lineage.name
    with context.database.transaction() as tx:
        head = heads.read(tx, name)
    with contextlib.suppress(ServerUnavailable):
        endpoint = url.rstrip("/").removesuffix("/v1")
        wait_until_served(endpoint, name, head.published_step if head else 0)


def _line(window_id: str, stands: Standing, ended: Window | None) -> str:
    """Write an hour for a person; expected P&L is in dollars a decision."""
    bounds = f"noise {stands.noise:.2f}, oracle {stands.oracle:.2f}"
    line = f"{window_id}  {bounds}; scripted agents only"
    if stands.policy is not None:
        versions = ", ".join(stands.versions)
        line = (
            f"{window_id}  model {stands.policy:.2f}, {bounds}; "
            f"{stands.failed} of {stands.decisions} answers failed; {versions}"
        )
    if ended is None:
        return line
    if ended.state == State.TRAINED:
        return f"{line}; trained by step {ended.trained_step}"
    return f"{line}; {ended.state}: {ended.reason or ended.last_error}"
