"""`babylon up`: every role on this machine, in one terminal."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import click

from babylon_tasks.cli.common import ready_context, with_environment
from babylon_tasks.cli.progress import progress_until_idle
from babylon_tasks.cockpit.status import queue_lengths
from babylon_tasks.errors import UserError
from babylon_tasks.local.ports import free_port, is_free
from babylon_tasks.local.postgres import embedded_postgres
from babylon_tasks.local.processes import Check, alone
from babylon_tasks.local.redis import embedded_redis
from babylon_tasks.local.supervisor import Stack, roles
from babylon_tasks.records.windows import State
from babylon_tasks.settings import Settings, load_settings, running
from babylon_tasks.store import windows as window_rows
from babylon_tasks.store.migrate import migrate
from babylon_tasks.work.context import Context
from babylon_tasks.work.signals import interrupt, stop

HOME = Path(".babylon")


@click.command()
@click.option("--until-idle", is_flag=True, help="Score and train what is due, then stop.")
@click.option(
    "--flower-port",
    type=click.IntRange(1, 65535),
    default=5555,
    show_default=True,
    help="Flower's port; if it is taken, another one that is free.",
)
def up(until_idle: bool, flower_port: int) -> None:
    """Run beat, a CPU worker, a GPU worker and Flower until Ctrl-C.

    With DATABASE_URL and REDIS_URL set, they use those servers. With neither set, they use embedded
    servers that keep their data in .babylon/, and commands that are run in the same folder use
    these too.

    Example: TRAIN_RL_LOCAL=true babylon up --until-idle
    """
    signal.signal(signal.SIGTERM, interrupt if until_idle else stop)
    settings = load_settings()
    with contextlib.ExitStack() as stack:
        stack.enter_context(alone(HOME, "`babylon up`"))
        settings, env, checks = stack.enter_context(servers(settings))
        settings.require_training_allowed()
        context = ready_context(settings)
        queue_lengths(settings)
        port = flower_port if is_free(flower_port) else free_port()
        started = stack.enter_context(Stack(roles(port), HOME / "logs", env, checks))
        click.echo(f"running; logs in {HOME / 'logs'}; Flower: http://127.0.0.1:{port}")
        if until_idle:
            from babylon_tasks import pipeline  # late: the roles run the stages

            failed_before = _failed(context)
            pipeline.produce(context)
            began = time.monotonic()
            for line in progress_until_idle(context, started):
                click.echo(f"{time.monotonic() - began:6.1f} s  {line}")
            failed = _failed(context) - failed_before
            if failed:
                raise UserError(f"{failed} windows failed: `babylon windows list` says why")
        else:
            while True:
                started.keep_running()
                time.sleep(1)


@contextlib.contextmanager
def servers(settings: Settings) -> Iterator[tuple[Settings, dict[str, str], list[Check]]]:
    """Use the servers that are set, or run embedded ones.

    Yields:
        The settings to work with, the environment for child processes, and checks of the servers.

    Raises:
        UserError: Only one of DATABASE_URL and REDIS_URL is set, or a server did not start.
        ServerUnavailable: An embedded server ended, and the caller failed because of that.
    """
    if settings.database_url and settings.redis_url:
        yield settings, {}, []
        return
    if settings.database_url or settings.redis_url:
        missing = "REDIS_URL" if settings.database_url else "DATABASE_URL"
        raise UserError(f"{missing} is not set: set both for your own servers, or neither")
    checks: list[Check] = []
    with (
        embedded_postgres(HOME / "postgres", "babylon", checks) as database_url,
        embedded_redis(HOME / "redis", checks) as redis_url,
    ):
        migrate(database_url)
        env = {"DATABASE_URL": database_url, "REDIS_URL": redis_url, "TRAIN_RL_LOCAL": "true"}
        with running.announced(env):
            click.echo(f"DATABASE_URL={database_url}")
            address = urlsplit(redis_url).netloc.rpartition("@")[2]
            click.echo(f"REDIS_URL=redis://:…@{address}/0")
            click.echo(
                f"commands in this folder find both; elsewhere: set -a; . {running.FILE.resolve()}"
            )
            yield with_environment(settings, env), env, checks


def _failed(context: Context) -> int:
    with context.database.transaction() as tx:
        return window_rows.count_states(tx, context.lineage.name)[State.FAILED]
