"""What each name stands for: a snapshot of the rows of Postgres, made anew when they change."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

from babylon_tasks.records.lineages import Lineage
from babylon_tasks.records.shares import share_at
from babylon_tasks.serving.shares import takes_share
from babylon_tasks.store import serving
from babylon_tasks.store.database import Connection, now
from babylon_tasks.store.serving import ServingRow, StepToServe
from workers.serve.backend import ApiError, Version

_STEP = re.compile(r"(.+)@(0|[1-9][0-9]{0,8})")
_VERSION = re.compile(r"(.+)-(v[0-9]+\.[0-9]+\.[0-9]+)")


@dataclass(frozen=True, slots=True)
class Share:
    """A second version that answers `percent` of the agents."""

    version: Version
    percent: float


@dataclass(frozen=True, slots=True)
class Entry:
    """A lineage: what its name answers with, and every version that can be asked for.

    `steps` has the versions by their numbers, 0 for the base model; `numbers` the step of each
    version such as `v1.0.12`; `removed` says since when a step's files are gone. `mark` changes
    when these do.
    """

    name: str
    promoted: Version
    share: Share | None
    paused: bool
    mark: str
    steps: Mapping[int, Version]
    numbers: Mapping[str, int]
    removed: Mapping[int, datetime]


@dataclass(frozen=True, slots=True)
class Directory:
    """All lineages that answer, by name."""

    entries: Mapping[str, Entry] = field(default_factory=dict)

    def names(self) -> list[str]:
        """List the names of `GET /v1/models`: of each lineage its own, and its versions'."""
        names = []
        for entry in self.entries.values():
            names.append(entry.name)
            for step, version in sorted(entry.steps.items(), reverse=True):
                if step not in entry.removed:
                    names += [version.name] if step == 0 else [version.name, version.full_name]
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
        share = entry.share
        if share and agent is not None and takes_share(entry.name, agent, share.percent):
            return share.version
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
        entries[name] = _now(entry, row, at)
    return Directory(entries)


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
        share=None,
        paused=False,
        mark=mark,
        steps={0: base} | versions,
        numbers={version: step for step, version in own.items()},
        removed={each.step: each.removed_at for each in steps if each.removed_at},
    )


def _now(entry: Entry, row: ServingRow, at: datetime) -> Entry:
    """Return the entry with what the rows say of its promoted version and its share."""
    share = share_at(row.shares, at)
    return replace(
        entry,
        promoted=entry.steps.get(row.published_step, entry.steps[0]),
        share=Share(entry.steps[share.step], share.percent)
        if share and share.step in entry.steps
        else None,
        paused=row.promotion_paused_at is not None,
    )
