"""The live experiment: a version that passed its exam answers a part of the agents.

What follows is decided in the transaction of its caller, which holds the lineage's head: two
workers, or a worker and a person, come one after the other, and a death leaves nothing half done.
Each decision is a row of `rl.experiment_looks`, and moves what follows from it.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from babylon_tasks.records.experiments import Experiment, ExperimentState, FailedAgents
from babylon_tasks.records.windows import window_id_at
from babylon_tasks.serving import bad_answers, confidence
from babylon_tasks.serving.decide import Decision, Next, decide
from babylon_tasks.store import experiments, heads, promotions, shares
from babylon_tasks.store.database import Connection, now
from babylon_tasks.store.experiments import Decided, ScoredWindow
from babylon_tasks.work.context import Context


@dataclass(slots=True)
class Outcome:
    """The versions that came to serve or before it, and what was decided, in sentences."""

    versions: list[str] = field(default_factory=list)
    said: list[str] = field(default_factory=list)


def follow(tx: Connection, context: Context) -> Outcome:
    """Look at what the running experiment shows; without one, begin the next that there is to try.

    While promotion is paused nothing is promoted or begun, and windows wait; a version that fails
    its agents is taken back even so.
    """
    outcome = Outcome()
    running = experiments.running(tx, context.lineage.name)
    if running is not None and not _Running(tx, context, running, outcome).has_ended():
        return outcome
    head = heads.read(tx, context.lineage.name)
    if head is not None and head.promotion_paused_at is None:
        _begin(tx, context, head.published_step, outcome)
    return outcome


def stop(tx: Connection, context: Context, why: str | None = None) -> None:
    """End the running experiment, if there is one; without `why` only if a person has ended it."""
    running = experiments.running(tx, context.lineage.name)
    if running is not None:
        why = why or experiments.changed_by_hand(tx, running.id)
        if why:
            _Running(tx, context, running, Outcome()).end(Decision.STOPPED, why)


def _begin(tx: Connection, context: Context, served_step: int, outcome: Outcome) -> None:
    """Let the newest step that passed its exam serve, or try it with a part of the agents."""
    name, settings = context.lineage.name, context.settings
    step = experiments.candidate(tx, name)
    if step is None or experiments.shared_by_hand(tx, name):
        return
    passed = f"step {step} passed its exam"
    if settings.experiment_percent == 0:
        why = f"{passed}, and EXPERIMENT_PERCENT is 0"
    elif not experiments.answers_agents(tx, name):
        why = f"{passed}, and no agent has asked the endpoint for two windows"
    else:
        _open(tx, context, step, served_step, outcome)
        return
    outcome.versions += promotions.publish(tx, name, step, (context.holder, why))
    outcome.said.append(why)


def _open(tx: Connection, context: Context, step: int, served_step: int, outcome: Outcome) -> None:
    name, percent = context.lineage.name, context.settings.experiment_percent
    reason = f"step {step} passed its exam: it answers {percent:g} % of the agents"
    by = (context.holder, reason)
    id_ = experiments.open_one(tx, name, (step, served_step), percent, by)
    starts_at = shares.start(tx, name, step, percent, by, experiments.draw_of(id_))
    experiments.begin_in(tx, id_, window_id_at(starts_at))
    outcome.said.append(reason)


class _Running:
    """An experiment that runs, in a transaction with the lineage's head locked."""

    def __init__(
        self, tx: Connection, context: Context, experiment: Experiment, outcome: Outcome
    ) -> None:
        self._tx, self._context, self._outcome = tx, context, outcome
        self._experiment, self._name = experiment, context.lineage.name

    def has_ended(self) -> bool:
        """Look at what is new, and tell whether that ended the experiment."""
        if why := experiments.changed_by_hand(self._tx, self._experiment.id):
            self.end(Decision.STOPPED, why)
        elif why := self._fails_agents():
            self.end(Decision.ROLLED_BACK, why)
        else:
            self._look()
        return self._experiment.state != ExperimentState.RUNNING

    def end(self, decision: Decision, why: str) -> None:
        """End it for what no window's scores say; the window of now has the row."""
        window = ScoredWindow(window_id_at(now(self._tx)), 0)
        windows = [each.evidence for each in experiments.looks(self._tx, self._experiment.id)]
        standing = confidence.standing(windows, 0)
        told = Next(decision, standing, self._experiment.percent, why)
        self._write(window, Decided(decision, confidence.nothing(), standing))
        self._follow(told)

    def _fails_agents(self) -> str | None:
        """Return how the candidate fails more agents than the version that serves, or None."""
        experiment = self._experiment
        windows = experiments.failed_agents(self._tx, self._name, experiment)
        if not bad_answers.is_worse(windows):
            return None
        return _failed_sentence(experiment, windows)

    def _look(self) -> None:
        """Look at each window that was scored since the last look, in order, until one decides."""
        head = heads.read(self._tx, self._name)
        if head is None or head.promotion_paused_at is not None:
            return
        at_most = self._context.settings.experiment_windows
        newest = experiments.candidate(self._tx, self._name)
        newer = newest if newest and newest > self._experiment.step else None
        looks = experiments.looks(self._tx, self._experiment.id)
        seen = {look.window_id: look.evidence for look in looks}
        for window in experiments.windows_to_look_at(self._tx, self._experiment.id):
            seen[window.window_id] = experiments.window_evidence(
                self._tx, self._name, self._experiment, window.window_id
            )
            told = decide(self._experiment, list(seen.values()), at_most, newer)
            self._write(window, Decided(told.decision, seen[window.window_id], told.standing))
            self._follow(told)
            if told.end:
                return

    def _write(self, window: ScoredWindow, decided: Decided) -> None:
        holder = self._context.holder
        experiments.write_look(self._tx, self._experiment.id, window, decided, holder)

    def _follow(self, told: Next) -> None:
        """Do what was decided."""
        experiment, by = self._experiment, (self._context.holder, told.reason)
        draw = experiments.draw_of(experiment.id)
        state = told.end
        if state is None:
            if told.decision == Decision.MORE_AGENTS:
                shares.start(self._tx, self._name, experiment.step, told.percent, by, draw)
            experiments.go_on(self._tx, experiment.id, told.percent, told.reason)
        else:
            experiments.end(self._tx, experiment.id, state, by)
            shares.end(self._tx, self._name, [], by, draw)
            if state == ExperimentState.PROMOTED:
                versions = promotions.publish(self._tx, self._name, experiment.step, by)
                self._outcome.versions += versions
        self._experiment = replace(
            experiment, percent=told.percent, state=state or experiment.state, reason=told.reason
        )
        self._outcome.said.append(f"{told.decision}: {told.reason}")


def _failed_sentence(experiment: Experiment, windows: list[FailedAgents]) -> str:
    candidate = sum(each.candidate for each in windows)
    candidate_failed = sum(each.candidate_failed for each in windows)
    served = sum(each.served for each in windows)
    served_failed = sum(each.served_failed for each in windows)
    return (
        f"step {experiment.step} failed {candidate_failed} of {candidate} agents with errors or "
        f"malformed answers, step {experiment.served_step} {served_failed} of {served}"
    )
