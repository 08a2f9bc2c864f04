"""Rows with `messages` between a worker of release 0.1.0 and a new one: seen, never a loop."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from babylon_tasks import pipeline
from babylon_tasks.records.steps import Trainer
from babylon_tasks.work.context import Context
from tests.clock import let_waits_pass
from tests.old_release import extract_old_release
from tests.rows import add_trajectory, hours_ago, one, query, states
from workers.gpu.client import TrainerOptions, TrainerProcess

# Does one line of its input after the other: a stage of the pipeline.
_OLD = """
import sys
from babylon_tasks import pipeline
from babylon_tasks.settings import Settings
from babylon_tasks.work.context import Context
from workers.gpu.client import TrainerOptions, TrainerProcess

settings = Settings(
    database_url=sys.argv[1], train_rl_local=True, trainer="noop", base_model="none",
    checkpoint_store=sys.argv[2], retry_seconds=0,
)
context = Context.of_deployment(settings, "old:1")
trainer = TrainerProcess(TrainerOptions("noop", None, "cpu-0", 1.0, 30.0, 60.0))
for stage in sys.stdin:
    if stage == "score\\n":
        print(*pipeline.score(context), flush=True)
    else:
        report = pipeline.train(context, trainer)
        print(*(report.window_ids if report else ()), flush=True)
trainer.close()
"""
Old = Callable[[str], list[str]]


@pytest.fixture(scope="module")
def trainer() -> Iterator[Trainer]:
    process = TrainerProcess(TrainerOptions("noop", None, "cpu-0", 1.0, 30.0, 60.0))
    yield process
    process.close()


@pytest.fixture
def old(context: Context, tmp_path: Path) -> Iterator[Old]:
    """Run a stage by release 0.1.0; return the windows that moved."""
    folder = tmp_path / "old"
    folder.mkdir()
    extract_old_release(folder)
    settings = context.settings
    with subprocess.Popen(
        [sys.executable, "-c", _OLD, settings.postgres(), settings.checkpoint_store],
        env={**os.environ, "PYTHONPATH": str(folder)},
        cwd=folder,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None

        def run(stage: str) -> list[str]:
            process.stdin.write(f"{stage}\n")  # type: ignore[union-attr]
            process.stdin.flush()  # type: ignore[union-attr]
            return process.stdout.readline().split()  # type: ignore[union-attr]

        yield run
        process.stdin.close()
        assert process.wait(20) == 0


def add_window(context: Context, *calls: dict[str, object]) -> str:
    """A window that has been due for an hour."""
    window = hours_ago(2)
    for number in range(3):
        step = {
            "environmentState": {"agentPnL": 300 * number - 200},
            "llmCalls": [{**call, "response": f"BUY {number}"} for call in calls],
        }
        add_trajectory(context, window, f"agent-{number}", stepsJson=json.dumps([step]))
    pipeline.produce(context)
    query(context, "UPDATE rl.windows SET due_at = due_at - interval '1 hour' RETURNING 1")
    return window


MESSAGES = {
    "messages": [
        {"role": "user", "content": "Buy?"},
        {"role": "assistant", "content": "No."},
        {"role": "user", "content": "And now?"},
    ]
}


def test_what_an_old_worker_scored_is_scored_again(
    context: Context, trainer: Trainer, old: Old
) -> None:
    """A new trainer takes none of its scores, and does not ask it for ever."""
    window = add_window(context, MESSAGES)
    for _ in range(3):
        assert old("score") == [window]
        assert pipeline.train(context, trainer) is None
        assert states(context) == {window: "due"}
    assert old("score") == []
    let_waits_pass(context)
    assert pipeline.score(context) == [window]
    let_waits_pass(context)
    report = pipeline.train(context, trainer)
    assert report is not None
    assert report.window_ids == [window]
    endings = query(context, "SELECT outcome, error FROM rl.attempts WHERE stage = 'train'")
    given_back = {"outcome": "given_back", "error": "a trace was rewritten after it was scored"}
    assert endings.count(given_back) == 3
    assert one(context, "SELECT attempts FROM rl.windows") == {"attempts": 0}


def test_an_old_trainer_takes_nothing_that_it_would_misread(
    context: Context, trainer: Trainer, old: Old
) -> None:
    """It would train answers to an empty message; from the third time on the window waits."""
    window = add_window(context, MESSAGES)
    for _ in range(3):
        assert pipeline.score(context) == [window]
        assert old("train") == []
        assert states(context) == {window: "due"}
    assert pipeline.score(context) == [window]
    assert old("train") == []
    assert states(context) == {window: "scored"}
    let_waits_pass(context)
    report = pipeline.train(context, trainer)
    assert report is not None
    assert report.window_ids == [window]


@pytest.mark.parametrize("scores_first", ["old", "new"])
def test_prompts_and_responses_go_from_one_release_to_the_other(
    context: Context, trainer: Trainer, old: Old, scores_first: str
) -> None:
    """Also calls without a prompt, which a new trainer leaves out whoever scored them."""
    window = add_window(context, {"systemPrompt": "You trade.", "userPrompt": "Buy?"}, {})
    if scores_first == "old":
        assert old("score") == [window]
        report = pipeline.train(context, trainer)
        assert report is not None
        assert report.result.sequences == 3
    else:
        assert pipeline.score(context) == [window]
        assert old("train") == [window]
    assert states(context) == {window: "trained"}
