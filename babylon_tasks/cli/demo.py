"""`babylon demo`: the whole pipeline on this machine, from recorded traces to a served model."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import time
from datetime import UTC, datetime
from pathlib import Path

import click
import psycopg
from rich.table import Table

from babylon_tasks import pipeline
from babylon_tasks.cli.common import wide_console, with_environment
from babylon_tasks.cli.progress import progress_until_idle
from babylon_tasks.cockpit.report import read_reports, summarize, trained
from babylon_tasks.errors import UserError
from babylon_tasks.local import ask
from babylon_tasks.local.ports import free_port
from babylon_tasks.local.postgres import embedded_postgres
from babylon_tasks.local.processes import Check, alone
from babylon_tasks.local.redis import embedded_redis
from babylon_tasks.local.supervisor import Stack, roles
from babylon_tasks.records.windows import WindowReport
from babylon_tasks.settings import load_settings
from babylon_tasks.simulation import simulate
from babylon_tasks.simulation.tiny_model import make_tiny_model
from babylon_tasks.store.migrate import migrate
from babylon_tasks.work.context import Context
from babylon_tasks.work.signals import interrupt

HOME = Path(".babylon/demo")


@click.command()
@click.option(
    "--windows",
    type=click.IntRange(1, 1000),
    default=8,
    show_default=True,
    help="Number of windows with a signal.",
)
@click.option(
    "--agents",
    type=click.IntRange(2, 1000),
    default=8,
    show_default=True,
    help="Number of agents in each window.",
)
@click.option("--seed", default=1, show_default=True, help="Seed of the simulated traces.")
def demo(windows: int, agents: int, seed: int) -> int:
    """Simulate traces, train a tiny model on them with every real role, and ask it a question.

    It needs no server, no GPU and no download, and keeps all its files in .babylon/demo/.

    Example: babylon demo
    """
    signal.signal(signal.SIGTERM, interrupt)
    with alone(HOME, "demo"):
        return _run(windows, agents, seed)


def _run(windows: int, agents: int, seed: int) -> int:
    started = time.monotonic()
    _say(started, "starting PostgreSQL and Redis")
    shutil.rmtree(HOME / "checkpoints", ignore_errors=True)
    with contextlib.ExitStack() as stack:
        checks: list[Check] = []
        database_url = stack.enter_context(embedded_postgres(HOME / "postgres", "demo", checks))
        redis_url = stack.enter_context(embedded_redis(HOME / "redis", checks))
        _empty(database_url)
        migrate(database_url)
        model = (HOME / "model").resolve()
        env = _environment(database_url, redis_url, model)
        settings = with_environment(load_settings(), env)
        context = Context.of_deployment(settings, "demo")
        port = free_port()
        with Stack(roles(port), HOME / "logs", env, checks) as running:
            _say(started, f"beat, cpu worker, gpu worker, Flower at http://127.0.0.1:{port}")
            _say(started, "making a tiny base model")  # while they start
            _make_model(model)
            with psycopg.connect(settings.postgres()) as connection:
                written = simulate.write(
                    connection, simulate.simulate(windows, agents, seed, datetime.now(UTC))
                )
            _say(
                started,
                f"wrote {written.trajectories} trajectories of {written.agents} agents, "
                f"{len(written.malformed)} of them malformed",
            )
            pipeline.produce(context)  # beat has looked already, and looks again in a minute
            for line in progress_until_idle(context, running):
                _say(started, line)
            reports = read_reports(context)
            _print(reports)
            answer = _ask_question(env, context.lineage.name)
        summary = summarize(context, reports) | {
            "windows_expected": len(written.good_windows),
            "answer": answer,
            "seconds": round(time.monotonic() - started, 1),
            "base_model": str(model),
        }
    path = HOME / "summary.json"
    path.write_text(json.dumps(summary, indent=2) + "\n")
    missing = [w for w in written.good_windows if w not in trained(reports)]
    if missing:
        raise UserError(f"not trained: {', '.join(missing)}; see {HOME / 'logs'}")
    _say(started, f"all {len(written.good_windows)} good windows trained; {path} has the figures")
    return 0


def _make_model(folder: Path) -> None:
    """Make the base model, and show a bar while it is trained, which takes seconds."""
    with click.progressbar(length=1, label="         training it") as bar:

        def show(done: int, total: int) -> None:
            bar.length = total
            bar.update(done - bar.pos)

        make_tiny_model(folder, show)


def _environment(database_url: str, redis_url: str, model: Path) -> dict[str, str]:
    """Return the roles' environment: a tiny model needs a large rate, and the sweep is quick."""
    return {
        "DATABASE_URL": database_url,
        "REDIS_URL": redis_url,
        "TRAIN_RL_LOCAL": "true",
        "TRAINER": "torch",
        "SCORING": "heuristic",
        "MODEL_NAME": "babylon-agent",
        "BASE_MODEL": str(model),
        "CHECKPOINT_STORE": str((HOME / "checkpoints").resolve()),
        "LEARNING_RATE": "0.001",
        "WARMUP_STEPS": "0",  # there are only a few
        "MIN_AGENTS_PER_WINDOW": "2",
        "SWEEP_SECONDS": "2",
        "WANDB_MODE": "offline",
        "WANDB_DIR": str(HOME.resolve()),
        "MAX_STEP_TOKENS": "30000",  # several steps, so that one can see them follow each other
    }


def _empty(database_url: str) -> None:
    """Delete everything in the demo's own database: each demo starts from nothing."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("DROP SCHEMA IF EXISTS rl CASCADE")
        connection.execute("DROP SCHEMA public CASCADE")
        connection.execute("CREATE SCHEMA public")


def _ask_question(env: dict[str, str], model: str) -> str:
    question = simulate.question(seed=1)
    messages = (
        {"role": "system", "content": question.system_prompt},
        {"role": "user", "content": question.user_prompt},
    )
    with ask.serving(env) as url:
        answer = ask.ask(url, model, messages)
    click.echo(f"\nasked  {model}: {question.user_prompt}")
    click.echo(f"answer {answer}\n")
    return answer


def _print(reports: list[WindowReport]) -> None:
    # Without lines it fits 80 columns.
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    for column in ("window", "state"):
        table.add_column(column)
    for column in ("agents", "runs", "aside", "score", "spread", "step", "loss", "sec"):
        table.add_column(column, justify="right", no_wrap=True)
    for each in reports:
        table.add_row(
            each.window_id,
            each.state,
            str(each.agents),
            str(each.trajectories),
            str(each.quarantined),
            _number(each.mean_score),
            _number(each.reward_spread),
            "" if each.step is None else str(each.step),
            _number(each.loss),
            "" if each.seconds is None else f"{each.seconds:.1f}",
        )
    wide_console().print(table)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _say(started: float, text: str) -> None:
    click.echo(f"{time.monotonic() - started:5.1f} s  {text}")
