"""A trainer that loads no model: for throughput benchmarks and fault tests."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from babylon_tasks.errors import CheckpointUnreadable
from babylon_tasks.records.steps import Progress, StepRequest, StepResult, WindowShare
from babylon_tasks.records.trainer_requests import (
    EvaluateRequest,
    EvaluateResult,
    GenerateRequest,
    GenerateResult,
    Generation,
    Likelihood,
)
from workers.trainer.packages import package_versions

OnProgress = Callable[[Progress], None]


class NoopTrainer:
    """Counts the samples, writes one small file, and says that it trained."""

    def step(self, request: StepRequest, on_progress: OnProgress) -> StepResult:
        """Run one step in milliseconds.

        Raises:
            CheckpointUnreadable: The parent's folder is not there.
        """
        started = time.monotonic()
        on_progress(Progress("train", share=0.0))
        _require_folder(request.parent)
        samples = _read(request.samples_path)
        calls_by_window: Counter[str] = Counter()
        for sample in samples:
            calls_by_window[sample["window_id"]] += len(sample["calls"])
        output = Path(request.output_dir)
        output.mkdir(parents=True, exist_ok=True)
        (output / "trainer_state.json").write_bytes(
            msgspec.json.encode({"trainer": "noop", "parent": request.parent, "seed": request.seed})
        )
        on_progress(Progress("train", len(samples), len(samples), loss=0.0, share=1.0))
        return StepResult(
            loss=0.0,
            sequences=calls_by_window.total(),
            dropped_sequences=0,
            trainable_tokens=0,
            context_tokens=0,
            optimizer_steps=0,
            device="none",
            gpu_seconds=0.0,
            seconds_by_phase={"forward_backward": time.monotonic() - started},
            metrics={"trajectories": float(len(samples))},
            windows={window_id: WindowShare(n, 0, 0) for window_id, n in calls_by_window.items()},
            packages=package_versions(),
        )

    def evaluate(self, request: EvaluateRequest, on_progress: OnProgress) -> EvaluateResult:
        """Find nothing likely or unlikely: no tokens, and a sum of 0.

        Raises:
            CheckpointUnreadable: The checkpoint's folder is not there.
        """
        started = time.monotonic()
        on_progress(Progress("evaluate", share=0.0))
        _require_folder(request.checkpoint)
        samples = _read(request.samples_path)
        return EvaluateResult(
            trajectories=[Likelihood(sample["trajectory_id"], 0, 0.0) for sample in samples],
            calls=sum(len(sample["calls"]) for sample in samples),
            dropped=0,
            tokens=0,
            device="none",
            seconds=time.monotonic() - started,
        )

    def generate(self, request: GenerateRequest, on_progress: OnProgress) -> GenerateResult:
        """Answer nothing, `n` times to each prompt.

        Raises:
            CheckpointUnreadable: The checkpoint's folder is not there.
        """
        started = time.monotonic()
        on_progress(Progress("generate", share=0.0))
        _require_folder(request.checkpoint)
        nothing = Generation(text="", token_ids=(), logprobs=(), finish_reason="stop")
        return GenerateResult(
            generations=[[nothing] * request.n for _ in request.prompts],
            dropped=0,
            tokens=0,
            device="none",
            seconds=time.monotonic() - started,
        )


def _require_folder(checkpoint: str | None) -> None:
    if checkpoint is not None and not Path(checkpoint).is_dir():
        raise CheckpointUnreadable(f"cannot read the checkpoint {checkpoint}: no such folder")


def _read(samples_path: str) -> list[Any]:
    with Path(samples_path).open("rb") as lines:
        return [msgspec.json.decode(line) for line in lines if line.strip()]
