"""A machine on which every window fails stops and blames none; a bad window is blamed still."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from babylon_tasks import pipeline
from babylon_tasks.cockpit import checks
from babylon_tasks.errors import JudgeFault, LineageAtFault, MachineAtFault, Retryable, TrainerDied
from babylon_tasks.records.steps import StepRequest, StepResult, Trainer
from babylon_tasks.scoring.heuristic import Heuristic
from babylon_tasks.scoring.scorer import Group
from babylon_tasks.store import attempts, lineages
from babylon_tasks.work.context import Context
from tests.clock import let_waits_pass
from tests.rows import add_request, add_window, hours_ago, one, query, scored_windows, states
from workers.gpu.client import OnBeat

HEURISTIC = Heuristic.score


class Broken:
    """A trainer that fails with windows in it that it cannot train; by default with all."""

    def __init__(
        self, trainer: Trainer, make_error: Callable[[], Exception], bad: Collection[str] = ()
    ) -> None:
        self._trainer, self._make_error, self._bad = trainer, make_error, bad

    def step(self, request: StepRequest, on_beat: OnBeat) -> StepResult:
        samples = Path(request.samples_path).read_text()
        if not self._bad or any(f'"{window}"' in samples for window in self._bad):
            raise self._make_error()
        return self._trainer.step(request, on_beat)

    def close(self) -> None: ...


def broken_scoring(
    patch: pytest.MonkeyPatch, bad: Collection[str] = (), error: type[Exception] = KeyError
) -> None:
    """Let the scorer fail at windows, by default at all, as a bug of ours would."""

    async def score(scorer: Any, group: Group) -> Any:
        if not bad or group.window_id in bad:
            raise error(f"something of {group.window_id}")
        return await HEURISTIC(scorer, group)

    patch.setattr(Heuristic, "score", score)


def due_windows(context: Context, *hours: int) -> list[str]:
    windows = [hours_ago(h) for h in sorted(hours, reverse=True)]
    for window in windows:
        add_window(context, window)
    pipeline.produce(context)
    return windows


def counted(context: Context) -> dict[str, int]:
    rows = query(context, "SELECT window_id, attempts FROM rl.windows WHERE attempts > 0")
    return {row["window_id"]: row["attempts"] for row in rows}


def until_it_stops(work: Callable[[], Any], most: int = 30) -> MachineAtFault | None:
    """Work again and again, as the sweep does."""
    for _ in range(most):
        try:
            work()
        except MachineAtFault as error:
            return error
        except Retryable:
            pass
    return None


# --- a release whose code always raises ---------------------------------------------------------


@pytest.mark.parametrize("max_attempts", [1, 3])
def test_a_bug_in_scoring_fails_no_window(
    make_context: Callable[..., Context], monkeypatch: pytest.MonkeyPatch, max_attempts: int
) -> None:
    """The errors' texts differ; they come up at one place."""
    context = make_context(max_attempts=max_attempts)
    windows = due_windows(context, 6, 5, 4, 3, 2)
    with monkeypatch.context() as patch:
        broken_scoring(patch)
        error = until_it_stops(lambda: pipeline.score(context))
    assert error is not None
    assert "this machine is at fault: it scores no more windows until its worker" in str(error)
    assert "KeyError" in str(error)
    assert "\n" not in str(error)
    assert states(context) == dict.fromkeys(windows, "due")
    assert counted(context) == {}
    assert query(context, "SELECT * FROM rl.leases") == []
    outcomes = query(context, "SELECT DISTINCT outcome FROM rl.attempts")
    assert [row["outcome"] for row in outcomes] == ["given_back"]
    let_waits_pass(context)
    assert pipeline.score(context) == windows


@pytest.mark.parametrize(
    "make_error",
    [
        lambda: Retryable("the trainer failed: TypeError: x (TypeError at workers/trainer/a.py:3)"),
        lambda: TrainerDied("the trainer was ended by SIGSEGV"),
        lambda: RuntimeError("in our own process"),
    ],
)
def test_a_bug_in_training_fails_no_window(
    make_context: Callable[..., Context], trainer: Trainer, make_error: Callable[[], Exception]
) -> None:
    context = make_context(max_attempts=2)
    add_request(context, "batch-1", hours_ago(4), "v1.0.0")
    windows = scored_windows(context, 5, 4, 3, 2)
    broken = Broken(trainer, make_error)
    error = until_it_stops(lambda: pipeline.train(context, broken))
    assert error is not None
    assert "this machine is at fault: it trains no more windows" in str(error)
    assert states(context) == dict.fromkeys(windows, "scored")
    assert counted(context) == {}
    request = one(context, "SELECT status, error FROM training_batches")
    assert (request["status"], request["error"]) == ("training", None)
    let_waits_pass(context)
    while pipeline.train(context, trainer):
        pass
    assert states(context) == dict.fromkeys(windows, "trained")
    assert one(context, "SELECT status FROM training_batches WHERE \"batchId\" = 'batch-1'") == {
        "status": "completed"
    }


def test_windows_that_failed_for_good_hours_before_are_revived(
    make_context: Callable[..., Context], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One window an hour: each fails before the next comes, and its process may be another one."""
    contexts = [make_context(max_attempts=2) for _ in range(3)]
    with monkeypatch.context() as patch:
        broken_scoring(patch)
        for context, hours in zip(contexts, (4, 3, 2), strict=True):
            due_windows(context, hours)
            error = until_it_stops(lambda context=context: pipeline.score(context), 4)  # type: ignore[misc]
            if hours > 2:
                assert error is None
                assert states(context)[hours_ago(hours)] == "failed"
    assert error is not None
    assert set(states(context).values()) == {"due"}
    assert counted(context) == {}


def test_people_are_told_and_the_next_success_ends_it(
    make_context: Callable[..., Context], monkeypatch: pytest.MonkeyPatch
) -> None:
    context = make_context()
    due_windows(context, 4, 3, 2)
    with monkeypatch.context() as patch:
        broken_scoring(patch)
        until_it_stops(lambda: pipeline.score(context))
    told = checks.run("machines", checks.machines, context.settings)
    assert not told.ok
    assert told.detail.startswith("test stopped to score at ")
    assert "KeyError" in told.detail
    let_waits_pass(context)
    pipeline.score(context)
    assert checks.run("machines", checks.machines, context.settings).ok


# --- windows that are bad -----------------------------------------------------------------------


def test_two_bad_windows_fail_and_stop_no_machine(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when nothing else is left to try."""
    windows = due_windows(context, 4, 3, 2)
    bad = windows[:2]
    broken_scoring(monkeypatch, bad)
    assert until_it_stops(lambda: pipeline.score(context), 8) is None
    assert states(context) == {bad[0]: "failed", bad[1]: "failed", windows[2]: "scored"}


def test_bad_windows_that_failed_before_a_success_are_blamed(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two and two, with a good one between: all four are tried in a row at last."""
    windows = due_windows(context, 7, 6, 5, 4, 3)
    good = windows[2]
    broken_scoring(monkeypatch, set(windows) - {good})
    assert until_it_stops(lambda: pipeline.score(context), 12) is None
    assert states(context) == {**dict.fromkeys(windows, "failed"), good: "scored"}


def test_after_a_restart_the_others_come_first_and_the_bad_ones_are_blamed(
    make_context: Callable[..., Context], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An agent that breaks the scorer in three hours after each other."""
    context = make_context(retry_seconds=60)
    windows = due_windows(context, 6, 5, 4, 3)
    bad, good = windows[:3], windows[3]
    broken_scoring(monkeypatch, bad)
    assert until_it_stops(lambda: pipeline.score(context), 1) is not None
    assert counted(context) == {}
    assert pipeline.score(context) == [good]
    for _ in range(3):
        let_waits_pass(context)
        assert until_it_stops(lambda: pipeline.score(context), 4) is None
    assert states(context) == {**dict.fromkeys(bad, "failed"), good: "scored"}


def test_a_bad_window_of_three_lineages_stops_no_machine(
    make_context: Callable[..., Context], monkeypatch: pytest.MonkeyPatch
) -> None:
    context = make_context()
    contexts = [
        replace(context, lineage=lineages.Lineage(name, "none", primary=False))
        for name in ("one", "two", "three")
    ]
    broken_scoring(monkeypatch)
    for context in contexts:
        due_windows(context, 2)
        assert until_it_stops(lambda context=context: pipeline.score(context), 4) is None  # type: ignore[misc]
    rows = query(context, "SELECT state FROM rl.windows")
    assert [row["state"] for row in rows] == ["failed"] * 3


def test_different_errors_stop_no_machine(
    make_context: Callable[..., Context], monkeypatch: pytest.MonkeyPatch
) -> None:
    context = make_context(max_attempts=1)
    windows = due_windows(context, 4, 3, 2)
    errors = iter((KeyError, ValueError, TypeError))

    async def score(scorer: Any, group: Group) -> Any:
        raise next(errors)("odd")

    monkeypatch.setattr(Heuristic, "score", score)
    assert until_it_stops(lambda: pipeline.score(context), 1) is None
    assert states(context) == dict.fromkeys(windows, "failed")


def test_a_judge_that_talks_nonsense_is_no_fault_of_the_machine(
    make_context: Callable[..., Context], monkeypatch: pytest.MonkeyPatch
) -> None:
    context = make_context(max_attempts=1)
    windows = due_windows(context, 4, 3, 2)

    async def score(scorer: Any, group: Group) -> Any:
        raise JudgeFault("no usable answer")

    monkeypatch.setattr(Heuristic, "score", score)
    assert until_it_stops(lambda: pipeline.score(context), 1) is None
    assert states(context) == dict.fromkeys(windows, "failed")


def test_a_lineage_that_always_fails_stops_alone(
    make_context: Callable[..., Context], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its recipe takes a path through the code that others do not."""
    own = make_context()
    other = replace(own, lineage=lineages.Lineage("other", "none", primary=False))
    error = None
    for hours in (4, 3, 2):
        due_windows(own, hours)
        pipeline.produce(other)
        with monkeypatch.context() as patch:
            broken_scoring(patch)
            error = until_it_stops(lambda: pipeline.score(other), 1)
        assert pipeline.score(own) == [hours_ago(hours)]
    assert isinstance(error, LineageAtFault)
    assert "of other failed here" in str(error)
    assert counted(other) == {}


def test_the_newest_attempts_are_of_this_machine_only(context: Context) -> None:
    with context.database.transaction() as tx:
        for token, holder in ((1, "node:1"), (2, "node:22"), (3, "node2:1"), (4, "anode:1")):
            tx.execute(
                """INSERT INTO rl.attempts (model_name, window_id, token, stage, holder, ended_at,
                       outcome) VALUES ('m', 'w', %s, 'score', %s, rl.now(), 'done')""",
                [token, holder],
            )
        rows = attempts.recent(tx, "score", "node:")
    assert sorted(row.token for row in rows) == [1, 2]
