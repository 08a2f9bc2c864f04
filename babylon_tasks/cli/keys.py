"""`babylon keys create | list | revoke`."""

from __future__ import annotations

from datetime import datetime

import click
from rich.table import Table

from babylon_tasks.cli.common import as_json, print_json, ready_fleet, wide_console
from babylon_tasks.cli.screen import moment
from babylon_tasks.errors import UserError
from babylon_tasks.records.api_keys import ApiKey, hash_of, new_key, require_name
from babylon_tasks.settings import load_settings
from babylon_tasks.store import api_keys

_INT32 = 2**31 - 1
_INT64 = 2**63 - 1


@click.group()
def keys() -> None:
    """Create and revoke the keys that the endpoint accepts, each with limits of its own."""


@keys.command()
@click.argument("name")
@click.option(
    "--requests-per-minute",
    type=click.IntRange(1, _INT32),
    help="Requests a minute at most, for each endpoint process; without it as many as it likes.",
)
@click.option(
    "--tokens-per-day",
    type=click.IntRange(1, _INT64),
    help="Tokens of prompts and answers a day (UTC) at most; without it as many as it likes.",
)
def create(name: str, requests_per_minute: int | None, tokens_per_day: int | None) -> None:
    """Create a key and print it, this once: only its hash is stored.

    A name is used once: revoke the key and create another under a new name to replace it.

    Example: babylon keys create app --requests-per-minute 600 --tokens-per-day 5000000
    """
    require_name(name)
    fleet = ready_fleet(load_settings())
    key = new_key()
    row = ApiKey(
        name, hash_of(key.encode()), requests_per_minute, tokens_per_day, created_by=fleet.holder
    )
    with fleet.database.transaction() as tx:
        if not api_keys.create(tx, row):
            raise UserError(f"there is, or was, a key named {name}: choose another name")
    click.echo(key)
    click.echo(f"this is the key {name}: it is not shown again", err=True)


@keys.command("list")
@as_json
def list_all(as_json: bool) -> None:
    """List the keys with their limits, and what was used of them today (UTC).

    Example: babylon keys list --json
    """
    fleet = ready_fleet(load_settings())
    with fleet.database.transaction() as tx:
        rows = api_keys.read(tx)
    listed = [
        {
            "name": row.name,
            "requests_per_minute": row.requests_per_minute,
            "tokens_per_day": row.tokens_per_day,
            "requests_today": row.requests_today,
            "tokens_today": row.tokens_today,
            "created_by": row.created_by,
            "created_at": row.created_at,
            "revoked_at": row.revoked_at,
        }
        for row in rows
    ]
    if as_json:
        print_json(listed)
        return
    table = Table(
        "key", "requests a minute", "tokens a day", "requests today", "tokens today",
        "created by", "created", "revoked",
    )  # fmt: skip
    for each in listed:
        table.add_row(*(_cell(value) for value in each.values()))
    wide_console().print(table)


@keys.command()
@click.argument("name")
def revoke(name: str) -> None:
    """Revoke a key for good; endpoints refuse it within seconds.

    Example: babylon keys revoke app
    """
    fleet = ready_fleet(load_settings())
    with fleet.database.transaction() as tx:
        if not api_keys.revoke(tx, name):
            raise UserError(f"there is no key named {name}; see `babylon keys list`")
    click.echo(f"{name} is revoked: endpoints refuse it within seconds")


def _cell(value: object) -> str:
    if isinstance(value, datetime):
        return moment(value)
    return "" if value is None else str(value)
