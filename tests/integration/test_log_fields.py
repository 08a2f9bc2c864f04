"""Whose work a line of the log is about: lineage, windows, step and token stand on every line."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from babylon_tasks import logs, pipeline
from babylon_tasks.errors import Retryable, UserError
from babylon_tasks.records.steps import StepRequest, Trainer
from babylon_tasks.work.context import Context
from tests.judge_server import JudgeServer
from tests.judged import add_judged_window
from tests.rows import add_window, hours_ago, one, scored_windows
from tests.unit.tiny import hyperparameters
from workers.gpu.client import TrainerOptions, TrainerProcess

NAME = "babylon-agent"


class Log:
    """The lines of this process, as LOG_FORMAT=json writes them."""

    def __init__(self) -> None:
        self.stream = io.StringIO()

    def lines(self, event: str = "") -> list[dict[str, Any]]:
        found = [json.loads(line) for line in self.stream.getvalue().splitlines()]
        return [line for line in found if event in line["event"]]

    def line(self, event: str) -> dict[str, Any]:
        (found,) = self.lines(event)
        return found


@pytest.fixture
def log() -> Iterator[Log]:
    written = Log()
    handler = logging.StreamHandler(written.stream)
    handler.setFormatter(logs._Lines("json", colors=False))
    ours = [logging.getLogger(name) for name in ("babylon_tasks", "workers")]
    for logger in ours:
        logger.addHandler(handler)
        logger.setLevel("INFO")
    yield written
    for logger in ours:
        logger.removeHandler(handler)
        logger.setLevel(logging.NOTSET)


def test_scoring_names_the_window_and_its_token(context: Context, log: Log) -> None:
    windows = scored_windows(context, 2, 3)
    scored = log.lines("scored ")
    assert sorted(line["window"] for line in scored) == windows
    tokens = {line["window"]: line["token"] for line in scored}
    assert len(set(tokens.values())) == 2
    for line in scored:
        assert line["lineage"] == NAME
        attempt = one(context, "SELECT * FROM rl.attempts WHERE token = %s", line["token"])
        assert attempt["window_id"] == line["window"]


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")
def test_windows_that_are_judged_together_keep_their_names(
    make_judged: Callable[..., Context], server: JudgeServer, log: Log
) -> None:
    context = make_judged()
    windows = [hours_ago(2), hours_ago(3)]
    for window in windows:
        add_judged_window(context, window, [0.1, 0.9, 0.4, 0.6])
    pipeline.produce(context)
    pipeline.score(context)
    scored = log.lines("scored ")
    assert sorted(line["window"] for line in scored) == sorted(windows)
    assert all(line["window"] in line["event"] for line in scored)
    assert {line["lineage"] for line in scored} == {NAME}


def test_a_step_has_its_number_its_windows_and_its_newest_token(
    context: Context, trainer: Trainer, log: Log
) -> None:
    windows = scored_windows(context, 2, 3)
    report = pipeline.train(context, trainer)
    assert report
    line = log.line("step 1 (v1.0.0): 2 windows")
    assert (line["lineage"], line["windows"], line["step"]) == (NAME, windows, 1)
    assert line["token"] == one(context, "SELECT token FROM rl.steps WHERE step = 1")["token"]
    assert "lineage" not in logs._bound_now()


def test_a_step_that_fails_names_the_windows_that_failed(
    make_context: Callable[..., Context], log: Log
) -> None:
    class Failing:
        def step(self, request: StepRequest, on_beat: object) -> None:
            raise Retryable("no")

    context = make_context(max_attempts=1)
    windows = scored_windows(context, 2, 3)
    assert pipeline.train(context, Failing()) is None  # type: ignore[arg-type]
    first, *_ = log.lines("a step over 2 windows failed, trying again: no")
    assert (first["lineage"], first["windows"]) == (NAME, windows)
    assert isinstance(first["token"], int)
    alone = log.lines("failed: Retryable: no")
    assert [line["windows"] for line in alone] == [[window] for window in windows]


def test_what_a_task_logs_of_an_error_has_the_fields_of_the_work(
    context: Context, log: Log
) -> None:
    class Away:
        def step(self, request: StepRequest, on_beat: object) -> None:
            raise UserError("no GPU here")

    (window,) = scored_windows(context, 2)
    with pytest.raises(UserError) as raised:
        pipeline.train(context, Away())  # type: ignore[arg-type]
    logging.getLogger("workers.tasks").error("%s: %s", "train", raised.value)
    line = log.line("train: no GPU here")
    assert (line["lineage"], line["windows"], line["step"]) == (NAME, [window], 1)
    assert line["token"] == one(context, "SELECT max(token) AS n FROM rl.attempts")["n"]


def test_an_exam_and_a_promotion_have_their_lineage(
    make_context: Callable[..., Context], trainer: Trainer, log: Log
) -> None:
    context = make_context(publish="gate", experiment_percent=0)
    first, second = scored_windows(context, 2, 3)
    assert pipeline.train(context, trainer, only=[first])
    pipeline.train(context, trainer, only=[second])
    decided = log.line("its exam: ")
    assert (decided["lineage"], decided["step"], decided["windows"]) == (NAME, 1, [second])
    assert isinstance(decided["token"], int)
    always = make_context()
    add_window(always, hours_ago(4))
    pipeline.publish(always)
    assert log.line("promoted: ")["lineage"] == NAME


def test_the_trainer_logs_in_the_same_form_and_says_whose_step_it_is(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    options = TrainerOptions("noop", None, "cpu-0", 1.0, 30.0, 60.0, log_format="json")
    trainer = TrainerProcess(options)
    request = StepRequest(
        model_name="side", base_model="none", parent=None, samples_path=str(tmp_path / "missing"),
        scratch_dir=str(tmp_path / "scratch"), output_dir=str(tmp_path / "out"), seed=13,
        hyperparameters=hyperparameters(),
    )  # fmt: skip
    with pytest.raises(Retryable, match="FileNotFoundError"):
        trainer.step(request, lambda progress: None)
    trainer.close()
    (line,) = [json.loads(line) for line in capfd.readouterr().err.splitlines() if line[:1] == "{"]
    assert line["logger"] == "workers.trainer"
    assert (line["lineage"], line["step"], line["event"]) == ("side", 13, "a StepRequest failed")
    assert "FileNotFoundError" in line["traceback"]
