"""What the holder of a lease says that it does: in its lease's row, and to who asked to hear it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import msgspec
import pytest

from babylon_tasks import pipeline
from babylon_tasks.errors import LeaseLost
from babylon_tasks.records.doing import Doing
from babylon_tasks.records.steps import Progress, StepRequest, StepResult, Trainer
from babylon_tasks.store import leases
from babylon_tasks.store.leases import Running
from babylon_tasks.work.context import Context
from babylon_tasks.work.leases import LeaseKeeper
from tests import judge_server as judge
from tests.clock import let_leases_run_out
from tests.judge_server import JudgeServer
from tests.judged import add_judged_window
from tests.rows import hours_ago, query, scored_windows
from workers.gpu.client import OnBeat


class TellingTrainer:
    """A trainer that says how far it is, and asks meanwhile who works on what."""

    def __init__(self, trainer: Trainer, context: Context) -> None:
        self._trainer, self._watcher = trainer, context
        self.seen: list[Running] = []

    def step(self, request: StepRequest, on_beat: OnBeat) -> StepResult:
        on_beat(Progress("train", 3, 12, loss=0.5, tokens_per_second=900.0))
        on_beat(None)
        with self._watcher.database.transaction() as tx:
            self.seen = leases.running(tx)
        return self._trainer.step(request, on_beat)


def test_a_step_says_what_it_does_and_how_far_it_is(
    make_context: Callable[..., Context], trainer: Trainer
) -> None:
    context = make_context(heartbeat_seconds=0.0)
    windows = scored_windows(context, 2, 3)
    telling, heard = TellingTrainer(trainer, make_context()), list[Doing]()
    assert pipeline.train(context, telling, on_doing=heard.append)  # type: ignore[arg-type]
    (running,) = telling.seen
    assert (running.resource, running.holder) == ("model/babylon-agent", context.holder)
    doing = running.doing
    assert doing is not None
    assert (doing.stage, doing.step, doing.windows) == ("train", 1, windows)
    assert (doing.phase, doing.done, doing.total, doing.loss) == ("train", 3, 12, 0.5)
    assert doing.share is None, "a trainer of an older release tells none"
    assert doing.title() == f"babylon-agent: step 1, 2 windows, {doing.runs} runs"
    assert doing in heard
    with context.database.transaction() as tx:
        assert leases.running(tx) == []


def test_scorers_say_which_windows_they_score(context: Context) -> None:
    heard: list[Doing] = []
    windows = scored_windows(context, 2, 3)
    query(context, "UPDATE rl.windows SET state = 'due' RETURNING 1")
    assert sorted(pipeline.score(context, on_doing=heard.append)) == windows
    assert (heard[0].stage, heard[0].windows) == ("score", windows)


def test_a_step_tells_its_phases_from_the_first_read_to_the_commit(
    context: Context, trainer: Trainer
) -> None:
    windows = scored_windows(context, 2, 3)
    heard: list[Doing] = []
    report = pipeline.train(context, trainer, on_doing=heard.append)
    assert report
    phases = [one.phase for one in heard]
    assert list(dict.fromkeys(phases)) == ["read", "load", "train", "save", "commit"]
    assert [one.windows for one in heard] == [windows] * len(heard)
    assert [one.step for one in heard] == [None, *[1] * (len(heard) - 1)]
    loading = phases.index("load")
    assert {one.runs for one in heard[:loading]} == {None}
    assert {one.runs for one in heard[loading:]} == {report.trajectories}
    shares = [one.share for one in heard]
    assert shares == sorted(shares)  # type: ignore[type-var]
    assert (shares[0], shares[-1]) == (0.0, 0.99)
    assert [one.loss for one in heard if one.phase in ("save", "commit")] == [0.0, 0.0]


def test_a_silent_step_is_logged_as_well(
    make_context: Callable[..., Context],
    trainer: Trainer,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Each beat may log: a trainer that computes for long tells nothing meanwhile."""
    monkeypatch.setattr("babylon_tasks.work.leases._TELL_SECONDS", 0.0)
    caplog.set_level(logging.INFO, "babylon_tasks.work.leases")
    context = make_context()
    scored_windows(context, 2)
    assert pipeline.train(context, TellingTrainer(trainer, context))  # type: ignore[arg-type]
    said = [record.getMessage() for record in caplog.records]
    line = "step 1, 1 window, 3 runs: train (3 of 12), loss 0.5, 900 tokens/s"
    assert said.count(line) >= 2, "once told, and once in a beat without a sign of life"


def test_an_exams_share_is_over_all_that_the_trainer_is_asked(
    make_context: Callable[..., Context], trainer: Trainer
) -> None:
    context = make_context(publish="gate", experiment_percent=0)
    first, second = scored_windows(context, 2, 3)
    assert pipeline.train(context, trainer, only=[first])
    pipeline.publish(context)
    heard: list[Doing] = []
    pipeline.train(context, trainer, only=[second], on_doing=heard.append)
    exam = [one for one in heard if one.stage == "exam"]
    assert {one.step for one in exam} == {1}
    assert {tuple(one.windows) for one in exam} == {(second,)}
    assert [one.runs for one in exam] == [None, *[3] * (len(exam) - 1)]
    assert [(one.phase, one.share) for one in exam] == [
        ("read", 0.0),
        ("load", 0.0),
        ("evaluate", 0.0),
        ("evaluate", 0.1),
        ("generate", 0.2),
        ("generate", 0.55),
        ("evaluate", 0.9),
        ("evaluate", 0.95),
        ("commit", 1.0),
    ]


def test_scorers_say_how_many_windows_are_done(context: Context) -> None:
    heard: list[Doing] = []
    windows = scored_windows(context, 2, 3, 4)
    query(context, "UPDATE rl.windows SET state = 'due' RETURNING 1")
    pipeline.score(context, on_doing=heard.append)
    assert [(one.done, one.total, one.share) for one in heard] == [
        (0, 3, 0.0),
        (1, 3, 1 / 3),
        (2, 3, 2 / 3),
    ]
    assert {tuple(one.windows) for one in heard} == {tuple(windows)}


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")
def test_a_judge_says_how_many_questions_are_answered(
    make_judged: Callable[..., Context], server: JudgeServer
) -> None:
    """A question without a usable answer is split in two: they count as well."""
    context = make_judged()
    window = hours_ago(2)
    add_judged_window(context, window, [0.1, 0.9, 0.4, 0.6])
    pipeline.produce(context)
    for _ in range(3):
        server.then(judge.too_few)
    heard: list[Doing] = []
    assert pipeline.score(context, on_doing=heard.append) == [window]
    assert {(one.stage, one.phase) for one in heard} == {("judge", "judge")}
    assert [(one.done, one.total) for one in heard] == [(0, 0), (1, 3), (2, 3), (3, 3)]


def test_the_next_holder_has_not_said_it(make_context: Callable[..., Context]) -> None:
    """Nor where the one before it could not give its lease back; a release before says nothing."""
    one = replace(make_context(heartbeat_seconds=0.0), worker="gpu@a")
    other = make_context()
    with one.database.transaction() as tx:
        lease = leases.acquire(tx, "model/babylon-agent", "one", 30.0)
    assert lease
    keeper = LeaseKeeper(one, [lease])
    doing = Doing("train", "babylon-agent", ["2026-01-01T00:00"], step=1)
    keeper.tell(doing)
    keeper.beat()
    with other.database.transaction() as tx:
        (told,) = [running.doing for running in leases.running(tx)]
    assert told == msgspec.structs.replace(doing, worker="gpu@a")
    let_leases_run_out(other)
    query(  # as release 0.1.0 takes a lease over
        other,
        "UPDATE rl.leases SET holder = 'other', token = nextval('rl.lease_tokens'),"
        " expires_at = rl.clock_timestamp() + interval '30 s', acquired_at = rl.clock_timestamp()"
        " RETURNING 1",
    )
    with other.database.transaction() as tx:
        assert [(r.holder, r.doing) for r in leases.running(tx)] == [("other", None)]
    with pytest.raises(LeaseLost):
        keeper.beat()


def test_a_long_work_is_logged_every_half_minute(
    context: Context, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clock = [1000.0]
    monkeypatch.setattr("babylon_tasks.work.leases.time.monotonic", lambda: clock[0])
    caplog.set_level(logging.INFO)
    keeper = LeaseKeeper(context, [])
    for second in range(100):
        clock[0] = 1000.0 + second
        keeper.tell(Doing("train", "a", ["w"], step=13, runs=8, phase="train", done=second))
    said = [record.getMessage() for record in caplog.records]
    assert said == ["step 13, 1 window, 8 runs: train"] * 3


WORDS: list[tuple[dict[str, Any], str, str]] = [
    (
        {
            "stage": "train",
            "windows": ["w"] * 6,
            "step": 13,
            "runs": 48,
            "phase": "train",
            "done": 22,
            "total": 72,
            "share": 0.31,
            "loss": 0.0123,
            "tokens_per_second": 8400.0,
            "seconds_left": 100.0,
        },
        "a: step 13, 6 windows, 48 runs",
        "train 31 % (22 of 72), loss 0.0123, 8,400 tokens/s, 1 min 40 s left",
    ),
    ({"stage": "exam", "windows": ["w"], "step": 9}, "a: exam of step 9, 1 window", "begun"),
    (
        {"stage": "score", "windows": ["w1", "w2", "w3", "w4"], "done": 1, "total": 4},
        "a: 4 windows: w1 w2 w3 …",
        "begun (1 of 4)",
    ),
]


@pytest.mark.parametrize(("fields", "title", "progress"), WORDS)
def test_words(fields: dict[str, Any], title: str, progress: str) -> None:
    doing = Doing(lineage="a", **fields)
    assert (doing.title(), doing.progress()) == (title, progress)
    assert msgspec.json.decode(msgspec.json.encode(doing), type=Doing) == doing
