"""What each name stands for: a snapshot of the rows of Postgres, made anew when they change."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

from babylon_tasks.records.lineages import Lineage
from babylon_tasks.records.shares import Share, share_at
from babylon_tasks.store import serving
from babylon_tasks.store.database import Connection, now
from babylon_tasks.store.serving import ServingRow, StepToServe
from workers.serve.backend import ApiError, Version

_STEP = re.compile(r"(.+)@(0|[1-9][0-9]{0,8})")
_VERSION = re.compile(r"(.+)-(v[0-9]+\.[0-9]+\.[0-9]+)")


@dataclass(frozen=True, slots=True)
class Entry:
    """A lineage: what its name answers with, and every version that can be asked for.

    `shares` are the one in force and the next, as far as there are. `steps` has the versions by
    their numbers, 0 for the base model; `numbers` the step of each version such as `v1.0.12`;
    `removed` says since when a step's files are gone. `mark` changes when these do.
    """

    name: str
    promoted: Version
    shares: tuple[Share, ...]
    mark: str
    steps: Mapping[int, Version]
    numbers: Mapping[str, int]
    removed: Mapping[int, datetime]

    def shared(self, moment: datetime) -> tuple[Version, Share] | None:
        """Return the version that has a share at a moment, and the share."""
        share = share_at(self.shares, moment)
        if share is None or share.step not in self.steps or share.step in self.removed:
            return None
        return self.steps[share.step], share


@dataclass(frozen=True, slots=True)
class Directory:
    """All lineages that answer, by name; `at` was the database's time as they were read."""

    entries: Mapping[str, Entry] = field(default_factory=dict)
    at: datetime = field(default_factory=lambda: datetime.now(UTC))
    read_at: float = field(default_factory=time.monotonic)

    def now(self) -> datetime:
        """Return the database's time: a share begins on all replicas at once."""
        return self.at + timedelta(seconds=time.monotonic() - self.read_at)

    def names(self) -> list[str]:
        """List the names of `GET /v1/models`: of each lineage its own, and its versions'."""
        names = []
        for entry in self.entries.values():
            names.append(entry.name)
            for step, version in sorted(entry.steps.items(), reverse=True):
                if step not in entry.removed:
                    names += [version.name]
                    if version.version:  # the base model has none, nor has what was inherited
                        names += [version.full_name]
        return names

    def find(self, name: str, agent: str | None) -> Version:
        """Return the version that a name stands for; a lineage's own name, for this agent.

        Raises:
            ApiError: There is none, or its files were removed.
        """
        if name in self.entries:
            return self._answering(self.entries[name], agent)
        if match := _STEP.fullmatch(name):
            entry, step = self.entries.get(match[1]), int(match[2])
        elif match := _VERSION.fullmatch(name):
            entry = self.entries.get(match[1])
            step = entry.numbers.get(match[2], -1) if entry else -1
        else:
            entry, step = None, -1
        if entry is None or step not in entry.steps:
            raise not_found(f"the model {name!r} does not exist; see GET /v1/models")
        if step in entry.removed:
            raise not_found(
                f"the files of {name!r} were removed on {entry.removed[step]:%Y-%m-%d}, as "
                "KEEP_CHECKPOINTS and KEEP_EVERY say"
            )
        return entry.steps[step]

    def _answering(self, entry: Entry, agent: str | None) -> Version:
        now = self.now()
        shared = entry.shared(now)
        if shared and agent is not None and shared[1].takes(entry.name, agent, now):
            return shared[0]
        return entry.promoted


def not_found(message: str) -> ApiError:
    """Return the error for a model that is not there."""
    return ApiError(404, message, param="model", code="model_not_found")


def read(tx: Connection, own: Lineage, before: Directory) -> Directory:
    """Return the directory as Postgres has it now; steps are read again only where they changed.

    `own` is the lineage that the settings name; it answers with its base model before it has a row.

    Raises:
        ServerUnavailable: Postgres does not answer.
    """
    at = now(tx)
    rows = {row.name: row for row in serving.serving_rows(tx)}
    if own.name not in rows:
        rows[own.name] = ServingRow(own.name, own.base_model, own.base_revision, 0, 0, None, (), "")
    entries = {}
    for name, row in rows.items():
        mark = f"{row.base_model} {row.base_revision} {row.steps_seen}"
        entry = before.entries.get(name)
        if entry is None or entry.mark != mark:
            entry = _with_steps(row, mark, serving.steps_to_serve(tx, name))
        promoted = entry.steps.get(row.published_step, entry.steps[0])
        entries[name] = replace(entry, promoted=promoted, shares=row.shares)
    return Directory(entries, at)


def _with_steps(row: ServingRow, mark: str, steps: Sequence[StepToServe]) -> Entry:
    base = Version(row.name, 0, None, row.base_model, row.base_revision)
    # By their own versions only the lineage's own steps: those of its ancestors may be alike.
    own = {each.step: each.version for each in steps if each.model_name == row.name}
    versions = {
        each.step: replace(
            base,
            step=each.step,
            version=own.get(each.step),
            checkpoint=each.checkpoint,
            inference_name=each.inference_name,
        )
        for each in steps
    }
    return Entry(
        name=row.name,
        promoted=base,
        shares=(),
        mark=mark,
        steps={0: base} | versions,
        numbers={version: step for step, version in own.items()},
        removed={each.step: each.removed_at for each in steps if each.removed_at},
    )
