"""What the demo shows: a line for each window, the curve among them, and two answers at the end."""

from __future__ import annotations

import contextlib
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from babylon_tasks.simulation.game.look import Look
from babylon_tasks.simulation.game.market import Market
from babylon_tasks.simulation.game.prompts import describe, read_answer

WIDTH = 80
_BAR = 20
_GATE = "a step serves once it has passed its exam, the hour after (docs/gate.md)"
_COLUMNS = f"{'window':15} step version  $/dec. {'noise':{_BAR - 6}}oracle   gap form   loss  sec"


@dataclass(frozen=True, slots=True)
class TrainedHour:
    """An hour that was played and trained, and the version that serves since; seconds it took."""

    window_id: str
    step: int
    version: str | None
    loss: float | None
    seconds: float


@dataclass(frozen=True, slots=True)
class Round:
    """What the version is worth that serves after an hour; without an hour it is the base model."""

    look: Look
    hour: TrainedHour | None = None


@dataclass(frozen=True, slots=True)
class Asked:
    """A market that was asked about, and what step 0 and the newest version answered."""

    market: Market
    before: str
    after: str


def heading(look: Look) -> str:
    """Write what stands above the rounds: what the bar reaches from and to, and the columns."""
    scale = (
        f"$ a decision on new markets: {look.noise:.2f} by guessing (noise), "
        f"{look.oracle:.2f} at best (oracle)"
    )
    return f"{scale}\n{_GATE}\n{_COLUMNS}"


def first_lines(base: Round) -> str:
    """Write the heading, and the line of the base model below it."""
    return f"{heading(base.look)}\n{line(base)}"


def line(done: Round) -> str:
    """Write a round in one line of at most 80 columns."""
    look, hour = done.look, done.hour
    name, step, version = (
        (hour.window_id, hour.step, hour.version) if hour else ("the base model", 0, None)
    )
    worth = (
        f"{name:16} {step:3} {version or '':7} {look.policy:7.2f} {bar(look.gap_closed)} "
        f"{look.gap_closed:5.0%} {look.well_formed:4.2f}"
    )
    if hour is None:
        return worth
    loss = "" if hour.loss is None else f"{hour.loss:.2f}"
    seconds = f"{hour.seconds:.1f}" if hour.seconds < 100 else f"{hour.seconds:.0f}"
    return f"{worth} {loss:>6} {seconds:>4}"


def bar(share: float) -> str:
    """Draw a share of 1; below 0 it is empty, above 1 full."""
    filled = round(_BAR * min(max(share, 0.0), 1.0))
    return "#" * filled + "." * (_BAR - filled)


def two_answers(asked: Asked) -> str:
    """Write a question and what step 0 and the newest version answer, in 80 columns."""
    market = asked.market
    wrapped = textwrap.wrap(f"asked: {describe(market)}", WIDTH, subsequent_indent="       ")
    table = [f"       {'':10} {'answer':34} worth (at best {_dollars(market.value(market.best))})"]
    for name, answer in (("step 0", asked.before), ("the newest", asked.after)):
        shown = textwrap.shorten(" ".join(answer.split()), 34, placeholder="...") or "(nothing)"
        table.append(f"       {name:10} {shown:34} {worth(market, answer)}")
    return "\n".join([*wrapped, *table])


def worth(market: Market, answer: str) -> str:
    """Say what an answer is worth: its expected P&L."""
    action = read_answer(answer)
    return "$0.00: no action" if action is None else _dollars(market.value(action))


def _dollars(value: float) -> str:
    return f"{'-' if round(value, 2) < 0 else ''}${abs(value):.2f}"


def ended(summary: Mapping[str, Any], path: Path) -> str:
    """Say what became of the windows and of the rows that were broken on purpose."""
    return (
        f"all {summary['windows_expected']} good windows trained; of what was broken on purpose, "
        f"{summary['quarantined']} rows\n         were set aside and {summary['windows_skipped']} "
        f"window without signal was skipped\n         the figures: {path}"
    )


@contextlib.contextmanager
def status() -> Iterator[Callable[[str], None]]:
    """Show in a terminal's last line what is done now; elsewhere nothing.

    Yields what sets the text. Other lines that are printed meanwhile stand above it.
    """
    if not sys.stdout.isatty():
        yield lambda text: None
        return
    from rich.console import Console

    with Console(markup=False).status("") as shown:
        yield shown.update
