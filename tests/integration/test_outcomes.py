"""What came of work, as its row in Flower says it afterwards."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from babylon_tasks import pipeline
from babylon_tasks.errors import Retryable
from babylon_tasks.records.doing import Doing
from babylon_tasks.work.context import Context
from tests.rows import add_exam, add_window, commit_steps, fork, hours_ago, query, scored_windows
from workers import outcomes
from workers.gpu.client import TrainerProcess


def came_of(context: Context, done: Sequence[Doing]) -> tuple[str, str]:
    with context.database.transaction() as tx:
        return outcomes.of_work(tx, done)[:2]


def test_of_a_step(context: Context, trainer: TrainerProcess) -> None:
    scored_windows(context, 3, 2)
    done: list[Doing] = []
    report = pipeline.train(context, trainer, on_doing=done.append)
    assert report
    name = context.lineage.name
    title, result = outcomes.of_step(name, report)
    assert title == f"{name}: step 1 → v1.0.0, 2 windows, 6 runs"
    assert result.startswith("step 1 → v1.0.0: loss 0, 2 windows, 6 runs, ")
    assert came_of(context, done)[1] == "2 windows trained"


def test_of_windows_that_teach_nothing(context: Context) -> None:
    add_window(context, hours_ago(4))
    for hours in (3, 2):
        add_window(context, hours_ago(hours), spread=0.0)
    pipeline.produce(context)
    done: list[Doing] = []
    pipeline.score(context, on_doing=done.append)
    title, result = came_of(context, done)
    windows = " ".join(map(hours_ago, (4, 3, 2)))
    assert title == f"{context.lineage.name}: 3 windows: {windows}"
    skipped, scored = result.split("; ")
    assert skipped.startswith("2 windows skipped: ")
    assert scored == "1 window scored"


def test_of_windows_that_failed_nothing_is_quoted(context: Context) -> None:
    windows = scored_windows(context, 4, 3, 2)
    query(
        context,
        """UPDATE rl.windows SET last_error = 'a prompt', attempts = 1,
                  state = CASE WHEN window_id = %s THEN 'failed' ELSE state END RETURNING 1""",
        windows[0],
    )
    name = context.lineage.name
    told = came_of(context, [Doing("train", name, windows)])[1]
    assert told == (
        "2 windows will be tried again: `babylon windows show ID` says why; "
        "1 window failed: `babylon windows show ID` says why"
    )


@pytest.mark.parametrize(
    ("states", "how"),
    [
        (("due", "due"), Retryable),
        (("due", "scored"), None),
        (("due", "failed"), outcomes.WindowsFailed),
        (("scored", "scored"), None),
    ],
)
def test_work_that_is_not_done_is_told_apart(
    context: Context, states: tuple[str, str], how: type[Exception] | None
) -> None:
    """Where none came further it is given back, and where one failed it has failed."""
    windows = scored_windows(context, 3, 2)
    for window, state in zip(windows, states, strict=True):
        error = None if state == "scored" else "JudgeUnavailable: it answers 503: a prompt"
        text = "UPDATE rl.windows SET state = %s, last_error = %s WHERE window_id = %s RETURNING 1"
        query(context, text, state, error, window)
    with context.database.transaction() as tx:
        _, result, error = outcomes.of_work(tx, [Doing("score", context.lineage.name, windows)])
    assert type(error) is (how or type(None))
    assert error is None or str(error) == result
    assert "a prompt" not in result
    assert ("will be tried again (JudgeUnavailable)" in result) == ("due" in states)


def test_of_exams(context: Context, trainer: TrainerProcess) -> None:
    commit_steps(context, trainer, 3, publish=False)
    add_exam(context, 2)
    add_exam(context, 3, "failed", "its runs earned less")
    name = context.lineage.name
    exams = [Doing("exam", name, [hours_ago(2)], step=step) for step in (1, 2, 3)]
    title, result = came_of(context, exams)
    assert title == f"{name}: exam of step 3, 1 window"
    assert result == (
        "the exam of step 1 is not decided; step 2 passed its exam: no figure is worse; "
        "step 3 failed its exam: its runs earned less; no step follows yet"
    )


def test_of_several_lineages(context: Context, trainer: TrainerProcess) -> None:
    commit_steps(context, trainer, 1)
    other = fork(context, "other", 1)
    ours, theirs = context.lineage.name, other.lineage.name
    title, result = came_of(
        context, [Doing("score", ours, [hours_ago(2)]), Doing("exam", theirs, step=1)]
    )
    assert title == f"{ours}: 1 window: {hours_ago(2)}; {theirs}: exam of step 1, 0 windows"
    assert result == (
        f"{ours}: 1 window trained; {theirs}: the exam of step 1 is not decided; "
        "no step follows yet"
    )


def test_of_windows_that_are_due() -> None:
    ids = [f"2026-11-28T0{hour}:00" for hour in range(4)]
    assert outcomes.due(ids[:1]) == "1 window is due: 2026-11-28T00:00"
    named = "2026-11-28T00:00 2026-11-28T01:00 2026-11-28T02:00"
    assert outcomes.due([*ids, *ids]) == f"4 windows are due: {named} …"
