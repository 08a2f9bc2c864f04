"""A trainer that loads no model: for throughput benchmarks and fault tests."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import msgspec

from babylon_tasks.errors import CheckpointUnreadable
from babylon_tasks.records.steps import Progress, StepRequest, StepResult, WindowShare
from workers.trainer.packages import package_versions


class NoopTrainer:
    """Counts the samples, writes one small file, and says that it trained."""

    def step(self, request: StepRequest, on_progress: Callable[[Progress], None]) -> StepResult:
        """Run one step in milliseconds.

        Raises:
            CheckpointUnreadable: The parent's folder is not there.
        """
        started = time.monotonic()
        on_progress(Progress(phase="train"))
        if request.parent is not None and not Path(request.parent).is_dir():
            raise CheckpointUnreadable(
                f"cannot read the checkpoint {request.parent}: no such folder"
            )
        with Path(request.samples_path).open("rb") as lines:
            samples = [msgspec.json.decode(line) for line in lines if line.strip()]
        calls_by_window: Counter[str] = Counter()
        for sample in samples:
            calls_by_window[sample["window_id"]] += len(sample["calls"])
        output = Path(request.output_dir)
        output.mkdir(parents=True, exist_ok=True)
        (output / "trainer_state.json").write_bytes(
            msgspec.json.encode({"trainer": "noop", "parent": request.parent, "seed": request.seed})
        )
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
