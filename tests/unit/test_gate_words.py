"""What people and programs are told of a gate, from records made by hand."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from babylon_tasks.cli.exam_table import exam_table
from babylon_tasks.cockpit import gate as words
from babylon_tasks.records.exams import Compared
from babylon_tasks.records.experiments import ExperimentState, Standing
from babylon_tasks.records.gates import EndedExperiment, FailedExam, Gate, RunningExperiment
from babylon_tasks.settings import Settings

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
QUIET = Gate("own", True, 1, None, 0, [], 0, None, None, None, None)
STANDING = Standing(5, 30, 10, 0.0123, -0.004, 0.0286, 12)
RUNNING = RunningExperiment(3, 1, 20.0, "it passed", "2026-01-01T07:00", NOON, STANDING)


def settings(publish: str = "gate") -> Settings:
    return Settings().model_copy(update={"publish": publish})


def waiting(gate: Gate, publish: str = "gate") -> list[str]:
    return list(words.waiting(gate, settings(publish)))


def test_nothing_waits() -> None:
    assert words.sentences(QUIET, settings()) == []
    found = words.figures(QUIET, settings())
    assert found.pop("publish") == "gate"
    assert found.pop("failures_in_a_row") == 0
    assert not any(found.values())


@pytest.mark.parametrize(
    ("attempts", "said"),
    [(0, "step 4 awaits its exam"), (1, "step 4 awaits its exam"),
     (2, "step 4 awaits its exam, which was begun 2 times")],
)  # fmt: skip
def test_a_step_awaits_its_exam(attempts: int, said: str) -> None:
    gate = replace(QUIET, awaits_exam=4, attempts=attempts)
    assert waiting(gate) == [said]
    assert waiting(gate, "manual") == [said]
    assert waiting(gate, "always") == []
    assert words.figures(gate, settings("always"))["awaits_exam"] is None


def test_steps_that_passed_wait_for_what_the_mode_says() -> None:
    one, two = replace(QUIET, passed=[4]), replace(QUIET, passed=[4, 2])
    assert waiting(one) == ["step 4 passed its exam; 4 is the next to serve"]
    assert waiting(two) == ["steps 4, 2 passed; 4 is the next to serve"]
    assert waiting(one, "manual") == [
        "step 4 passed its exam and may be promoted (`babylon models promote 4`)"
    ]
    assert waiting(replace(one, experiment=RUNNING))[0] == (
        "step 4 passed its exam; the experiment with step 3 ends first"
    )


@pytest.mark.parametrize(
    ("standing", "said"),
    [
        (None, "no window of 24 seen yet"),
        (STANDING, "window 5 of 24: +0.0123 a run (-0.004 to +0.0286), about 12 windows left at "
         "this rate"),
        (Standing(1, 6, 2, -0.5, None, None, None), "window 1 of 24: -0.5 a run, interval not "
         "known yet, not decided in time at this rate"),
        (Standing(1, 6, 0, None, None, None, 1), "window 1 of 24: no difference known yet, about "
         "1 window left at this rate"),
    ],
)  # fmt: skip
def test_how_an_experiment_stands(standing: Standing | None, said: str) -> None:
    gate = replace(QUIET, experiment=replace(RUNNING, standing=standing))
    assert waiting(gate) == [f"experiment: step 3 answers 20 % of the agents beside step 1, {said}"]
    found = words.figures(gate, settings())["experiment"]
    assert (found["step"], found["most_windows"]) == (3, 24)
    assert found["windows"] == (standing.windows if standing else 0)
    assert found["windows_left"] == (standing.windows_left if standing else None)


def test_how_the_last_ones_ended_and_who_paused() -> None:
    gate = replace(
        QUIET,
        failures=3,
        paused_at=NOON,
        failed=FailedExam(6, "form fell from 1.00 to 0.20", NOON),
        ended=EndedExperiment(2, ExperimentState.ROLLED_BACK, "it earned less", NOON),
    )
    assert words.sentences(gate, settings()) == [
        "paused 2026-01-01 12:00 UTC, since 3 steps in a row failed their exams (`babylon lineages "
        "resume own`)",
        "step 6 failed its exam 2026-01-01 12:00 UTC; 3 in a row: form fell from 1.00 to 0.20",
        "the experiment with step 2 ended 2026-01-01 12:00 UTC, rolled back: it earned less",
    ]


def test_a_figure_is_a_line() -> None:
    figures = {
        "value": Compared(0.5, 0.625, 0.125, -0.1, 0.35, runs=8, samples=3.21),
        "form": Compared(1.0, 0.25, -0.75, -0.9, -0.5, runs=8, samples=24, worse=True),
        "ranking": Compared(left_out="all runs earned the same"),
    }
    columns = [list(column.cells) for column in exam_table(figures).columns]
    assert [list(row) for row in zip(*columns, strict=True)] == [
        ["value", "0.5", "0.625", "+0.125", "-0.1 to +0.35", "8", "3.21", ""],
        ["form", "1", "0.25", "-0.75", "-0.9 to -0.5", "8", "24", "worse"],
        ["ranking", "", "", "", "", "0", "", "all runs earned the same"],
    ]
