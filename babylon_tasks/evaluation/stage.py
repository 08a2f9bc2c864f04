"""Stage 4, evaluation: a new step is examined before it trains on or serves."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from babylon_tasks.checkpoints import files as checkpoint_files
from babylon_tasks.errors import (
    BadWeights,
    CheckpointRemoved,
    LeaseLost,
    ServerUnavailable,
    StaleClaim,
    UserError,
)
from babylon_tasks.evaluation.exam import Examiner, Version
from babylon_tasks.evaluation.rejection import leave_rolled_back, reject
from babylon_tasks.evaluation.verdict import judge
from babylon_tasks.logs import bound
from babylon_tasks.records.doing import Doing
from babylon_tasks.records.exams import ExamState, Figures
from babylon_tasks.records.form import load_form_check
from babylon_tasks.records.gates import FAILURES_IN_A_ROW, PAUSED_BY
from babylon_tasks.records.lineages import LineageState
from babylon_tasks.records.steps import Progress, Sample, Trainer
from babylon_tasks.records.time_left import time_left
from babylon_tasks.records.versions import Head
from babylon_tasks.records.windows import State, Window, share_a_step
from babylon_tasks.scratch import scratch as scratch_folder
from babylon_tasks.store import exams, heads, leases, lineages, steps
from babylon_tasks.store import windows as window_rows
from babylon_tasks.store.database import Connection
from babylon_tasks.store.exams import Candidate, Decision
from babylon_tasks.store.leases import Lease
from babylon_tasks.words import counted
from babylon_tasks.work import aio, left_out
from babylon_tasks.work.context import Context
from babylon_tasks.work.leases import LeaseKeeper, claim_lineage
from babylon_tasks.work.samples import StepSamples, collect, staleness_at

log = logging.getLogger(__name__)

_MOST_WINDOWS = 4  # of a step that has many: they have more runs than an exam reads


def examine(
    context: Context,
    trainer: Trainer,
    only: Sequence[str] | None,
    on_doing: Callable[[Doing], None],
) -> ExamState | None:
    """Claim the lineage and examine its head on the windows that would train next.

    None where there is nothing to examine: PUBLISH is `always`, the head serves or has its verdict,
    or no window is there to examine it on. A step that fails is no parent of any other.

    Raises:
        UserError: Nothing can be examined here (settings, packages, unreadable checkpoint), or the
            version that serves is damaged; the windows wait.
        LeaseLost, StaleClaim: Another worker has taken over, or a window changed; nothing was
            written.
        ServerUnavailable: Postgres does not answer.
        Retryable, Final: The trainer failed. After MAX_ATTEMPTS times the step fails its exam.
        OSError: This machine cannot read or write its files.
    """
    if context.settings.publish == "always":
        return None
    claimed = _claim(context, only)
    if claimed is None:
        return None
    with LeaseKeeper(context, [claimed.lease], on_doing) as keeper:
        windows = [window.window_id for window in claimed.windows]
        with bound(step=claimed.candidate.step, windows=windows):
            return _Exam(context, trainer, keeper, claimed).run()


@dataclass(frozen=True, slots=True)
class _Claimed:
    """A begun exam: of whom, on which windows, for how often."""

    lease: Lease
    head: Head
    candidate: Candidate
    windows: Sequence[Window]
    attempts: int


def _claim(context: Context, only: Sequence[str] | None) -> _Claimed | None:
    """Lease the lineage and begin an exam, if one is due.

    A head that comes after a step which an experiment rolled back moves back before it.
    """
    with context.database.transaction() as tx:
        claimed = claim_lineage(tx, context)
        if claimed is None:
            return None
        lease, head = claimed
        leave_rolled_back(context, tx, context.claim(lease))
        begun = _begin(context, tx, lease, head, only)
        if begun is None:
            leases.release(tx, [lease])
    return begun


def _begin(
    context: Context, tx: Connection, lease: Lease, head: Head, only: Sequence[str] | None
) -> _Claimed | None:
    settings, name = context.settings, context.lineage.name
    candidate = exams.awaited(tx, name)
    windows = share_a_step(window_rows.scored(tx, name, only), settings.max_step_tokens)
    windows = windows[:_MOST_WINDOWS]
    if candidate is None or not windows:
        return None
    attempts = exams.begin(tx, context.claim(lease), candidate)
    return _Claimed(lease, head, candidate, windows, attempts)


class _Exam:
    """One exam, under the lease of the lineage."""

    def __init__(
        self,
        context: Context,
        trainer: Trainer,
        keeper: LeaseKeeper,
        claimed: _Claimed,
    ) -> None:
        self._context, self._trainer, self._keeper = context, trainer, keeper
        self._claimed, self._candidate = claimed, claimed.candidate
        self._windows: Sequence[Window] = claimed.windows

    def run(self) -> ExamState | None:
        most = self._context.settings.max_attempts
        if self._claimed.attempts > most:
            begun = counted(most, "time")
            return self._decide({}, 0, f"its exam was begun {begun} and never ended")
        try:
            decided = self._examine()
        except LeaseLost:
            if self._keeper.met_outage:
                self._uncount()  # this worker was taken for dead
            raise
        except (UserError, OSError, StaleClaim):
            self._give_back()  # nobody is to blame
            raise
        except (KeyboardInterrupt, SystemExit):
            self._uncount()  # the worker was stopped
            raise
        if decided is None:
            self._give_back()
        return decided

    def _examine(self) -> ExamState | None:
        name, ids = self._context.lineage.name, [w.window_id for w in self._windows]
        step = self._candidate.step
        self._keeper.tell(Doing("exam", name, ids, step=step, phase="read", share=0.0))
        with scratch_folder("exams") as scratch:
            samples = self._read(scratch)
            if not samples:
                return None
            trajectories = len({sample.trajectory_id for sample in samples})
            ids = [window.window_id for window in self._windows]
            self._keeper.tell_change(windows=ids, runs=trajectories, phase="load")
            try:
                figures = self._examiner(scratch).compare(samples, *self._versions())
            except BadWeights as error:
                return self._decide({}, trajectories, str(error))
        self._keeper.tell_change(phase="commit", done=0, total=0, share=1.0, seconds_left=None)
        return self._decide(figures, trajectories, None)

    def _read(self, scratch: Path) -> list[Sample]:
        """Return the runs of the windows that would train; the others are settled."""
        context, keeper = self._context, self._keeper
        path = scratch / "windows.jsonl"
        with context.database.transaction() as tx:
            staleness = staleness_at(tx, context, self._candidate.step)
        reading = collect(context, self._claimed.windows, staleness, path, keeper.beat, exams=True)
        read: StepSamples = aio.run(keeper.beating(reading))
        left_out.settle(context, keeper, read.left_out)
        self._windows = read.windows
        lines = path.read_bytes().splitlines()
        return [msgspec.json.decode(line, type=Sample) for line in lines]

    def _versions(self) -> tuple[Version, Version]:
        return self._version(self._candidate.published_step), self._version(self._candidate.step)

    def _version(self, number: int) -> Version:
        """Return a step with its files on this machine.

        Raises:
            UserError: They cannot be read here, or were removed.
        """
        with self._context.database.transaction() as tx:
            step = steps.read(tx, self._context.lineage.name, number)
        if step is None:
            return Version(number, None)
        try:
            return Version(number, checkpoint_files.open_local(step.files(), self._keeper.beat))
        except CheckpointRemoved as error:
            raise UserError(f"no step can be compared with what serves: {error}") from error

    def _examiner(self, scratch: Path) -> Examiner:
        context = self._context
        began = time.monotonic()

        def on_beat(progress: Progress | None) -> None:
            self._keeper.beat()
            if progress is not None:
                left = time_left(time.monotonic() - began, progress.share or 0.0)
                told = msgspec.structs.replace(progress, seconds_left=left)
                self._keeper.tell(self._keeper.doing.at(told))

        return Examiner(
            self._trainer,
            context.settings,
            context.lineage,
            self._claimed.head.base_revision or context.lineage.base_revision,
            load_form_check(context.settings.form_check),
            scratch,
            on_beat,
        )

    def _decide(self, figures: Figures, trajectories: int, why_failed: str | None) -> ExamState:
        """Write the verdict and what follows from it, in one transaction."""
        name, step = self._context.lineage.name, self._candidate.step
        state, reason, figures = judge(figures)
        if why_failed is not None:
            state, reason = ExamState.FAILED, why_failed
        windows = [window.window_id for window in self._windows]
        decision = Decision(step, state, reason, windows, trajectories, figures)
        paused = self._keeper.until_written(
            f"decide the exam of step {step}", lambda tx: self._write(tx, decision)
        )
        say = log.warning if state == ExamState.FAILED else log.info
        say("step %d %s its exam: %s", step, state, reason)
        if paused:
            log.error(
                "%s is paused: %d steps in a row failed their exam; `babylon models show %d` has "
                "the figures, `babylon lineages resume %s` goes on",
                name,
                FAILURES_IN_A_ROW,
                step,
                name,
            )
        return state

    def _write(self, tx: Connection, decision: Decision) -> bool:
        """Write the verdict, unless it was written before the answer to COMMIT was lost.

        Returns whether the gate has paused the lineage.
        """
        context, claim, name = self._context, self._keeper.claim, self._context.lineage.name
        if not exams.was_decided(tx, claim):
            self._require_unchanged(tx)
            exams.decide(tx, claim, decision)
            if context.lineage.primary:
                exams.tell_app(tx, name, decision.step, decision.figures)
            if decision.state == ExamState.FAILED:
                reject(context, tx, claim, decision.step, decision.reason)
        (row,) = lineages.read(tx, [name])
        return (row.state, row.changed_by) == (LineageState.PAUSED, PAUSED_BY)

    def _require_unchanged(self, tx: Connection) -> None:
        """Require the lease, the head and the windows as they were read.

        Raises:
            StaleClaim, LeaseLost: They are not.
        """
        claim, name = self._keeper.claim, self._context.lineage.name
        leases.renew(tx, [claim.lease], self._context.settings.lease_seconds)
        head = heads.lock(tx, claim)
        if head is None or (head.step, head.published_step) != self._candidate:
            raise StaleClaim(f"the head of {name}, or what serves, moved in its exam")
        ids = [window.window_id for window in self._windows]
        now = {row.window_id: row for row in window_rows.read(tx, name, ids)}
        for window in self._windows:
            row = now.get(window.window_id)
            if row is None or (row.state, row.score_rev) != (State.SCORED, window.score_rev):
                raise StaleClaim(f"window {window.window_id} was scored again in the exam")

    def _give_back(self) -> None:
        claim, step = self._keeper.claim, self._candidate.step
        try:
            self._keeper.until_written(
                "give the exam back", lambda tx: exams.give_back(tx, claim, step)
            )
        except LeaseLost:
            self._uncount()

    def _uncount(self) -> None:
        """Give the exam back though its lease may be another's, if Postgres is there."""
        with contextlib.suppress(ServerUnavailable), self._context.database.transaction() as tx:
            exams.give_back(tx, self._keeper.claim, self._candidate.step)
