"""`babylon demo`: the loop on this machine, from a base model to a version that trades better."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import psycopg

from babylon_tasks.cli import demo_screen
from babylon_tasks.cli.common import with_environment
from babylon_tasks.cli.demo_loop import Game, Loop, crowd
from babylon_tasks.cli.demo_screen import Asked, Round
from babylon_tasks.cockpit.report import read_reports, summarize, trained
from babylon_tasks.errors import UserError
from babylon_tasks.local import ask
from babylon_tasks.local.ports import free_port
from babylon_tasks.local.postgres import embedded_postgres
from babylon_tasks.local.processes import Check, alone
from babylon_tasks.local.redis import embedded_redis
from babylon_tasks.local.supervisor import Stack, roles
from babylon_tasks.settings import Settings, load_settings, running
from babylon_tasks.settings.overrides import OVERRIDABLE
from babylon_tasks.simulation.game.endpoint import Endpoint
from babylon_tasks.simulation.game.hour import Answer, Question
from babylon_tasks.simulation.game.prompts import describe, messages
from babylon_tasks.simulation.tiny_model import make_tiny_model
from babylon_tasks.store import heads
from babylon_tasks.store.migrate import migrate
from babylon_tasks.work.context import Context
from babylon_tasks.work.signals import interrupt

HOME = Path(".babylon/demo")
_MODEL = "babylon-agent"


@dataclass(frozen=True, slots=True)
class _Options:
    windows: int
    agents: int
    seed: int
    keep: bool


@dataclass(frozen=True, slots=True)
class _Place:
    """The running stack: its lineage, its roles, and two addresses."""

    context: Context
    roles: Stack
    flower_url: str
    wait_for_endpoint: Callable[[], str]  # until it listens; returns its URL


@click.command()
@click.option(
    "--windows",
    type=click.IntRange(1, 60),
    default=16,
    show_default=True,
    help="Number of hours that are played and trained.",
)
@click.option(
    "--agents",
    type=click.IntRange(2, 1000),
    default=32,
    show_default=True,
    help="Number of agents in each hour.",
)
@click.option("--seed", default=1, show_default=True, help="Seed of the game.")
@click.option("--keep", is_flag=True, help="Leave everything running at the end, until Ctrl-C.")
def demo(windows: int, agents: int, seed: int, keep: bool) -> int:
    """Let agents trade, train a tiny model on it hour by hour with every real role, see it learn.

    Some of the agents are played by the newest version, through the endpoint; the others follow
    scripts. It needs no server, no GPU and no download, and keeps all its files in .babylon/demo/.

    Example: babylon demo
    """
    signal.signal(signal.SIGTERM, interrupt)
    with alone(HOME, "demo"):
        return _run(_Options(windows, agents, seed, keep))


def _run(options: _Options) -> int:
    started = time.monotonic()
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # so small a model is faster without
    for package in ("babylon_tasks", "workers"):
        logging.getLogger(package).setLevel(logging.WARNING)  # the roles log to their files
    _say(started, "starting PostgreSQL, Redis, beat, workers, endpoint, Flower")
    with _place(options.keep) as place:
        _say(started, f"all of them run; Flower: {place.flower_url}")
        model = Path(place.context.settings.base_model)
        _say(started, "making a tiny base model")  # while they start
        _make_model(model)
        url = place.wait_for_endpoint()
        now = datetime.now(UTC).replace(tzinfo=None)
        game = Game(options.seed, options.windows, crowd(options.agents), now)
        _say(started, f"agents play {options.windows} hours, and the roles train on them")
        rounds = _play(place, url, game)
        reports = read_reports(place.context)
        asked = _ask_twice(url, game)[0]
        summary = summarize(place.context, reports) | {
            "windows_expected": len(game.window_ids),
            "answer": asked.after,
            "seconds": round(time.monotonic() - started, 1),
            "base_model": str(model),
            "learning": learning(rounds, asked),
        }
        path = HOME / "summary.json"
        path.write_text(json.dumps(summary, indent=2) + "\n")
        missing = [w for w in game.window_ids if w not in trained(reports)]
        if missing:
            raise UserError(f"not trained: {', '.join(missing)}; see {HOME / 'logs'}")
        _say(started, demo_screen.ended(summary, path))
        _print_next(place, url, game.window_ids[-1], options.keep)
        if options.keep:
            _wait(place)
    return 0


@contextlib.contextmanager
def _place(keep: bool) -> Iterator[_Place]:
    """Start the servers and the roles, on an empty database.

    Raises:
        UserError: With `--keep`, where `babylon up` runs: commands would find two stacks.
    """
    if keep and running.read():
        raise UserError("`babylon up` runs in this folder: end it first, or leave out --keep")
    shutil.rmtree(HOME / "checkpoints", ignore_errors=True)
    (HOME / "summary.json").unlink(missing_ok=True)  # what an earlier demo has left
    with contextlib.ExitStack() as stack:
        checks: list[Check] = []
        database_url = stack.enter_context(embedded_postgres(HOME / "postgres", "demo", checks))
        redis_url = stack.enter_context(embedded_redis(HOME / "redis", checks))
        _empty(database_url)
        migrate(database_url)
        env = _environment(database_url, redis_url)
        settings = with_environment(load_settings(), env)
        port = free_port()
        started = stack.enter_context(Stack(roles(port), HOME / "logs", env, checks))
        wait = stack.enter_context(ask.starting(env, HOME / "logs" / "serve.log"))
        if keep:
            stack.enter_context(running.announced(env))
        context = Context.of_deployment(settings, "demo")
        yield _Place(context, started, f"http://127.0.0.1:{port}", wait)


def _environment(database_url: str, redis_url: str) -> dict[str, str]:
    """Return the roles' environment: where everything is, and short waits.

    The recipe is as shipped, whatever the folder's .env says; what is unset there by default stays
    as it is.
    """
    defaults = {name: Settings.model_fields[name].default for name in sorted(OVERRIDABLE)}
    return {
        **{name.upper(): str(value) for name, value in defaults.items() if value is not None},
        "DATABASE_URL": database_url,
        "REDIS_URL": redis_url,
        "TRAIN_RL_LOCAL": "true",
        "TRAINER": "torch",
        "MODEL_NAME": _MODEL,
        "BASE_MODEL": str((HOME / "base-model").resolve()),
        "CHECKPOINT_STORE": str((HOME / "checkpoints").resolve()),
        "SWEEP_SECONDS": "0.5",
        "EXPERIMENT_PERCENT": "0",  # its hours are over in seconds: the exam alone decides
        "WANDB_MODE": "offline",
        "WANDB_DIR": str(HOME.resolve()),
    }


def _empty(database_url: str) -> None:
    """Delete everything in the demo's own database: each demo starts from nothing."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("DROP SCHEMA IF EXISTS rl CASCADE")
        connection.execute("DROP SCHEMA public CASCADE")
        connection.execute("CREATE SCHEMA public")


def _make_model(folder: Path) -> None:
    """Make the base model, and show a bar while it is trained, which takes seconds."""
    with click.progressbar(length=1, label="         training it") as bar:

        def show(done: int, total: int) -> None:
            bar.length = total
            bar.update(done - bar.pos)

        make_tiny_model(folder, show)


def _play(place: _Place, url: str, game: Game) -> list[Round]:
    """Run the loop and draw it; return its rounds."""
    from workers.gpu import slots

    settings = place.context.settings
    agents = Endpoint(url, _MODEL, settings.serve_api_key, game.seed)

    def ask_newest(questions: Sequence[Question]) -> Sequence[Answer]:
        """Ask once the endpoint has followed the last promotion."""
        with place.context.database.transaction() as tx:
            head = heads.read(tx, _MODEL)
        ask.wait_until_served(url, _MODEL, head.published_step if head else 0)
        return agents(questions)

    rounds: list[Round] = []
    with (
        contextlib.closing(slots.make_trainer(1, settings)) as trainer,
        demo_screen.status() as say,
    ):
        loop = Loop(place.context, place.roles, game, ask_newest, trainer, HOME)
        for done in loop.rounds(say):
            click.echo(demo_screen.line(done) if rounds else demo_screen.first_lines(done))
            rounds.append(done)
    return rounds


def _ask_twice(url: str, game: Game) -> list[Asked]:
    """Ask step 0 and the newest version the same questions, and show what each answers."""
    asked = []
    for market in game.questions():
        question = tuple(messages(game.players[-1].name, market))
        before, after = (ask.ask(url, name, question) for name in (f"{_MODEL}@0", _MODEL))
        asked.append(Asked(market, before, after))
        click.echo("\n" + demo_screen.two_answers(asked[-1]))
    click.echo()
    return asked


def learning(rounds: Sequence[Round], asked: Asked) -> dict[str, Any]:
    """Return what the summary says of learning: dollars a decision, the base model's first."""
    newest = rounds[-1].look
    return {
        "windows": len(rounds) - 1,
        "policy": [each.look.policy for each in rounds],
        "noise": newest.noise,
        "oracle": newest.oracle,
        "gap_closed": newest.gap_closed,
        "well_formed": [each.look.well_formed for each in rounds],
        "question": describe(asked.market),
        "answer_before": asked.before,
        "answer_after": asked.after,
    }


def _print_next(place: _Place, url: str, window: str, keep: bool) -> None:
    """Say what to type next: what looks into the running stack, or what keeps it running."""
    program = _program()
    if not keep:
        click.echo(f"\nnext: {program} demo --keep   # leaves all this running")
        click.echo("      docs/deploying.md   # the same for your own agents")
        return
    click.echo("\nall of it runs until Ctrl-C; in another terminal, in this folder:")
    click.echo(f"  {program} status")
    click.echo(f"  {program} windows show {window} --scores")
    click.echo(f"  {program} models diff {_MODEL}@1 {_MODEL}")
    click.echo(f"Flower: {place.flower_url}")
    click.echo(f"the model: {url}/v1 ({_MODEL})")


def _program() -> str:
    """Return what starts this program from this folder."""
    path = Path(sys.argv[0]).absolute()
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else path.name


def _wait(place: _Place) -> None:
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            place.roles.keep_running()
            time.sleep(1)


def _say(started: float, text: str) -> None:
    click.echo(f"{time.monotonic() - started:5.1f} s  {text}")
