"""The lineages that a process serves, and whose turn it is."""

from __future__ import annotations

import logging
import random
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import replace

from babylon_tasks.errors import UserError
from babylon_tasks.records.lineages import Lineage, LineageState
from babylon_tasks.records.scores import JUDGED
from babylon_tasks.settings import Settings
from babylon_tasks.settings.lineage import LINEAGE_NAME
from babylon_tasks.settings.overrides import with_overrides
from babylon_tasks.store import clock, lineages
from babylon_tasks.store.database import Connection, Database
from babylon_tasks.store.lineages import DueWork, Stage
from babylon_tasks.text import one_line
from babylon_tasks.work.context import Context

log = logging.getLogger(__name__)


class Fleet:
    """All lineages of a database that workers with these settings serve.

    These are the one that MODEL_NAME names, and every one that was made by `babylon lineages`.
    Their rows are read again at each call, since a person may change them at any time.
    """

    def __init__(
        self, database: Database, settings: Settings, holder: str, worker: str = ""
    ) -> None:
        self.database, self.settings = database, settings
        self.holder, self._worker = holder, worker
        self._contexts: dict[str, tuple[Lineage, Context]] = {}
        self._refused: dict[str, str] = {}  # lineages that cannot be served here, and why

    @classmethod
    def of_deployment(cls, settings: Settings, holder: str, worker: str = "") -> Fleet:
        """Return the fleet of DATABASE_URL; it connects at the first use.

        Raises:
            UserError: DATABASE_URL is missing or no URL.
        """
        return cls(Database(settings.postgres()), settings, holder, worker)

    def context(
        self, name: str | None = None, overrides: Mapping[str, str] | None = None
    ) -> Context:
        """Return the context of a lineage in any state; without a name, of MODEL_NAME.

        `overrides` come before the lineage's own; an empty one stands for the deployment's value.

        Raises:
            UserError: There is no such lineage, or one of its overrides is out of range.
            ServerUnavailable: Postgres does not answer.
        """
        name = name or self.settings.model_name
        with self.database.transaction() as tx:
            row = read_lineage(tx, name)
        if row is None and name != self.settings.model_name:
            raise unknown_lineage(name)
        lineage = row or Lineage.of_deployment(self.settings)
        if overrides:
            lineage = replace(lineage, config={**lineage.config, **overrides})
        return self._context(lineage)

    def active(self) -> list[Context]:
        """Return the contexts of all lineages that these workers serve now.

        A lineage with an override that this release refuses is left out, with a line in the log.

        Raises:
            ServerUnavailable: Postgres does not answer.
        """
        with self.database.transaction() as tx:
            rows = self.lineages(tx)
        contexts = []
        for lineage in rows:
            ours = lineage.name == self.settings.model_name or not lineage.own_settings
            if not ours or lineage.state != LineageState.ACTIVE:
                continue
            try:
                contexts.append(self._context(lineage))
                self._refused.pop(lineage.name, None)
            except UserError as error:
                if self._refused.get(lineage.name) != str(error):
                    log.error("lineage %s is not served: %s", lineage.name, error)  # noqa: TRY400
                self._refused[lineage.name] = str(error)
        return contexts

    def in_turn(self, stage: Stage, excluded: Collection[str] = ()) -> Iterator[Context]:
        """Yield the lineages with work for this stage: first the one that has waited longest.

        A lineage that is yielded has taken its turn, whatever becomes of it: one that fails waits
        behind the others. LINEAGES confines this; `excluded` are names of lineages that must not be
        tried now.

        Raises:
            ServerUnavailable: Postgres does not answer.
        """
        contexts = self._served(excluded)
        while contexts:
            settings = {name: context.settings for name, context in contexts.items()}
            with self.database.transaction() as tx:
                name = lineages.take_turn(tx, stage, settings, JUDGED)
            if name is None:
                return
            yield contexts.pop(name)

    def waits_for_step(self, excluded: Collection[str]) -> bool:
        """Tell whether a lineage that this process serves waits for a step; none takes its turn.

        Raises:
            ServerUnavailable: Postgres does not answer.
        """
        return self._sweep(self._served(excluded).values(), 1).train

    def sweep(self, limit: int) -> DueWork:
        """Return the due work of all lineages that nobody does, at most `limit` windows.

        It also sees to what Postgres' clock has left in the future.

        Raises:
            ServerUnavailable: Postgres does not answer.
        """
        with self.database.transaction() as tx:
            clock.obey(tx, self.settings.lease_seconds)
        return self._sweep(self.active(), limit)

    def to_publish(self) -> list[Context]:
        """Return the lineages of which a step is to serve, or an experiment is to decide.

        In random order: one that fails each time must not keep the others from it.

        Raises:
            ServerUnavailable: Postgres does not answer.
        """
        active = self.active()
        names = self._sweep(active, 1).publish
        return random.sample([each for each in active if each.lineage.name in names], len(names))

    def _sweep(self, contexts: Iterable[Context], limit: int) -> DueWork:
        settings = {context.lineage.name: context.settings for context in contexts}
        with self.database.transaction() as tx:
            return lineages.sweep(tx, settings, limit)

    def lineages(self, tx: Connection) -> list[Lineage]:
        """Return all lineages; MODEL_NAME has a row from now on."""
        settings = self.settings
        rows = lineages.read(tx)
        known = any(r.name == settings.model_name and r.primary == settings.primary for r in rows)
        if not known:
            lineages.ensure(tx, settings, self.holder)
            rows = lineages.read(tx)
        return rows

    def _served(self, excluded: Collection[str]) -> dict[str, Context]:
        """Return the active lineages by name, as far as LINEAGES and `excluded` allow."""
        only = self.settings.lineage_names()
        return {
            context.lineage.name: context
            for context in self.active()
            if context.lineage.name not in excluded
            and (only is None or context.lineage.name in only)
        }

    def _context(self, lineage: Lineage) -> Context:
        if not re.fullmatch(LINEAGE_NAME, lineage.name):
            raise UserError("its name, which is part of the path of its files, is malformed")
        if lineage.own_settings and lineage.name == self.settings.model_name:
            # What it started from is compared when it trains.
            own = Lineage.of_deployment(self.settings)
            lineage = replace(
                lineage,
                base_model=own.base_model,
                base_revision=own.base_revision or lineage.base_revision,
                primary=own.primary,
            )
        known = self._contexts.get(lineage.name)
        if known and known[0] == lineage:
            return known[1]
        settings = self.settings.model_copy(
            update={
                "model_name": lineage.name,
                "base_model": lineage.base_model,
                "primary": lineage.primary,
            }
        )
        settings = with_overrides(settings, lineage.config)
        context = Context(self.database, settings, self.holder, lineage, self._worker)
        self._contexts[lineage.name] = lineage, context
        return context


def read_lineage(tx: Connection, name: str) -> Lineage | None:
    """Return the row of a lineage whose name a person typed, or None."""
    rows = lineages.read(tx, [name]) if re.fullmatch(LINEAGE_NAME, name) else []
    return rows[0] if rows else None


def require_still_active(context: Context) -> None:
    """Require that the context's lineage is not paused by now: what waits for it would wait on.

    Raises:
        UserError: It is paused or retired.
        ServerUnavailable: Postgres does not answer.
    """
    with context.database.transaction() as tx:
        row = read_lineage(tx, context.lineage.name)
    if row is not None:
        row.require_active()


def unknown_lineage(name: str) -> UserError:
    """Make the error for a name that no lineage has."""
    return UserError(
        f"no lineage is called {one_line(name, 70)}: `babylon lineages list` shows those there are"
    )
