"""What `babylon doctor` looks at: the servers, what waits on them, and the data.

Each check returns one line about what it saw, or raises an error that says what is wrong. The
checks of this machine are in `cockpit.machine`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from ssl import CERT_REQUIRED

from redis.exceptions import NoPermissionError

from babylon_tasks.cockpit.status import late_seconds, queue_lengths
from babylon_tasks.cockpit.story import no_windows
from babylon_tasks.errors import BabylonError, UserError
from babylon_tasks.settings import QUEUES, Settings
from babylon_tasks.store import attempts, broker, canaries, leases
from babylon_tasks.store import windows as window_rows
from babylon_tasks.store.asyncpg_arguments import arguments
from babylon_tasks.store.database import Database
from babylon_tasks.store.identity import key_prefix
from babylon_tasks.store.migrate import pending, require_applied, require_usable
from babylon_tasks.store.traces import open_reader
from babylon_tasks.work import aio
from babylon_tasks.work.fleet import Fleet

Check = Callable[[Settings], str]

_HOLDER = "babylon doctor"
_SECOND_SECONDS = 3.0  # for an answer beside a connection that has one


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check; `detail` is one line."""

    check: str
    ok: bool
    detail: str


def run(name: str, check: Check, settings: Settings) -> Finding:
    """Run one check; if it raises an error, the finding says so."""
    try:
        return Finding(name, True, check(settings))
    except BabylonError as error:
        return Finding(name, False, str(error))
    except Exception as error:  # noqa: BLE001 - the other checks still run
        return Finding(name, False, f"{type(error).__name__}: {' '.join(str(error).split())}")


def postgres(settings: Settings) -> str:
    """Ask Postgres for its version, and connect with both drivers.

    Raises:
        UserError: DATABASE_URL is missing or wrong, or does not fit the server.
        ServerUnavailable: Postgres does not answer.
    """
    database = Database(settings.postgres())
    try:
        with database.transaction() as tx:
            row = tx.execute("SHOW server_version").fetchone()
        assert row is not None
        aio.run(_ask_beside(database, settings))
        return f"{database.name}, version {row['server_version']}{_encryption(database)}"
    finally:
        database.close()


async def _ask_beside(database: Database, settings: Settings) -> None:
    """Ask by a second connection, as each process does for traces."""
    async with open_reader(database, settings) as reader:
        try:
            await reader.ask(_SECOND_SECONDS)
        except TimeoutError:
            raise UserError(
                f"{database.name} gives no second connection within {_SECOND_SECONDS:.0f} s, and "
                "each process needs two: raise PgBouncer's default_pool_size, or set "
                "pool_mode=transaction"
            ) from None


def _encryption(database: Database) -> str:
    connection = database.connected()
    if connection.info.host.startswith("/"):
        return ""
    tls = arguments(connection)["ssl"]
    if not tls:
        return ", no TLS"
    if tls.verify_mode == CERT_REQUIRED:
        return ", TLS, verified"
    return ", TLS, not verified: sslmode=verify-full&sslrootcert=FILE would"


def tables(settings: Settings) -> str:
    """Check that the app's tables are Babylon's, and what this role may do with them.

    Raises:
        UserError: A table is not, or a right is missing.
    """
    require_usable(settings.postgres())
    return "Babylon's, and this role may use them"


def migrations(settings: Settings) -> str:
    """Check that all migrations are applied.

    Raises:
        UserError: Some are not.
    """
    missing = pending(settings.postgres())
    if missing:
        raise UserError(f"not applied: {', '.join(missing)}; run `babylon migrate`")
    return "all applied"


def redis(settings: Settings) -> str:
    """Try on Redis what the roles do, and ask it for its version.

    Raises:
        UserError: REDIS_URL is missing or wrong, or its user lacks a right, which is named.
        ServerUnavailable: Redis does not answer, or takes no writes now.
    """
    server = settings.redis()
    with broker.client(server) as client:
        client.ping()
        version = None
        with contextlib.suppress(NoPermissionError):  # nobody but us needs INFO
            version = client.info("server")["redis_version"]
    detail = f"{server.name}, version {version or 'unknown'}"
    try:
        prefix = key_prefix(settings.postgres())
    except UserError:  # the check of Postgres says why
        return f"{detail}; without Postgres it is not tried what its user may do"
    broker.require_usable(server, prefix)
    return detail


def queues(settings: Settings) -> str:
    """Find where a message gets stuck between beat and Postgres.

    Raises:
        ServerUnavailable: Redis or Postgres does not answer.
        UserError: No message went through a queue for too long; the error says who is missing.
    """
    waiting = queue_lengths(settings)
    with Database(settings.postgres()).transaction() as tx:
        answered = canaries.read(tx)
        held = leases.live(tx)
    details = []
    for queue, resource in zip(QUEUES, ("window/", "model/"), strict=True):
        canary = answered.get(queue)
        if canary is not None and canary.age_seconds <= late_seconds(settings, queue):
            details.append(f"{queue}: {canary.age_seconds:.0f} s ago, {canary.holder}")
            continue
        age = "never" if canary is None else f"{canary.age_seconds:.0f} s ago"
        at_work = next((lease for lease in held if lease.resource.startswith(resource)), None)
        if at_work:
            details.append(f"{queue}: {age}, {at_work.holder} is at work")
        elif waiting[queue]:
            raise UserError(
                f"{waiting[queue]} messages wait on {queue} and nobody takes them (the last one "
                f"{age}): is `celery -A babylon_tasks worker -Q {queue}` running?"
            )
        elif canary is None:
            raise UserError(
                f"no message ever came through {queue}, and nothing waits there: start beat and "
                "the workers (`babylon up` runs them all)"
            )
        else:
            raise UserError(
                f"nothing comes through {queue} (the last message {age}) and nothing waits there: "
                "is `celery -A babylon_tasks beat` running?"
            )
    return "; ".join(details)


def machines(settings: Settings) -> str:
    """Look for machines on which every window failed, so that they stopped.

    Raises:
        UserError: There is one; the error says which, and why.
    """
    with Database(settings.postgres()).transaction() as tx:
        at_fault = attempts.machines_at_fault(tx)
    if at_fault:
        raise UserError(
            "; ".join(
                f"{each.machine} stopped to {each.stage} at {each.ended_at:%Y-%m-%d %H:%M}, "
                f"{each.error}: mend it, and start its worker again"
                for each in at_fault
            )
        )
    return "none stopped because every window failed there"


def windows(settings: Settings) -> str:
    """Count the windows of the last LOOKBACK_HOURS and those that a step could take.

    Raises:
        UserError: There is none to train and none was trained; the error says why.
    """
    require_applied(settings.postgres())
    context = Fleet.of_deployment(settings, _HOLDER).context()
    settings = context.settings
    with context.database.transaction() as tx:
        listed = window_rows.listing(tx, context.lineage.name, settings)
    ready = [window for window in listed if window.can_train]
    if not ready and all(window.state != "trained" for window in listed):
        raise no_windows(context, listed)
    return f"{len(listed)} in the last {settings.lookback_hours} hours, {len(ready)} to train"
