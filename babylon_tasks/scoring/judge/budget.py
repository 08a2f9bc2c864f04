"""JUDGE_DAILY_USD: what the judge may still cost today."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from babylon_tasks.errors import JudgeUnavailable
from babylon_tasks.store import judgments
from babylon_tasks.store.database import Database

LIMIT_WAIT_SECONDS = 600.0  # a person may have raised a limit by then
_FOR_OTHERS_SECONDS = 1.0  # between looks at the cost of the questions in flight


class Budget:
    """The daily limit in dollars (None: there is none), as the questions of one task spend it."""

    def __init__(self, database: Database, limit: float | None) -> None:
        self._database, self._limit = database, limit
        self._asking_usd = 0.0  # what the questions in flight may cost

    @asynccontextmanager
    async def reserved(self, usd: float) -> AsyncIterator[None]:
        """Reserve the largest cost that a question may have, until its real cost is stored.

        Raises:
            JudgeUnavailable: The daily limit does not allow it.
            ServerUnavailable: Postgres does not answer.
        """
        limit = self._limit
        while limit is not None:
            with self._database.transaction() as tx:
                spent = judgments.spent_today(tx).usd
            if spent + self._asking_usd + usd <= limit:
                break
            if self._asking_usd <= 0 or spent + usd > limit:
                raise JudgeUnavailable(
                    f"the judge's daily limit is reached: ${spent:.4f} of JUDGE_DAILY_USD="
                    f"{limit:g} are spent since 00:00 UTC, and the next question may cost "
                    f"${usd:.4f}; judging goes on tomorrow, or when the limit is raised",
                    LIMIT_WAIT_SECONDS,
                )
            await asyncio.sleep(_FOR_OTHERS_SECONDS)  # those in flight may cost less than reserved
        self._asking_usd += usd
        try:
            yield
        finally:
            self._asking_usd -= usd
