"""A new step is examined on the windows that would train next; what follows from its verdict."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from babylon_tasks import pipeline
from babylon_tasks.errors import (
    BadWeights,
    CheckpointUnreadable,
    LeaseLost,
    StaleClaim,
    TrainerDied,
    UserError,
)
from babylon_tasks.records.exams import Exam, ExamState
from babylon_tasks.records.steps import Progress, StepRequest, StepResult, Trainer
from babylon_tasks.records.trainer_requests import (
    EvaluateRequest,
    EvaluateResult,
    GenerateRequest,
    GenerateResult,
    Generation,
    Likelihood,
)
from babylon_tasks.store import exams
from babylon_tasks.training.reset import reset
from babylon_tasks.work.context import Context
from babylon_tasks.work.fleet import require_still_active
from babylon_tasks.work.leases import LeaseKeeper
from tests.clock import let_leases_run_out
from tests.rows import (
    add_trajectory,
    add_window,
    fork,
    hours_ago,
    one,
    position,
    query,
    scored_windows,
    states,
    steps,
)

OWN = "babylon-agent"
OnBeat = Callable[[Progress | None], None]


class Opinions:
    """A trainer whose steps train nothing, and of which some steps are bad.

    `bad` has by step the error that asking it raises, or None where it answers in no form.
    `on_ask` is called before each answer.
    """

    def __init__(self, steps: Trainer) -> None:
        self._steps = steps
        self.bad: dict[int, Exception | None] = {}
        self.asked: list[tuple[str, int]] = []
        self.on_ask: Callable[[], None] = lambda: None

    def step(self, request: StepRequest, on_beat: OnBeat) -> StepResult:
        return self._steps.step(request, on_beat)

    def evaluate(self, request: EvaluateRequest, on_beat: OnBeat) -> EvaluateResult:
        self._ask("evaluate", request.checkpoint, on_beat)
        result = self._steps.evaluate(request, on_beat)
        found = [Likelihood(one.trajectory_id, 10, -1.0, 0.5) for one in result.trajectories]
        return EvaluateResult(found, len(found), 0, 10 * len(found), "none", 0.0)

    def generate(self, request: GenerateRequest, on_beat: OnBeat) -> GenerateResult:
        number = self._ask("generate", request.checkpoint, on_beat)
        text = "buy, buy" if number in self.bad else '{"action":"BUY"}'
        answer = Generation(text, (1, 2), (-0.1, -0.1), "stop")
        return GenerateResult([[answer] for _ in request.prompts], 0, 0, "none", 0.0)

    def _ask(self, what: str, checkpoint: str | None, on_beat: OnBeat) -> int:
        number = int(Path(checkpoint).name.partition("-")[0]) if checkpoint else 0
        self.asked.append((what, number))
        self.on_ask()
        on_beat(Progress(what, 1, 1))
        if error := self.bad.get(number):
            raise error
        return number

    def close(self) -> None:
        self._steps.close()


@pytest.fixture
def gated(make_context: Callable[..., Context]) -> Context:
    """A worker whose steps pass an exam before they serve."""
    return make_context(publish="gate", experiment_percent=0)


@pytest.fixture
def opinions(trainer: Trainer) -> Opinions:
    return Opinions(trainer)


def another_step(context: Context, trainer: Trainer, agents: int = 8) -> str:
    """Let another window be scored, and train what may be trained; the window's id."""
    known = one(context, "SELECT count(*) AS n FROM rl.windows")["n"]
    window = hours_ago(2 + known)
    add_window(context, window, agents=agents)
    pipeline.produce(context)
    pipeline.score(context)
    pipeline.train(context, trainer)
    return window


def parents(context: Context) -> dict[int, int]:
    return {r["step"]: r["parent_step"] for r in query(context, "SELECT * FROM rl.steps")}


def verdicts(context: Context) -> dict[int, Exam]:
    with context.database.transaction() as tx:
        return {exam.step: exam for exam in exams.read(tx, OWN)}


def test_a_step_is_examined_on_the_next_window_before_it_trains_on(
    gated: Context, opinions: Opinions
) -> None:
    another_step(gated, opinions)
    assert opinions.asked == [], "there is nothing to examine before the first step"
    pipeline.publish(gated)
    assert (position(gated), verdicts(gated)) == ((1, 0), {})
    window = another_step(gated, opinions)
    exam = verdicts(gated)[1]
    assert (exam.state, exam.served_step, exam.attempts) == (ExamState.PASSED, 0, 1)
    assert (exam.window_ids, exam.trajectories) == ([window], 8)
    assert exam.figures["form"].candidate == 1
    assert parents(gated) == {1: 0, 2: 1}
    assert {step for _, step in opinions.asked} == {0, 1}
    app = query(gated, 'SELECT * FROM trained_models ORDER BY "createdAt"')
    assert app[0]["evalMetrics"]["form"]["candidate"] == 1
    assert app[1]["evalMetrics"] is None


def test_nothing_continues_a_step_that_waits_for_its_exam(
    gated: Context, opinions: Opinions
) -> None:
    another_step(gated, opinions)
    assert pipeline.train(gated, opinions) is None
    opinions.bad[1] = UserError("no GPU here")
    with pytest.raises(UserError, match="no GPU here"):
        another_step(gated, opinions)
    assert position(gated) == (1, 0)
    assert verdicts(gated)[1].attempts == 0, "a machine's fault is not the step's"
    del opinions.bad[1]
    assert pipeline.train(gated, opinions)
    assert position(gated) == (2, 0)


def test_a_failed_step_is_no_parent_and_its_windows_stay(
    gated: Context, opinions: Opinions, caplog: pytest.LogCaptureFixture
) -> None:
    opinions.bad[1] = None
    first = another_step(gated, opinions)
    another_step(gated, opinions)
    exam = verdicts(gated)[1]
    assert exam.state == ExamState.FAILED
    assert exam.reason
    assert exam.reason.startswith("form fell from 1.00 to 0 (24 answers")
    assert parents(gated) == {1: 0, 2: 0}
    assert states(gated)[first] == "trained"
    given_up = one(gated, "SELECT * FROM rl.steps WHERE step = 1")
    assert given_up["given_up_at"] is not None
    (row,) = query(gated, "SELECT * FROM rl.resets")
    assert row["why"] == f"failed its exam: {exam.reason}"
    assert [row["status"] for row in query(gated, "SELECT * FROM trained_models")] == [
        "archived",
        "training",
    ]
    assert "step 1 failed its exam: form fell" in caplog.text


def test_the_windows_of_a_failed_step_may_train_again(
    make_context: Callable[..., Context], opinions: Opinions
) -> None:
    context = make_context(publish="gate", rejected_windows="retry")
    opinions.bad[1] = None
    first = another_step(context, opinions)
    second = another_step(context, opinions)
    assert states(context) == {first: "due", second: "trained"}
    assert one(context, "SELECT window_ids FROM rl.steps WHERE step = 2")["window_ids"] == [second]


def test_three_failures_in_a_row_pause_the_lineage(
    gated: Context, opinions: Opinions, caplog: pytest.LogCaptureFixture
) -> None:
    opinions.bad |= dict.fromkeys((1, 3, 4, 5))
    for _ in range(5):
        another_step(gated, opinions)
    found = {step: str(exam.state) for step, exam in verdicts(gated).items()}
    assert found == {1: "failed", 2: "passed", 3: "failed", 4: "failed"}
    assert one(gated, "SELECT state FROM rl.lineages")["state"] == "active"
    last = another_step(gated, opinions)
    row = one(gated, "SELECT state, changed_by FROM rl.lineages")
    assert (row["state"], row["changed_by"]) == ("paused", "the gate")
    assert states(gated)[last] == "scored", "nothing trains until a person has looked"
    said = [r.message for r in caplog.records if r.levelno == logging.ERROR]
    assert said[-1].startswith(f"{OWN} is paused: 3 steps in a row failed their exam")
    assert position(gated) == (2, 0)
    with pytest.raises(UserError, match=f"{OWN} is paused: `babylon lineages resume {OWN}`"):
        require_still_active(gated)  # who waits for a window is told


def test_weights_with_which_nothing_can_be_computed_fail(
    gated: Context, opinions: Opinions
) -> None:
    opinions.bad[1] = BadWeights("the log-probabilities are not finite")
    another_step(gated, opinions)
    another_step(gated, opinions)
    exam = verdicts(gated)[1]
    assert (exam.state, exam.reason) == (ExamState.FAILED, "the log-probabilities are not finite")
    assert parents(gated) == {1: 0, 2: 0}


def test_a_step_that_kills_its_examiner_fails(gated: Context, opinions: Opinions) -> None:
    opinions.bad[1] = TrainerDied("the trainer was killed")
    another_step(gated, opinions)
    with pytest.raises(TrainerDied):
        another_step(gated, opinions)
    for _ in range(gated.settings.max_attempts - 1):
        assert verdicts(gated)[1].state == ExamState.OPEN
        with pytest.raises(TrainerDied):
            pipeline.train(gated, opinions)
    assert pipeline.train(gated, opinions)
    exam = verdicts(gated)[1]
    assert exam.state == ExamState.FAILED
    assert exam.reason == f"its exam was begun {gated.settings.max_attempts} times and never ended"
    assert parents(gated) == {1: 0, 2: 0}


def test_a_slow_check_of_form_keeps_the_lease(
    make_context: Callable[..., Context], opinions: Opinions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The examiner says that it lives before a prompt's two answers, each asked about once."""
    happened: list[str] = []

    def check(text: str) -> bool:
        happened.append("check")
        return bool(text)

    def beat(keeper: LeaseKeeper) -> None:
        happened.append("beat")
        real(keeper)

    real = LeaseKeeper.beat
    monkeypatch.setitem(sys.modules, "ours", SimpleNamespace(check=check))
    monkeypatch.setattr(LeaseKeeper, "beat", beat)
    context = make_context(publish="gate", experiment_percent=0, form_check="ours:check")
    another_step(context, opinions)
    another_step(context, opinions)
    assert verdicts(context)[1].figures["form"].samples == 24
    assert happened.count("check") == 2 * 24
    assert ["check"] * 3 not in [happened[n : n + 3] for n in range(len(happened))]


def test_with_one_attempt_one_death_is_enough(
    make_context: Callable[..., Context], opinions: Opinions
) -> None:
    context = make_context(publish="gate", max_attempts=1)
    another_step(context, opinions)
    opinions.bad[1] = TrainerDied("the trainer was killed")
    with pytest.raises(TrainerDied):
        another_step(context, opinions)
    assert pipeline.train(context, opinions)
    exam = verdicts(context)[1]
    assert (exam.state, exam.reason) == ("failed", "its exam was begun 1 time and never ended")
    assert parents(context) == {1: 0, 2: 0}


def test_a_version_that_serves_and_is_damaged_stops_training(
    make_context: Callable[..., Context], gated: Context, opinions: Opinions
) -> None:
    always = make_context()
    another_step(always, opinions)
    pipeline.publish(always)
    another_step(always, opinions)
    assert position(gated) == (2, 1)
    for error, said in (
        (BadWeights("not finite"), "step 1 serves, and no other can be compared with it"),
        (CheckpointUnreadable("cannot read"), "cannot read"),
    ):
        opinions.bad[1] = error
        with pytest.raises(UserError, match=said):
            another_step(gated, opinions) if error.args == ("not finite",) else pipeline.train(
                gated, opinions
            )
    assert position(gated) == (2, 1)
    assert verdicts(gated)[2].state == ExamState.OPEN
    assert verdicts(gated)[2].attempts == 0


def test_files_that_are_gone_fail_nobody(gated: Context, opinions: Opinions) -> None:
    another_step(gated, opinions)
    checkpoint = Path(one(gated, "SELECT checkpoint FROM rl.steps")["checkpoint"])
    checkpoint.rename(checkpoint.with_suffix(".away"))
    with pytest.raises(CheckpointUnreadable):
        another_step(gated, opinions)
    assert (position(gated), verdicts(gated)[1].attempts) == ((1, 0), 0)
    checkpoint.with_suffix(".away").rename(checkpoint)
    assert pipeline.train(gated, opinions)


def test_a_window_rewritten_in_the_exam_decides_nothing(gated: Context, opinions: Opinions) -> None:
    another_step(gated, opinions)
    opinions.bad[1] = None

    def rewrite() -> None:
        opinions.on_ask = lambda: None
        with gated.database.transaction() as tx:
            tx.execute("UPDATE rl.windows SET score_rev = score_rev + 1 WHERE state = 'scored'")

    opinions.on_ask = rewrite
    with pytest.raises(StaleClaim, match="was scored again in the exam"):
        another_step(gated, opinions)
    assert (position(gated), verdicts(gated)[1].attempts) == ((1, 0), 0)
    assert pipeline.train(gated, opinions)
    assert verdicts(gated)[1].state == ExamState.FAILED


def test_a_window_rewritten_before_the_exam_is_scored_again(
    gated: Context, opinions: Opinions
) -> None:
    another_step(gated, opinions)
    (window,) = scored_windows(gated, 3)
    with gated.database.transaction() as tx:
        tx.execute(
            'UPDATE trajectories SET "stepsJson" = %s WHERE "windowId" = %s',
            [steps(5, response="SELL YES"), window],
        )
    assert pipeline.train(gated, opinions) is None
    assert (states(gated)[window], verdicts(gated)[1].attempts) == ("due", 0)
    assert position(gated) == (1, 0)


def test_an_examiner_that_lost_its_lease_writes_nothing(
    gated: Context, make_context: Callable[..., Context], opinions: Opinions
) -> None:
    another_step(gated, opinions)
    other = make_context(publish="gate", experiment_percent=0)

    def take_over() -> None:
        opinions.on_ask = lambda: None
        let_leases_run_out(gated)
        assert pipeline.train(other, opinions)

    opinions.on_ask = take_over
    opinions.bad[1] = None
    with pytest.raises((LeaseLost, StaleClaim)):
        another_step(gated, opinions)
    assert len(query(gated, "SELECT * FROM rl.resets")) == 1
    assert position(gated) == (2, 0)


def test_no_exam_where_every_step_serves_or_the_head_does(
    make_context: Callable[..., Context], gated: Context, opinions: Opinions
) -> None:
    always = make_context()
    another_step(always, opinions)
    pipeline.publish(always)
    another_step(gated, opinions)
    assert (opinions.asked, position(gated)) == ([], (2, 1))


def test_a_fork_examines_its_own_steps_beside_the_inherited_one(
    make_context: Callable[..., Context], opinions: Opinions
) -> None:
    always = make_context()
    another_step(always, opinions)
    pipeline.publish(always)
    child = fork(make_context(publish="gate"), "child", 1)
    for hour in (5, 6):
        window = hours_ago(hour)
        add_window(child, window)
        pipeline.enqueue(child, window)
        pipeline.score(child)
        assert pipeline.train(child, opinions)
    with child.database.transaction() as tx:
        (exam,) = exams.read(tx, "child")
    assert (exam.step, exam.served_step, exam.state) == (2, 1, ExamState.PASSED)


def rolled_back(context: Context, step: int) -> None:
    """Step 1 serves, and an experiment has rolled this step back."""
    with context.database.transaction() as tx:
        tx.execute("UPDATE rl.heads SET published_step = 1")
        tx.execute(
            """INSERT INTO rl.experiments (model_name, step, served_step, state, reason, percent,
                   first_window, holder, started_at, ended_at)
               VALUES (%s, %s, 1, 'rolled_back', 'it earns less', 20, '2026-01-01T00:00', 't',
                       rl.now(), rl.now())""",
            [OWN, step],
        )


def test_the_head_leaves_what_an_experiment_rolled_back(gated: Context, opinions: Opinions) -> None:
    for _ in range(3):
        another_step(gated, opinions)
    rolled_back(gated, 2)
    another_step(gated, opinions)
    assert parents(gated) == {1: 0, 2: 1, 3: 2, 4: 1}
    (row,) = query(gated, "SELECT * FROM rl.resets")
    assert row["why"] == "step 2: it earns less"


@pytest.mark.parametrize("is_bad", [True, False])
def test_the_head_leaves_what_was_rolled_back_while_its_child_was_examined(
    gated: Context, opinions: Opinions, is_bad: bool
) -> None:
    """A child that fails leaves the head at its parent, and that is no person's wish."""
    for _ in range(3):
        another_step(gated, opinions)
    query(gated, "UPDATE rl.heads SET published_step = 1 RETURNING 1")
    opinions.bad |= {3: None} if is_bad else {}

    def roll_back() -> None:
        opinions.on_ask = lambda: None
        rolled_back(gated, 2)

    opinions.on_ask = roll_back
    another_step(gated, opinions)
    assert verdicts(gated)[3].state == (ExamState.FAILED if is_bad else ExamState.PASSED)
    pipeline.train(gated, opinions)
    assert parents(gated) == {1: 0, 2: 1, 3: 2, 4: 1}


def test_at_wandb_the_head_stays_at_what_was_rolled_back(
    gated: Context, opinions: Opinions
) -> None:
    for _ in range(2):
        another_step(gated, opinions)
    rolled_back(gated, 2)
    for trainer, has_to_go in (("noop", True), ("serverless", False)):
        query(gated, "UPDATE rl.steps SET trainer = %s RETURNING 1", trainer)
        with gated.database.transaction() as tx:
            assert bool(exams.rolled_back(tx, OWN)) == has_to_go


def test_a_person_may_go_on_from_what_was_rolled_back(gated: Context, opinions: Opinions) -> None:
    """The head leaves it once; a reset by hand is not undone before the promotion by hand comes."""
    for _ in range(3):
        another_step(gated, opinions)
    rolled_back(gated, 2)
    another_step(gated, opinions)
    assert parents(gated)[4] == 1
    reset(gated, "2", "it was a bad day for all")
    another_step(gated, opinions)
    assert parents(gated)[5] == 2
    assert len(query(gated, "SELECT * FROM rl.resets")) == 2


def test_an_exam_needs_no_runs_of_two_outcomes(gated: Context, opinions: Opinions) -> None:
    """A window without signal is skipped, and examines nothing."""
    another_step(gated, opinions)
    window = hours_ago(9)
    for n in range(4):
        add_trajectory(gated, window, f"agent-{n}", stepsJson=steps(1))
    pipeline.enqueue(gated, window)
    pipeline.score(gated)
    assert pipeline.train(gated, opinions) is None
    assert (states(gated)[window], position(gated)) == ("skipped", (1, 0))
