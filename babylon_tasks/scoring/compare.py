"""Past windows by another recipe, beside their stored scores; nothing of it trains.

It writes only what a judge answers into `rl.judgments`, as scoring does: the daily limit counts it,
and a later scoring that asks the same question has the answer for nothing.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from babylon_tasks.errors import (
    Final,
    JudgePaused,
    LeaseLost,
    Retryable,
    ServerUnavailable,
    UserError,
)
from babylon_tasks.records.windows import State, Window, parse_window_id
from babylon_tasks.scoring.judge.bill import Bill, total
from babylon_tasks.scoring.judge.client import Judge
from babylon_tasks.scoring.reading import read_window
from babylon_tasks.scoring.registry import WITHOUT_JUDGE, asking
from babylon_tasks.scoring.scorer import Scorer
from babylon_tasks.scoring.verdict import verdict_on
from babylon_tasks.scoring.window_comparison import (
    Mean,
    WindowComparison,
    compare_scores,
    mean,
    unmatched,
)
from babylon_tasks.store import leases, scores
from babylon_tasks.store import windows as window_rows
from babylon_tasks.store.leases import Lease
from babylon_tasks.store.traces import TraceReader, open_reader
from babylon_tasks.text import one_line
from babylon_tasks.work import aio
from babylon_tasks.work.context import Context
from babylon_tasks.work.leases import LeaseKeeper

_AT_ONCE = 16  # windows in memory; a scoring task claims as many
_JUDGE_WAIT_SECONDS = 10.0  # for a worker that judges
_LOOK_SECONDS = 0.5
_TELL_SECONDS = 2.0  # between lines of progress
_DAY = 24  # windows


@dataclass(frozen=True, slots=True)
class JudgeCost:
    """The cost of a judge's answers, refused ones too.

    `bought` are those of this comparison, `found` those that were bought before, `day` is the cost
    of 24 windows like those compared, with neither.
    """

    model: str
    bought: Bill
    found: Bill
    day: Bill


@dataclass(frozen=True, slots=True)
class Comparison:
    """The windows, oldest first, and what holds for them together.

    `newly_skipped` windows were scored and would be skipped, `newly_scored` ones the reverse.
    `not_compared` has the reasons by window id. `judge` is None for a scorer without one.
    """

    scorer: str
    windows: list[WindowComparison]
    not_compared: Mapping[str, str]
    spearman: Mean
    kendall: Mean
    pairs_changed: Mean
    newly_skipped: int
    newly_scored: int
    judge: JudgeCost | None


def choose_windows(context: Context, window_ids: Sequence[str], last: int) -> list[Window]:
    """Return the rows of the named windows, or of the `last` newest that are scored or trained.

    Raises:
        UserError: A window has no row, an id is malformed, or no window is scored yet.
        ServerUnavailable: Postgres does not answer.
    """
    name = context.lineage.name
    for window_id in window_ids:
        parse_window_id(window_id)
    with context.database.transaction() as tx:
        if window_ids:
            windows = window_rows.read(tx, name, window_ids)
        else:
            windows = window_rows.newest_scored(tx, name, last)
    if unknown := set(window_ids) - {window.window_id for window in windows}:
        raise UserError(
            f"no row for {name}: {', '.join(sorted(unknown))}; `babylon windows list` shows the "
            "windows there are"
        )
    if not windows:
        raise UserError(
            f"no window of {name} is scored or trained yet: `babylon windows list` shows them all"
        )
    return windows


def compare(context: Context, windows: Sequence[Window], tell: Callable[[str], None]) -> Comparison:
    """Score the windows by the context's settings, and compare that with their stored scores.

    SCORING is the scorer, whatever scorer a window names. `tell` gets a line while a worker judges,
    and each two seconds in which windows are done. JUDGE_FALLBACK does not hold: a window that the
    judge does not answer about is not compared.

    Raises:
        UserError: The judge cannot be asked, a worker judges, or no window could be compared.
        LeaseLost: A worker has taken the judge over.
        ServerUnavailable: Postgres does not answer.
    """
    scoring = context.settings.scoring
    judge, held = None, []
    scorer = WITHOUT_JUDGE.get(scoring)
    if scorer is None:
        judge = Judge(context, "comparison")  # imports for seconds, so it comes before the lease
        scorer = asking(judge, context.settings)[scoring]
        held = [_hold_judge(context, tell)]
    with LeaseKeeper(context, held) as keeper:
        run = _Comparing(context, scorer, keeper)
        work = aio.with_ticks(run.all(windows), _TELL_SECONDS, lambda: run.tell_progress(tell))
        aio.run(keeper.beating(work))
    if not run.compared:
        raise UserError(_why_none(run.not_compared))
    return _together(scoring, run, _cost(context, judge, run.compared) if judge else None)


class _Comparing:
    """The work on the windows: each is read, scored and compared by itself."""

    def __init__(self, context: Context, scorer: Scorer, keeper: LeaseKeeper) -> None:
        self._context, self._scorer, self._keeper = context, scorer, keeper
        self._reading = asyncio.Lock()  # the reader is one connection
        self._wanted = self._done = 0
        self._told = -1
        self.compared: list[WindowComparison] = []
        self.not_compared: dict[str, str] = {}

    async def all(self, windows: Sequence[Window]) -> None:
        """Compare the windows, a few at the same time.

        Raises:
            LeaseLost, ServerUnavailable: As `compare` does.
        """
        self._wanted = len(windows)
        async with open_reader(self._context.database, self._context.settings) as reader:
            for start in range(0, len(windows), _AT_ONCE):
                some = windows[start : start + _AT_ONCE]
                await aio.all_done(self._window(window, reader) for window in some)
        self.compared.sort(key=lambda each: each.window_id)

    def tell_progress(self, tell: Callable[[str], None]) -> None:
        """Tell how many windows are done, unless the last line said so."""
        if self._done != self._told:
            self._told = self._done
            tell(f"{self._done} of {self._wanted} windows are scored by {self._scorer.name}")

    async def _window(self, window: Window, reader: TraceReader) -> None:
        try:
            self.compared.append(await self._compared(window, reader))
        except (LeaseLost, ServerUnavailable):
            raise
        except JudgePaused:
            self.not_compared[window.window_id] = (
                "no time was left for it; answers are kept, so the same command goes on from here"
            )
        except (Retryable, Final) as error:
            self.not_compared[window.window_id] = one_line(str(error), 2000)
        self._done += 1

    async def _compared(self, window: Window, reader: TraceReader) -> WindowComparison:
        """Compare one window.

        Raises:
            Final: It has no scores, or Postgres cannot read a trace.
            Retryable: The judge gave no usable answer, or Postgres none in time.
        """
        context, name = self._context, self._context.lineage.name
        source = scores.Source(name, window.scorer or "", window.window_id)
        with context.database.transaction() as tx:
            stored = scores.read(tx, source)
        if not stored and window.state != State.SKIPPED:
            raise Final(f"it has no scores to compare with: it is {window.state}")
        async with self._reading:
            read = await read_window(
                context,
                reader,
                window.window_id,
                sees_runs=self._scorer.sees_runs,
                on_row=self._keeper.beat,
            )
        verdict = await verdict_on(read.group, self._scorer, context.settings)
        with context.database.transaction() as tx:
            later = scores.which_are_later(tx, name, window.window_id, unmatched(stored, read))
        return compare_scores(window, stored, read, verdict, later)


def _hold_judge(context: Context, tell: Callable[[str], None]) -> Lease:
    """Take the model's judge, so that JUDGE_CONCURRENCY holds for all who ask it together.

    Raises:
        UserError: A worker holds it, also after some seconds.
    """
    name, settings = context.lineage.name, context.settings
    resource = leases.judge_of(name)
    ends_at = time.monotonic() + _JUDGE_WAIT_SECONDS
    told = False
    while True:
        with context.database.transaction() as tx:
            lease = leases.acquire(tx, resource, context.holder, settings.lease_seconds)
            if lease:
                return lease
            holder = leases.holder(tx, resource)
        asks = f"{holder or 'another worker'} asks the judge of {name} now"
        if time.monotonic() >= ends_at:
            raise UserError(f"{asks}, and only one may at a time: try again when it is done")
        if not told:
            tell(f"{asks}; waiting for it")
            told = True
        time.sleep(_LOOK_SECONDS)


def _cost(context: Context, judge: Judge, compared: Sequence[WindowComparison]) -> JudgeCost:
    of_windows = [
        bills[each.window_id] for each in compared for bills in (judge.bought, judge.found)
    ]
    return JudgeCost(
        model=context.settings.judge_model,
        bought=total(judge.bought.values()),
        found=total(judge.found.values()),
        day=total(of_windows).times(_DAY / len(compared)),
    )


def _together(scoring: str, run: _Comparing, cost: JudgeCost | None) -> Comparison:
    changes = [(each.before, each.after) for each in run.compared]
    return Comparison(
        scorer=scoring,
        windows=run.compared,
        not_compared=dict(sorted(run.not_compared.items())),
        spearman=mean(each.spearman for each in run.compared),
        kendall=mean(each.kendall for each in run.compared),
        pairs_changed=mean(each.pairs_changed for each in run.compared),
        newly_skipped=changes.count((State.SCORED, State.SKIPPED)),
        newly_scored=changes.count((State.SKIPPED, State.SCORED)),
        judge=cost,
    )


def _why_none(reasons: Mapping[str, str]) -> str:
    """Return one line for a comparison without a window."""
    first = min(reasons)
    others = len(set(reasons.values())) - 1
    more = f" (and {others} other reasons)" if others else ""
    return f"no window could be compared: {first}: {reasons[first]}{more}"
