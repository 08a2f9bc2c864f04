"""What must hold after any fault, by the rows in Postgres and the files of checkpoints."""

from __future__ import annotations

import fcntl
import itertools
import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from babylon_tasks.checkpoints import files as checkpoint_files
from babylon_tasks.errors import CheckpointUnreadable
from babylon_tasks.work.context import Context
from tests.chaos import gate
from tests.paths import Row, lineage_rows, path_to_head
from tests.rows import query

_SCRATCH = ("steps", "replays", "fetching", "exams")
REJECTED = "rejected"


@dataclass(frozen=True, slots=True)
class Verdict:
    """Windows that did not end as they should, windows in two steps, and what else is wrong.

    A window is counted once a lineage, as `lineage/window`.
    """

    lost: list[str] = field(default_factory=list)
    twice: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)


def judge(context: Context, expected: Mapping[str, str]) -> Verdict:
    """Compare each window of each lineage with the state in which it should have ended.

    `rejected` is a window that trained a step which was given up, and trains no other. Leases and
    attempts of the dead are given the time that the pipeline promises to need.
    """
    verdict = Verdict(broken=_left_open(context))
    for name, lineage in lineage_rows(context).items():
        tree = _Tree(context, name, lineage)
        verdict.lost.extend(f"{name}/{window}" for window in tree.lost(expected))
        verdict.twice.extend(f"{name}/{window}" for window in tree.twice())
        verdict.broken.extend(f"{name}: {what}" for what in tree.broken())
    verdict.broken.extend(gate.broken(context))
    verdict.broken.extend(_still_training(context))
    return verdict


class _Tree:
    """A lineage's steps and windows; `path` leads from the root to its head."""

    def __init__(self, context: Context, name: str, lineage: Row) -> None:
        self._lineage = lineage
        self._steps = query(
            context, "SELECT * FROM rl.steps WHERE model_name = %s ORDER BY step", name
        )
        self._windows = {
            row["window_id"]: row
            for row in query(context, "SELECT * FROM rl.windows WHERE model_name = %s", name)
        }
        self._no_path: str | None = None
        try:
            self._path = path_to_head(context, name)
        except LookupError as error:
            self._path, self._no_path = [], f"there is no step {error}"

    def lost(self, expected: Mapping[str, str]) -> list[str]:
        """Return the windows in another state, or trained by a step that was given up."""
        on_the_way = {window for step in self._path for window in step["window_ids"]}
        return [
            window
            for window, state in expected.items()
            if self._windows.get(window, {}).get("state")
            != ("trained" if state == REJECTED else state)
            or (state == "trained") != (window in on_the_way)
        ]

    def twice(self) -> list[str]:
        """Return the windows that more than one step has trained, of those not given up."""
        own = [step for step in self._steps if step["given_up_at"] is None]
        kept = {step["token"]: step for step in [*self._path, *own]}
        named = Counter(window for step in kept.values() for window in step["window_ids"])
        return sorted(window for window, times in named.items() if times > 1)

    def broken(self) -> Iterator[str]:
        """Yield what is wrong with its steps, its head and the steps that its windows name."""
        if self._no_path:
            yield self._no_path
        yield from self._broken_numbers()
        yield from self._broken_path()
        yield from self._broken_windows()
        yield from self._broken_head()

    def _broken_numbers(self) -> Iterator[str]:
        first = (self._lineage["forked_step"] or 0) + 1
        numbers = [step["step"] for step in self._steps]
        if numbers != list(range(first, first + len(numbers))):
            yield f"rl.steps is not dense from {first} on: {numbers}"
        for earlier, later in itertools.pairwise(self._steps):
            if earlier["token"] >= later["token"]:
                yield f"the token of step {later['step']} is not above its predecessor's"

    def _broken_path(self) -> Iterator[str]:
        on_the_way = {step["step"] for step in self._path}
        for step in self._steps:
            if step["given_up_at"] is None and step["step"] not in on_the_way:
                yield (
                    f"step {step['step']} is not on the way to the head, step "
                    f"{self._lineage['step']}, and not given up"
                )
            if step["given_up_at"] is not None and step["step"] in on_the_way:
                yield f"step {step['step']} is on the way to the head, and given up"

    def _broken_windows(self) -> Iterator[str]:
        for step in self._path:
            for window in step["window_ids"]:
                row = self._windows.get(window, {})
                if (row.get("state"), row.get("trained_step")) != ("trained", step["step"]):
                    yield f"step {step['step']} trained {window}, whose row does not say so"
        named = {
            (w, step["step"]) for step in [*self._path, *self._steps] for w in step["window_ids"]
        }
        for window, row in self._windows.items():
            if row["state"] == "trained" and (window, row["trained_step"]) not in named:
                yield f"step {row['trained_step']} does not name {window}, which says so"

    def _broken_head(self) -> Iterator[str]:
        checkpoint = self._path[-1]["checkpoint"] if self._path else None
        if checkpoint is None:
            return
        try:
            checkpoint_files.open_local(checkpoint)
        except CheckpointUnreadable as error:
            yield f"the head's checkpoint cannot be loaded: {error}"


def _still_training(context: Context) -> list[str]:
    """List versions whose step serves, or was given up, and that the app does not know of.

    Where there is a gate, a step above the one that serves is `training` until it has passed.
    """
    rows = query(
        context,
        """SELECT "modelId" FROM trained_models m
            WHERE status = 'training'
              AND NOT EXISTS (SELECT FROM rl.steps s JOIN rl.heads h USING (model_name)
                               WHERE m."modelId" = s.model_name || '-' || s.version AND h.gated
                                 AND s.given_up_at IS NULL AND s.step > h.published_step)""",
    )
    return [f"{row['modelId']} is still `training` in trained_models" for row in rows]


def left_in(tmp: Path) -> list[str]:
    """List what dead processes left in the folder for temporary files: it holds prompts."""
    kinds = [kind for kind in tmp.glob("babylon-tasks-*/*") if kind.name in _SCRATCH]
    folders = [folder for kind in kinds for folder in kind.iterdir() if folder.is_dir()]
    return [
        f"{folder} was left by a process that is dead"
        for folder in [*filter(_is_unlocked, folders), *tmp.glob("babylon-step-*")]
    ]


def _is_unlocked(folder: Path) -> bool:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True


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
