"""The scoring of one claim: each window is read, filtered, scored and committed by itself."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace

import msgspec

from babylon_tasks.errors import (
    JudgeFault,
    JudgePaused,
    JudgeUnavailable,
    LeaseLost,
    ServerUnavailable,
    StaleClaim,
    UserError,
)
from babylon_tasks.logs import bound
from babylon_tasks.records.doing import Doing
from babylon_tasks.records.time_left import time_left
from babylon_tasks.records.windows import State, Window
from babylon_tasks.scoring.logprobs.attach import Attacher, attaching
from babylon_tasks.scoring.reading import ReadWindow, read_window
from babylon_tasks.scoring.registry import WITHOUT_JUDGE
from babylon_tasks.scoring.scorer import Group, Scorer
from babylon_tasks.scoring.verdict import Verdict, verdict_on
from babylon_tasks.store import (
    attempts,
    judgments,
    leases,
    scores,
    training_batches,
    transitions,
)
from babylon_tasks.store import windows as window_rows
from babylon_tasks.store.attempts import Ending
from babylon_tasks.store.database import Connection
from babylon_tasks.store.leases import Lease
from babylon_tasks.store.traces import TraceReader, open_reader
from babylon_tasks.store.transitions import Scored
from babylon_tasks.work import failures
from babylon_tasks.work.aio import all_done
from babylon_tasks.work.context import Context
from babylon_tasks.work.leases import LeaseKeeper

log = logging.getLogger(__name__)


class ScoringRun:
    """The work on one claim: `claimed` has the lease of each window."""

    def __init__(
        self,
        context: Context,
        keeper: LeaseKeeper,
        claimed: Mapping[str, Lease],
        scorers: Mapping[str, Scorer],
        sources: tuple[TraceReader, Attacher | None],
    ) -> None:
        self._context, self._keeper = context, keeper
        self._claimed, self._scorers = claimed, scorers
        self._reader, self._attacher = sources
        self._reading = asyncio.Lock()  # the reader is one connection

    async def in_turn(self) -> list[str]:
        """Score one window after another; return those that moved on.

        Raises:
            LeaseLost, StaleClaim: Another worker has taken over.
            ServerUnavailable: Postgres does not answer.
        """
        moved: list[str] = []
        windows, began = self._still_due(), time.monotonic()
        doing = Doing("score", self._context.lineage.name, sorted(self._claimed), phase="score")
        for done, window in enumerate(windows):
            share, seconds = done / len(windows), time.monotonic() - began
            self._keeper.tell(
                msgspec.structs.replace(
                    doing,
                    done=done,
                    total=len(windows),
                    share=share,
                    seconds_left=time_left(seconds, share),
                )
            )
            if moved and self._attacher and not self._attacher.has_time():
                break  # its lease goes back unused
            if await self._score_window(window):
                moved.append(window.window_id)
        return moved

    async def together(self) -> list[str]:
        """Score all windows at the same time, since a judge is slow; return those that moved on.

        Raises:
            LeaseLost, StaleClaim: Another worker has taken over.
            ServerUnavailable: Postgres does not answer.
        """
        windows = self._still_due()
        done = await all_done(map(self._score_window, windows))
        return [window.window_id for window, moved in zip(windows, done, strict=True) if moved]

    def _still_due(self) -> list[Window]:
        """Return the claimed windows that are still due, and still for one of these scorers."""
        name = self._context.lineage.name
        with self._context.database.transaction() as tx:
            windows = window_rows.read(tx, name, list(self._claimed))
        return [
            window
            for window in windows
            if window.state == State.DUE and self._scorer_name(window) in self._scorers
        ]

    def _scorer_name(self, window: Window) -> str:
        return window.scorer_to_use(self._context.settings.scoring)

    async def _score_window(self, window: Window) -> bool:
        """Tell whether the window moved on; if not, its row says why."""
        lease = self._claimed[window.window_id]
        with bound(window=window.window_id, token=lease.token):
            return await self._score_leased(window, lease)

    async def _score_leased(self, window: Window, lease: Lease) -> bool:
        context = self._context
        try:
            scorer = self._scorers[self._scorer_name(window)]
            read = await self._read(window, scorer)
            verdict = await self._judge(read.group, scorer)
            await self._attach(window, read, verdict)
            self._commit(window, lease, read, verdict)
            self._keeper.finished(lease)
        except (LeaseLost, ServerUnavailable, StaleClaim):
            raise
        except JudgeUnavailable as error:
            log.error("window %s waits: %s", window.window_id, error)  # noqa: TRY400 - the message is enough
            failures.wait(context, window, lease, error, error.wait_seconds)
        except (UserError, OSError) as error:  # of the deployment or of this machine
            log.error("window %s waits: %s", window.window_id, error)  # noqa: TRY400
            failures.wait(context, window, lease, error, 0.0)
        except Exception as error:
            if not isinstance(error, JudgeFault):
                log.exception("scoring %s failed", window.window_id)
            failures.count_failure(context, window, lease, error)
        else:
            return True
        return False

    async def _read(self, window: Window, scorer: Scorer) -> ReadWindow:
        async with self._reading:
            return await read_window(
                self._context,
                self._reader,
                window.window_id,
                sees_runs=scorer.sees_runs,
                on_row=self._keeper.beat,
            )

    async def _judge(self, group: Group, scorer: Scorer) -> Verdict:
        settings = self._context.settings
        try:
            return await verdict_on(group, scorer, settings)
        except (JudgeUnavailable, JudgeFault) as error:
            if settings.judge_fallback == "wait" or isinstance(error, JudgePaused):
                raise
            log.warning("window %s falls back to the heuristic: %s", group.window_id, error)
        verdict = await verdict_on(group, WITHOUT_JUDGE["heuristic"], settings)
        return replace(verdict, fell_back=True)

    async def _attach(self, window: Window, read: ReadWindow, verdict: Verdict) -> None:
        """Ask a server, if one is set, for the log-probabilities of the calls that will train."""
        if self._attacher and verdict.why_skip is None:
            read.funnel["unattached"] = await self._attacher.attach(
                self._reader,
                self._reading,
                window.window_id,
                {score.trajectory_id for score in verdict.scores},
                self._keeper.beat,
            )

    def _commit(self, window: Window, lease: Lease, read: ReadWindow, verdict: Verdict) -> None:
        self._keeper.until_written(
            f"store the scores of window {window.window_id}",
            lambda tx: self._write(tx, window, lease, read, verdict),
        )
        reason = verdict.why_skip
        log.info(
            "scored %s by %s: %d agents, %d of %d trajectories, %d set aside%s",
            window.window_id,
            verdict.scorer,
            read.counts.agents,
            len(read.group.everything()),
            read.rows,
            len(read.unusable),
            f", skipped ({reason})" if reason else "",
        )

    def _write(
        self, tx: Connection, window: Window, lease: Lease, read: ReadWindow, verdict: Verdict
    ) -> None:
        context, reason = self._context, verdict.why_skip
        name, primary = context.lineage.name, context.lineage.primary
        judged = any(score.judge_model for score in verdict.scores)
        paid = judged or verdict.fell_back
        source = scores.Source(name, verdict.scorer, window.window_id)
        scores.quarantine(tx, name, window.window_id, read.unusable)
        cost = judgments.cost(tx, name, window.window_id) if paid else None
        scores.write(tx, source, verdict.scores, cost)
        if not transitions.mark_scored(tx, context.claim(lease), window, _scored(read, verdict)):
            raise StaleClaim(f"window {window.window_id} was scored by somebody else")
        if primary and (judged or window.score_rev):
            scores.forget_judgments(tx, window.window_id)  # of an earlier round
        if judged and primary and verdict.rubric:
            scores.tell_app(tx, source, verdict.rubric.hash, verdict.rubric.as_json())
        if reason and window.batch_id:
            training_batches.fail(
                tx, window.batch_id, f"window {window.window_id} is skipped: {reason}"
            )
        ending = Ending.SKIPPED if reason else Ending.DONE
        attempts.end(tx, name, [lease.token], ending, reason)
        leases.release(tx, [lease])


@asynccontextmanager
async def scoring_run(
    context: Context,
    keeper: LeaseKeeper,
    claimed: Mapping[str, Lease],
    scorers: Mapping[str, Scorer],
) -> AsyncIterator[ScoringRun]:
    """Open a run's sources: a connection, and the server of LOGPROBS_URL, if it is set.

    Raises:
        ServerUnavailable: Postgres does not answer.
    """
    async with (
        open_reader(context.database, context.settings) as reader,
        attaching(context) as attacher,
    ):
        yield ScoringRun(context, keeper, claimed, scorers, (reader, attacher))


def _scored(read: ReadWindow, verdict: Verdict) -> Scored:
    return Scored(
        scorer=verdict.scorer,
        state=State.SKIPPED if verdict.why_skip else State.SCORED,
        reason=verdict.why_skip,
        counts=read.counts,
        text_bytes=sum(o.bytes_to_train for o in read.group.everything() if not o.exam_only),
        funnel=read.funnel,
        by_version=read.by_version,
    )
