"""Two models and three pool processes each on a node of two GPUs that are only names."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from babylon_tasks import pipeline
from babylon_tasks.records.steps import Progress, StepRequest, StepResult, Trainer
from babylon_tasks.work.context import Context
from tests.rows import hours_ago, query, scored_windows
from workers.gpu.client import OnBeat, TrainerOptions, TrainerProcess

GPUS = ["GPU-1", "GPU-2"]


class Watched(Trainer):
    """Notes which model's step is under way, and the GPUs that steps had."""

    def __init__(self, gpus: list[str], log: list[tuple[str, str]], used: set[str]) -> None:
        self.process = TrainerProcess(TrainerOptions("noop", gpus, gpus[0], 0.2, 60, 600))
        self._log, self._used = log, used

    def step(self, request: StepRequest, on_beat: OnBeat) -> StepResult:
        def note(progress: Progress | None) -> None:
            if self.process._holding:
                self._used.add(self.process._holding)
                time.sleep(0.1)  # others would come in between
            on_beat(progress)

        self._log.append(("begin", request.model_name))
        result = self.process.step(request, note)
        self._log.append(("end", request.model_name))
        return result

    def close(self) -> None:
        self.process.close()


def test_models_share_a_node_and_none_has_two_steps_at_once(
    make_context: Callable[..., Context], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    log: list[tuple[str, str]] = []
    used: set[str] = set()
    hours = range(2, 6)
    processes = []
    for model, primary in (("one", True), ("two", False)):
        workers = [
            make_context(model_name=model, primary=primary, max_step_tokens=1) for _ in range(3)
        ]
        if primary:
            scored_windows(workers[0], *hours)
        else:  # the same traces
            pipeline.produce(workers[0])
            pipeline.score(workers[0])
        processes += [
            (context, Watched(GPUS[n % 2 :] + GPUS[: n % 2], log, used))
            for n, context in enumerate(workers)
        ]

    def work(process: tuple[Context, Watched]) -> None:
        context, trainer = process
        windows = "SELECT count(*) FROM rl.windows WHERE model_name = %s AND state <> 'trained'"
        while query(context, windows, context.settings.model_name)[0]["count"]:
            pipeline.train(context, trainer)
            time.sleep(0.01)
        trainer.close()

    with ThreadPoolExecutor(len(processes)) as pool:
        list(pool.map(work, processes))
    under_way: set[str] = set()
    for event, model in log:
        if event == "begin":
            assert model not in under_way
            under_way.add(model)
        else:
            under_way.remove(model)
    assert used
    assert used <= set(GPUS)
    trained = query(
        processes[0][0], "SELECT model_name, window_ids FROM rl.steps ORDER BY model_name, step"
    )
    for model in ("one", "two"):
        windows = [w for row in trained if row["model_name"] == model for w in row["window_ids"]]
        assert sorted(windows) == sorted(hours_ago(h) for h in hours)
