"""A small question that tells whether a refusal is about one prompt or about the judge."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

from babylon_tasks.errors import JudgeFault
from babylon_tasks.scoring.judge.dialect import PARAMETERS, Dialect
from babylon_tasks.scoring.judge.refusal import Refused

log = logging.getLogger(__name__)

# Nothing in it can be filtered or too long: who refuses this refuses every question.
TEXTS = ("I bought 1 share at 0.50 and sold it at 0.60.", "I bought 1 share and kept it.")
FAULT = "a probe, after the judge had refused a question"  # in its row of rl.judgments


async def learn(dialect: Dialect, ask: Callable[[], Awaitable[None]], why: str) -> bool:
    """Find what to leave out so that the judge answers a question that has an answer.

    Returns False, and changes nothing, if it refuses it whatever is left out. `ask` asks it, and
    raises `Refused` or `JudgeFault`; its other errors pass through.
    """
    before = dialect.left_out
    for name in ("", *PARAMETERS):
        if name and name not in dialect.sent():
            continue
        if name:
            dialect.left_out |= {name}
        if await _is_answered(ask):
            break
    else:
        dialect.left_out = before
        return False
    for name in sorted(dialect.left_out - before):
        needed = dialect.left_out
        dialect.left_out = needed - {name}
        if len(needed - before) == 1 or not await _is_answered(ask):
            dialect.left_out = needed
    if dialect.left_out != before:
        log.warning("asking without %s from now on: %s", ", ".join(dialect.left_out - before), why)
    return True


async def _is_answered(ask: Callable[[], Awaitable[None]]) -> bool:
    try:
        await ask()
    except (Refused, JudgeFault):
        return False
    return True
