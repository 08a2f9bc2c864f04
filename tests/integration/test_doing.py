"""What the holder of a lease says that it does: in its lease's row, and to who asked to hear it."""

from __future__ import annotations

import logging
from collections.abc import Callable
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
from tests.clock import let_leases_run_out
from tests.rows import query, scored_windows
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


def test_the_next_holder_has_not_said_it(make_context: Callable[..., Context]) -> None:
    """Nor where the one before it could not give its lease back; a release before says nothing."""
    one, other = make_context(heartbeat_seconds=0.0), make_context()
    with one.database.transaction() as tx:
        lease = leases.acquire(tx, "model/babylon-agent", "one", 30.0)
    assert lease
    keeper = LeaseKeeper(one, [lease])
    doing = Doing("train", "babylon-agent", ["2026-01-01T00:00"], step=1)
    keeper.tell(doing)
    keeper.beat()
    with other.database.transaction() as tx:
        assert [running.doing for running in leases.running(tx)] == [doing]
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
    assert said == ["a: step 13, 1 window, 8 runs: train"] * 3


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
