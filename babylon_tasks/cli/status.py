"""`babylon status`."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import click

from babylon_tasks.cli.common import as_json, of_lineage, print_json, ready_context
from babylon_tasks.cockpit.status import database_status, queue_lengths
from babylon_tasks.records.movement import LEAST_POLICY_CHANGE
from babylon_tasks.settings import load_settings

# The word for a value that is missing.
_NOTHING = {"canary_age_seconds": "never"}

_COLUMNS = 80
_LABEL = 19  # columns before a value


@click.command()
@of_lineage
@as_json
def status(lineage: str | None, as_json: bool) -> None:
    """Show the windows by state, the version that serves, and what waits in Redis.

    A canary's age is the time since a message last went through Redis, a queue and a worker to
    Postgres. `babylon doctor` says where messages get stuck. `at_fault` are machines on which every
    window failed, so that they stopped. `policy_change` is how far the last step moved the
    log-probability of an answer, in nats. `gate` says what waits to serve and for what, why the
    last step failed its exam, and how the experiment stands: the difference a run with its 95 %
    interval.

    Example: babylon status --json
    """
    settings = load_settings()
    figures = {
        **database_status(ready_context(settings, lineage)),
        "queues": queue_lengths(settings),
    }
    if as_json:
        print_json(figures)
        return
    said = figures.pop("gate_says")
    for key, value in figures.items():
        if key == "gate":
            value = _wrapped([f"PUBLISH={value['publish']}", *said])
        elif isinstance(value, dict):
            nothing = _NOTHING.get(key, "none")
            value = (
                ", ".join(
                    f"{name} {nothing if each is None else each}" for name, each in value.items()
                )
                or "none"
            )
        click.echo(f"{key:{_LABEL - 1}} {value}")
    if figures["last_step"].get("stands_still"):
        click.echo(
            "the last step stood still: it moved the log-probability of an answer by less than "
            f"{LEAST_POLICY_CHANGE:g} nats; `babylon doctor` says which setting to change"
        )


def _wrapped(sentences: Sequence[str]) -> str:
    """Write one sentence below the other, each in as many lines as it needs."""
    lines: list[str] = []
    for sentence in sentences:
        lines += textwrap.wrap(
            sentence, _COLUMNS - _LABEL, subsequent_indent="  ", break_on_hyphens=False
        )
    return f"\n{'':{_LABEL}}".join(lines)
