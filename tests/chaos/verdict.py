"""What must hold after any fault, by the rows in Postgres and the files of checkpoints."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from babylon_tasks.checkpoints import files as checkpoint_files
from babylon_tasks.errors import CheckpointUnreadable
from babylon_tasks.work.context import Context
from tests.rows import query, states


@dataclass(frozen=True, slots=True)
class Verdict:
    """Windows that did not end as they should, windows in two steps, and what else is wrong."""

    lost: list[str] = field(default_factory=list)
    twice: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)


def judge(context: Context, expected: Mapping[str, str]) -> Verdict:
    """Compare each window with the state in which it should have ended.

    Leases and attempts of the dead are given the time that the pipeline promises to need.
    """
    found = states(context)
    return Verdict(
        lost=[window for window, state in expected.items() if found.get(window) != state],
        twice=_in_two_steps(context),
        broken=[*_broken_steps(context), *_broken_head(context), *_left_open(context)],
    )


def _in_two_steps(context: Context) -> list[str]:
    rows = query(
        context,
        """SELECT window_id FROM rl.steps CROSS JOIN unnest(window_ids) AS window_id
            GROUP BY model_name, window_id HAVING count(*) > 1 ORDER BY window_id""",
    )
    return [row["window_id"] for row in rows]


def _broken_steps(context: Context) -> Iterator[str]:
    rows = query(context, "SELECT step, token FROM rl.steps ORDER BY step")
    steps = [row["step"] for row in rows]
    if steps != list(range(1, len(steps) + 1)):
        yield f"rl.steps is not dense: {steps}"
    for earlier, later in itertools.pairwise(rows):
        if earlier["token"] >= later["token"]:
            yield f"the token of step {later['step']} is not above its predecessor's"
    orphans = query(
        context,
        """SELECT window_id, trained_step FROM rl.windows w
            WHERE state = 'trained' AND NOT EXISTS (
                  SELECT FROM rl.steps s WHERE s.model_name = w.model_name
                     AND s.step = w.trained_step AND w.window_id = ANY (s.window_ids))""",
    )
    for row in orphans:
        yield f"step {row['trained_step']} does not name {row['window_id']}, which says so"


def _broken_head(context: Context) -> Iterator[str]:
    heads = query(
        context,
        """SELECT h.step, coalesce((SELECT max(s.step) FROM rl.steps s
                                     WHERE s.model_name = h.model_name), 0) AS newest,
                  (SELECT s.checkpoint FROM rl.steps s
                    WHERE s.model_name = h.model_name AND s.step = h.step) AS checkpoint
             FROM rl.heads h""",
    )
    for head in heads:
        if head["step"] != head["newest"]:
            yield f"the head is step {head['step']}, the newest step is {head['newest']}"
        if head["checkpoint"] is not None:
            try:
                checkpoint_files.open_local(head["checkpoint"])
            except CheckpointUnreadable as error:
                yield f"the head's checkpoint cannot be loaded: {error}"


def _left_open(context: Context) -> list[str]:
    """List what is still held or under way after the longest recovery, when nothing should be."""
    settings = context.settings
    deadline = time.monotonic() + 2 * settings.lease_seconds + 2 * settings.sweep_seconds
    while (left := _open_now(context)) and time.monotonic() < deadline:
        time.sleep(0.2)
    return left


def _open_now(context: Context) -> list[str]:
    held = query(context, "SELECT * FROM rl.leases WHERE expires_at > clock_timestamp()")
    under_way = query(context, "SELECT * FROM rl.attempts WHERE ended_at IS NULL")
    return [
        *(f"{row['holder']} still holds {row['resource']}" for row in held),
        *(
            f"the attempt of {row['holder']} to {row['stage']} {row['window_id']} is open"
            for row in under_way
        ),
    ]
